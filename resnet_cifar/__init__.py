"""Distributed fine-tuning of timm models on CIFAR-10: the recipe decides the result, the machines only the speed."""

from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from resnet_cifar.notebook import show, train

__all__ = ["show", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`train` and `show`, loaded when somebody asks for them: timm's users import this package for its models alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from resnet_cifar import notebook

    return getattr(notebook, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _register_models(_timm: object) -> None:
    from resnet_cifar.models import cifar_stem, mlp_head

    cifar_stem.register()
    mlp_head.register()


# timm takes seconds to import and `--help` must not wait for it: models with a CIFAR stem or a deep head join timm's
# registry when (and only when) somebody imports timm.
wrapt.register_post_import_hook(_register_models, "timm")
