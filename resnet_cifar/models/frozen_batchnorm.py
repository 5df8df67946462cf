"""BatchNorm that keeps the statistics of pretraining: in training it normalizes as in evaluation.

Statistics of the new images can ruin pretrained features, above all those of small images that are enlarged, which lack
the frequencies of the original ones. The layers' weights and biases are trained. Keras's guide to fine-tuning
(https://keras.io/guides/transfer_learning/) recommends the same.
"""

from __future__ import annotations

import functools

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenStatistics:
    """Added to the class of a BatchNorm: it is never in train mode."""

    def train(self, mode: bool = True) -> nn.Module:
        """Evaluation mode, whatever `mode` is."""
        return super().train(False)


@functools.cache
def _frozen(norm_class: type[_BatchNorm]) -> type[_BatchNorm]:
    return type(f"Frozen{norm_class.__name__}", (FrozenStatistics, norm_class), {})


def freeze_batchnorm(model: nn.Module) -> None:
    """Freezes the statistics of every BatchNorm of `model`, in place; parameters and buffers keep their names."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _frozen(type(module))
            module.eval()
