"""Pickles of numbers, strings, lists, dicts and NumPy integer arrays, read without calling what they name.

A pickle is a program that names functions and calls them. As in Python's documentation ("Restricting Globals"),
`find_class` accepts a short list of names. NumPy's own functions are not called either: a pickle may set the flags of a
dtype and so make NumPy read raw bytes as pointers. Each accepted name stands for a function or class of this file.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from typing import Any

import numpy as np

# Sets hash what they hold, and DUP doubles it: no file of images needs either.
_REFUSED = {"DUP", "EMPTY_SET", "ADDITEMS", "FROZENSET"}


def unpickle(content: bytes) -> dict[str, Any]:
    """The dict in a pickle: text keys, NumPy arrays, and byte strings (the only strings of Python 2) as they are.

    A damaged or hostile file raises almost any Exception; nothing it names is executed.
    """
    # Checks every length against the file, before the unpickler allocates memory for it.
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in _REFUSED or ("PUT" in opcode.name and argument > len(content)):
            raise pickle.UnpicklingError(f"it contains {opcode.name} {argument}, which no file of images needs")
    loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(loaded, dict):
        raise pickle.UnpicklingError(f"it contains a {type(loaded).__name__}, not a dict")
    return {text(key): value.array if isinstance(value, _Array) else value for key, value in loaded.items()}


def text(value: bytes | str) -> str:
    """A string, or a byte string of Python 2."""
    return value.decode() if isinstance(value, bytes) else str(value)


class _Dtype:
    """Replaces numpy.dtype: integers only, so that no array holds objects."""

    def __init__(self, code: bytes | str, *_: Any) -> None:
        self._code, self._order = text(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = text(state[1])

    def numpy(self) -> np.dtype:
        name = self._order + self._code
        if not re.fullmatch(r"[<>|=][iu][1248]", name):
            raise pickle.UnpicklingError(f"an array has the type {name}, not integers")
        return np.dtype(name)


class _Array:
    """Replaces numpy.ndarray; BUILD passes the state."""

    array: np.ndarray

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.array = np.frombuffer(content, dtype.numpy()).reshape(shape, order="F" if is_fortran else "C")


class _Buffer(_Array):
    """Replaces NumPy's _frombuffer."""

    def __init__(self, content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> None:
        self.__setstate__((1, shape, dtype, order == "F", content))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Functions are made for each call, so that a pickle that sets an attribute changes nothing that lasts.
        accepted = {
            "numpy.ndarray": None,  # an argument of _reconstruct
            "numpy.dtype": _Dtype,
            "numpy.core.multiarray._reconstruct": _Array,
            "numpy.core.numeric._frombuffer": _Buffer,  # of protocol 5
            "numpy.core.multiarray.scalar": lambda dtype, content: int(np.frombuffer(content, dtype.numpy())[0]),
            "_codecs.encode": lambda string, *_: string.encode("latin1"),  # a byte string that Python 3 wrote
        }
        qualified = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if qualified not in accepted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of images needs")
        return accepted[qualified]
