"""Pickles of numbers, words, lists, dicts and numpy arrays, read without importing or calling what they name.

A pickle is a program that names functions and calls them. Here it may name the few that numpy's arrays are rebuilt
with, under their old and new module names, and each name stands for a class of this file that only takes the bytes
down: nothing else can come to be called.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from typing import Any, ClassVar

import numpy as np


def unpickle(content: bytes) -> dict[str, Any]:
    """The dict of a pickle: text keys, arrays as numpy's, byte strings as they are (Python 2 knew no others).

    A damaged or hostile file raises almost anything of Exception; none of its bytes is run.
    """
    found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"it holds a {type(found).__name__}, not a dict")
    return {text(key): value.array if isinstance(value, _Array) else value for key, value in found.items()}


def text(value: bytes | str) -> str:
    """A byte string of Python 2, or a word."""
    return value.decode() if isinstance(value, bytes) else str(value)


class _Dtype:
    """numpy.dtype: whole numbers only, so that no array holds objects."""

    def __init__(self, code: bytes | str, *_: Any) -> None:
        self._code, self._order = text(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = text(state[1])

    def numpy(self) -> np.dtype:
        described = self._order + self._code
        if not re.fullmatch(r"[<>|=][iu][1248]", described):
            raise pickle.UnpicklingError(f"an array of {described} is none of whole numbers")
        return np.dtype(described)


class _Array:
    """What numpy's _reconstruct begins and the state completes."""

    array: np.ndarray

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.array = np.frombuffer(content, dtype.numpy()).reshape(shape, order="F" if is_fortran else "C")


class _Buffer(_Array):
    """numpy's _frombuffer, of pickle's protocol 5."""

    def __init__(self, content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> None:
        self.__setstate__((1, shape, dtype, order == "F", content))


class _Scalar(int):
    """One of numpy's whole numbers."""

    def __new__(cls, dtype: _Dtype, content: bytes) -> int:
        return int(np.frombuffer(content, dtype.numpy())[0])


class _Encoded(bytes):
    """A byte string that Python 3 has written for Python 2."""

    def __new__(cls, written: str, *_: Any) -> bytes:
        return written.encode("latin1")


_NAMED = {
    ("numpy", "ndarray"): None,  # an argument of _reconstruct
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("_codecs", "encode"): _Encoded,
}


_SETS = (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)  # what they hold is hashed, and no file needs them


# Python's own Unpickler, not C's, which makes room for as many objects as a file of ten bytes says that it has.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        key = module.replace("numpy._core", "numpy.core"), name
        if key not in _NAMED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of images needs")
        return _NAMED[key]

    def load_build(self) -> None:
        state = self.stack.pop()
        self.stack[-1].__setstate__(state)  # and where there is none, no attributes are set in its place

    def load_setitem(self) -> None:
        self._check_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            self._check_key(key)
        super().load_setitems()

    def load_dict(self) -> None:
        for key in self.stack[::2]:
            self._check_key(key)
        super().load_dict()

    def _check_key(self, key: Any) -> None:
        if not isinstance(key, str | bytes | int):  # pairs of pairs of pairs take days to be hashed
            raise pickle.UnpicklingError(f"a {type(key).__name__} is a key in it")

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))  # not a bytearray of that size, which may be more than the file has

    dispatch: ClassVar = {
        **{code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in _SETS},
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }
