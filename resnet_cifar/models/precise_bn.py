"""Precise BN (Wu & Johnson 2021): BatchNorm's running statistics, re-estimated for the current weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_cifar.models.factory import in_mode
from resnet_cifar.models.frozen_batchnorm import FrozenStatistics
from resnet_cifar.models.ghost_batchnorm import GhostBatchNorm


@torch.no_grad()
def estimate_bn_stats(model: nn.Module, batches: Iterable[Tensor], average: Callable[[Tensor], Tensor]) -> None:
    """Sets the running statistics to their mean over `batches` [n, 3, h, w].

    Like `torch.optim.swa_utils.update_bn`, except that all other modules are in eval mode (no dropout) and that ranks
    share the work: `average` turns this rank's statistics into the mean over all batches of all ranks.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    norms = [module for module in norms if not isinstance(module, FrozenStatistics)]
    if not norms:
        return
    momenta = [module.momentum for module in norms]
    ghost_batch_sizes = [getattr(module, "ghost_batch_size", None) for module in norms]
    with in_mode(model, training=False):
        for module in norms:
            module.train()
            module.reset_running_stats()
            module.momentum = None  # a cumulative mean
            # Whole batches of this rank only: ranks have different numbers of batches.
            if isinstance(module, nn.SyncBatchNorm):
                module.process_group, module.local_group = module.local_group, module.process_group
            if isinstance(module, GhostBatchNorm):
                module.ghost_batch_size = sys.maxsize
        for batch in batches:
            model(batch)
    for module, momentum, rows in zip(norms, momenta, ghost_batch_sizes, strict=True):
        module.momentum = momentum
        module.running_mean.copy_(average(module.running_mean))
        module.running_var.copy_(average(module.running_var))
        module.num_batches_tracked.zero_()
        if isinstance(module, nn.SyncBatchNorm):
            module.process_group, module.local_group = module.local_group, module.process_group
        if rows:
            module.ghost_batch_size = rows
