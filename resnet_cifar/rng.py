"""Counter-based random numbers: functions of (seed, purpose, numbers), so there is no generator state to save.

NumPy's Philox counts blocks of four 64-bit words, so row i of a table has a fixed position in the stream and any rank
can generate just its own rows. Only raw words are used: their stream is fixed by the algorithm (Salmon et al. 2011),
while NumPy's distributions may change between versions. Purposes: init, order, class_order, augment, flip, dropout,
split, data, tune."""

import hashlib

import numpy as np

COLUMNS = 32  # uniforms per row; more than are used, so that a new augmentation does not change the numbers of others
_WORDS_PER_BLOCK = 4


def words(seed: int, purpose: str, *numbers: int, start: int = 0, count: int) -> np.ndarray:
    """`count` uint64 words of the stream (seed, purpose, numbers), starting at word `start` (a multiple of four)."""
    assert start % _WORDS_PER_BLOCK == 0, start
    name = repr((seed, purpose, *numbers)).encode()
    key = np.frombuffer(hashlib.blake2b(name, digest_size=16).digest(), dtype="<u8")
    return np.random.Philox(key=key, counter=start // _WORDS_PER_BLOCK).random_raw(count)


def uniforms(seed: int, purpose: str, *numbers: int, start: int = 0, count: int) -> np.ndarray:
    """float64 in [0, 1), 53 bits each; see `words`."""
    return (words(seed, purpose, *numbers, start=start, count=count) >> np.uint64(11)) * 2.0**-53


def row_uniforms(seed: int, purpose: str, step: int, rows: slice) -> np.ndarray:
    """The random numbers of rows `rows` of step `step`: float64 [n, COLUMNS] in [0, 1)."""
    count = (rows.stop - rows.start) * COLUMNS
    return uniforms(seed, purpose, step, start=rows.start * COLUMNS, count=count).reshape(-1, COLUMNS)


def dropout_masks(seed: int, purpose: str, step: int, rows: slice, units: int, dropped: float) -> np.ndarray:
    """Dropout masks of rows `rows` of step `step`: bool [n, units], each False with probability `dropped`.

    A unit uses 32 bits, the resolution of a float32, as masks are wide.
    """
    words_per_row = -(-units // (2 * _WORDS_PER_BLOCK)) * _WORDS_PER_BLOCK  # words per row, in whole blocks
    count = rows.stop - rows.start
    drawn = words(seed, purpose, step, start=rows.start * words_per_row, count=count * words_per_row)
    halves = drawn.astype("<u8", copy=False).view("<u4").reshape(count, 2 * words_per_row)[:, :units]
    return halves >= np.uint32(min(round(dropped * 2**32), 2**32 - 1))


def permutation(seed: int, purpose: str, number: int, size: int) -> np.ndarray:
    """A permutation of 0..size-1, int64 [size]."""
    return np.argsort(words(seed, purpose, number, count=size), kind="stable")


def permutations(seed: int, purpose: str, number: int, size: int, which: range) -> np.ndarray:
    """Permutations `which` of the stream (seed, purpose, number), each of 0..size-1: int64 [len(which), size]."""
    padded = -(-size // _WORDS_PER_BLOCK) * _WORDS_PER_BLOCK  # words per permutation, in whole blocks
    drawn = words(seed, purpose, number, start=which.start * padded, count=len(which) * padded)
    return np.argsort(drawn.reshape(-1, padded)[:, :size], axis=1, kind="stable")


def bits(seed: int, purpose: str, size: int) -> np.ndarray:
    """`size` fair coin flips, uint8 [size] of 0 and 1."""
    return (words(seed, purpose, count=size) >> np.uint64(63)).astype(np.uint8)


def torch_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for torch's CPU generator, which uses 32 bits of it."""
    return int(words(seed, purpose, *numbers, count=1)[0] >> np.uint64(32))


def beta(uniform: np.ndarray, alpha: float) -> np.ndarray:
    """Beta(alpha, alpha) by its inverse CDF, of the shape of `uniform`; ones if alpha is 0 (nothing is mixed)."""
    if alpha in (0, 1):
        return uniform if alpha else np.ones_like(uniform)
    from scipy.special import betaincinv  # takes half a second to import

    return betaincinv(alpha, alpha, uniform)
