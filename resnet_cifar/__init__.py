"""Distributed fine-tuning of timm models on CIFAR-10: the recipe decides the result, the machines only the speed."""

import wrapt

__version__ = "0.1.0"


def _register_models(_timm: object) -> None:
    from resnet_cifar import cifar_stem, head

    cifar_stem.register()
    head.register()


# timm takes seconds to import and `--help` must not wait for it: models with a CIFAR stem or a deep head join timm's
# registry when (and only when) somebody imports timm.
wrapt.register_post_import_hook(_register_models, "timm")
