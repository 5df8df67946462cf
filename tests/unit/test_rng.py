"""data/draws.py: the same numbers for the same name, the one that asks, and no others."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import scipy.stats

from resnet_cifar import rng

GOLDEN_WORDS = [7944233014744848008, 11133354143594423096, 8445715107726659609, 16589012191433068883]
GOLDEN_PERMUTATION = [4, 0, 2, 1, 5, 7, 3, 6]


def philox_block(key: bytes, number: int) -> list[int]:
    """Block `number` of Philox4x64-10 as its paper has it (Salmon et al. 2011); NumPy's stream begins with block 1."""
    whole = 2**64 - 1
    low, high = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    block = [number, 0, 0, 0]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * block[0], 0xCA5A826395121157 * block[2]
        block = [(second >> 64) ^ block[1] ^ low, second & whole, (first >> 64) ^ block[3] ^ high, first & whole]
        low, high = (low + 0x9E3779B97F4A7C15) & whole, (high + 0xBB67AE8584CAA73B) & whole
    return block


def test_golden_words_and_uniforms() -> None:
    """NumPy fixes Philox's raw stream; should it ever change, every run would change with it."""
    words = rng.words(7, "order", 3, count=4)
    assert words.dtype == np.uint64
    assert words.tolist() == GOLDEN_WORDS
    assert rng.uniforms(7, "order", 3, count=4).tolist() == [(word >> 11) / 2**53 for word in GOLDEN_WORDS]


def test_words_are_philox_as_published() -> None:
    key = hashlib.blake2b(b"(7, 'order', 3)", digest_size=16).digest()
    expected = [word for number in (1, 2, 3) for word in philox_block(key, number)]
    assert rng.words(7, "order", 3, count=12).tolist() == expected
    assert rng.words(7, "order", 3, start=8, count=4).tolist() == expected[8:]


def test_golden_permutation() -> None:
    assert rng.permutation(7, "order", 3, 8).tolist() == GOLDEN_PERMUTATION


def test_golden_torch_seed_has_32_bits() -> None:
    assert rng.torch_seed(7, "order", 3) == GOLDEN_WORDS[0] >> 32


@pytest.mark.parametrize("rows", [slice(0, 1), slice(5, 9), slice(63, 64), slice(0, 64), slice(32, 48)])
def test_a_row_of_a_table_does_not_depend_on_the_requested_rows(rows: slice) -> None:
    whole = rng.row_uniforms(1, "augment", 12, slice(0, 64))
    assert whole.shape == (64, rng.COLUMNS)
    np.testing.assert_array_equal(rng.row_uniforms(1, "augment", 12, rows), whole[rows])


def test_words_can_be_read_from_the_middle() -> None:
    whole = rng.words(0, "data", count=40)
    np.testing.assert_array_equal(rng.words(0, "data", start=12, count=10), whole[12:22])


def test_every_part_of_the_name_changes_the_numbers() -> None:
    names = [
        (0, "augment", 1),
        (1, "augment", 1),
        (0, "order", 1),
        (0, "augment", 2),
        (0, "augment", 1, 0),
        (0, "augment"),
        (2**32, "augment", 1),  # torch would keep 32 bits of such a seed
        (0, "augment", 2**32 + 1),
        (0, "augment", 11),
        (0, "augment1", 0),
    ]
    streams = {rng.words(*name, count=4).tobytes() for name in names}
    assert len(streams) == len(names)


def test_two_rows_of_one_table_have_no_number_in_common() -> None:
    table = rng.row_uniforms(3, "augment", 0, slice(0, 256))
    assert len(np.unique(table)) == table.size


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_permutation_holds_every_number_once(size: int) -> None:
    order = rng.permutation(5, "order", 2, size)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(size))


def test_permutations_put_every_number_everywhere() -> None:
    """Where 0 lands in 4,000 permutations of 8: chi-square at the 1 in 1,000 level, one fixed seed."""
    places = [int(np.flatnonzero(rng.permutation(0, "order", epoch, 8) == 0)[0]) for epoch in range(4000)]
    assert scipy.stats.chisquare(np.bincount(places, minlength=8)).pvalue > 0.001


def test_uniforms_are_uniform_in_0_to_1_and_columns_are_unrelated() -> None:
    table = rng.row_uniforms(0, "augment", 0, slice(0, 4096))
    assert table.dtype == np.float64
    assert table.min() >= 0
    assert table.max() < 1
    counts = np.histogram(table, bins=64, range=(0, 1))[0]
    assert scipy.stats.chisquare(counts).pvalue > 0.001
    between = np.corrcoef(table.T) - np.eye(rng.COLUMNS)
    assert abs(between).max() < 5 / np.sqrt(len(table))


def test_the_largest_word_stays_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = np.array([2**64 - 1, 0], dtype=np.uint64)
    monkeypatch.setattr(rng, "words", lambda *name, start, count: largest)
    assert rng.uniforms(0, "augment", count=2).tolist() == [1 - 2.0**-53, 0.0]


def test_coins_are_fair_and_differ_between_seeds() -> None:
    coins = rng.bits(0, "flip", 10_000)
    assert coins.dtype == np.uint8
    assert set(coins.tolist()) == {0, 1}
    assert abs(int(coins.sum()) - 5000) < 200  # four standard deviations
    assert 4000 < int((coins != rng.bits(1, "flip", 10_000)).sum()) < 6000


def test_a_coin_does_not_depend_on_how_many_are_tossed() -> None:
    np.testing.assert_array_equal(rng.bits(0, "flip", 10), rng.bits(0, "flip", 100)[:10])


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1, 2.0, 8.0])
def test_beta_is_the_inverse_of_its_distribution(alpha: float) -> None:
    u = rng.uniforms(0, "augment", 1, count=512)
    np.testing.assert_allclose(rng.beta(u, alpha), scipy.stats.beta.ppf(u, alpha, alpha), rtol=1e-9, atol=1e-300)
    low = u[u <= 0.5]  # the upper half lies so close to 1 that float64 cannot tell its values apart
    np.testing.assert_allclose(scipy.stats.beta.cdf(rng.beta(low, alpha), alpha, alpha), low, rtol=1e-9)
    np.testing.assert_allclose(rng.beta(1 - low, alpha), 1 - rng.beta(low, alpha), rtol=1e-7)


def test_beta_stays_in_its_interval_at_the_ends() -> None:
    ends = rng.beta(np.array([0.0, 2.0**-53, 1 - 2.0**-53]), 0.1)
    assert np.isfinite(ends).all()
    assert ((ends >= 0) & (ends <= 1)).all()


@pytest.mark.parametrize("units", [1, 8, 9, 192])
@pytest.mark.parametrize("rows", [slice(0, 1), slice(5, 9), slice(63, 64), slice(0, 64)])
def test_a_rows_dropout_mask_does_not_depend_on_the_requested_rows(rows: slice, units: int) -> None:
    whole = rng.dropout_masks(1, "dropout", 12, slice(0, 64), units, 0.5)
    assert (whole.shape, whole.dtype) == ((64, units), bool)
    np.testing.assert_array_equal(rng.dropout_masks(1, "dropout", 12, rows, units, 0.5), whole[rows])


@pytest.mark.parametrize("dropped", [0.1, 0.5, 0.9])
def test_each_unit_is_dropped_with_its_probability_by_itself(dropped: float) -> None:
    kept = rng.dropout_masks(0, "dropout", 3, slice(0, 4096), 50, dropped)
    assert kept.mean() == pytest.approx(1 - dropped, abs=4 * (dropped * (1 - dropped) / kept.size) ** 0.5)
    correlation = np.corrcoef(np.concatenate([kept, np.roll(kept, 1, axis=0)], axis=1).T)
    assert np.abs(correlation - np.eye(100)).max() < 6 / 4096**0.5
    for other in (
        rng.dropout_masks(1, "dropout", 3, slice(0, 4096), 50, dropped),
        rng.dropout_masks(0, "dropout", 4, slice(0, 4096), 50, dropped),
    ):
        assert (other != kept).any(axis=1).mean() > 0.99


def test_the_highest_probability_still_drops() -> None:
    assert not rng.dropout_masks(0, "dropout", 0, slice(0, 100), 10, 1 - 1e-12).any()
