"""RMSprop as Keras defines it (https://keras.io/api/optimizers/rmsprop): `optimizer.name rmsprop_keras`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import RMSpropTF


class RMSpropKeras(RMSpropTF):
    """v = rho v + (1 - rho) g^2, then w -= rate g / sqrt(v + epsilon), with v from zero.

    Keras's defaults: rho 0.9, epsilon 1e-7 inside the root, no momentum, decoupled weight decay. timm's RMSpropTF does
    the arithmetic, but starts with v = 1, as TensorFlow 1 did: its first updates are about rate g, Keras's
    3 rate sign(g).
    """

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, alpha=0.9, eps=1e-7, weight_decay=weight_decay, decoupled_decay=True)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; see torch.optim.Optimizer.step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    zeros = torch.zeros_like(parameter)
                    self.state[parameter] = {"step": torch.tensor(0.0), "square_avg": zeros}
        return super().step(closure)
