"""Distributed fine-tuning of timm models on CIFAR-10: the recipe determines the result, the hardware only the speed."""

import sys
from importlib import util
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_cifar.notebook import show, train

__all__ = ["register", "show", "train"]
__version__ = "0.1.0"


def register() -> None:
    """Adds the models with a CIFAR stem (NAME_cifar) and `mlp_head` to timm's registry.

    Called when both this package and timm have been imported, in whichever order.
    """
    from resnet_cifar.models import cifar_stem, mlp_head  # noqa: F401 (they register on import, as timm's modules do)


class _RegisterAfterTimm:
    """An import finder that calls `register` after `import timm`.

    timm takes seconds to import, and neither --help nor an error message may wait for it.
    """

    @classmethod
    def find_spec(cls, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        sys.meta_path.remove(cls)
        spec = util.find_spec(name)
        if spec is not None:
            load = spec.loader.exec_module

            def load_and_register(module: Any) -> None:
                load(module)
                register()

            spec.loader.exec_module = load_and_register
        return spec


def __getattr__(name: str) -> Any:
    """`train` and `show` are imported on first use: users of the models alone do not need them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from resnet_cifar import notebook

    return getattr(notebook, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


if "timm" in sys.modules:
    register()
else:
    sys.meta_path.insert(0, _RegisterAfterTimm)
