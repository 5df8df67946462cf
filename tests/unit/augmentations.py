"""Values of every field of `augment`, read off its types, so that a new augmentation is part of the tests at once."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_type_hints

from resnet_cifar.config.schema import Augment

_TYPES = get_type_hints(Augment)
# The number of values of a field of whole numbers; 5 by default, as test images have at least 5 pixels.
_INTEGERS = {"cutout": 10, "rand_augment": 31}


def _values(name: str) -> list[Any]:
    kind = _TYPES[name]
    if kind is bool:
        return [False, True]
    if kind is int:
        return list(range(_INTEGERS.get(name, 5)))
    return [0.0, 0.5, 1.0] if kind is float else list(get_args(kind))


VALUES = {field.name: _values(field.name) for field in fields(Augment)}  # the first one turns the field off
EVERYTHING = {name: values[len(values) // 2] for name, values in VALUES.items()}
NOTHING = {name: values[0] for name, values in VALUES.items()}
