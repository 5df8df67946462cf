"""TODO."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_cifar.models.factory import in_mode
from resnet_cifar.models.ghost_batchnorm import GhostBatchNorm


@torch.no_grad()
def estimate_bn_stats(model: nn.Module, batches: Iterable[Tensor], average: Callable[[Tensor], Tensor]) -> None:
    """Running statistics afresh: the mean over `batches` with today's weights ("precise BN", Wu & Johnson 2021).

    What `torch.optim.swa_utils.update_bn` does, except that all other modules stay in eval mode (dropout is off) and
    that ranks share the work: `average` turns this rank's statistics into the mean over all batches of all ranks.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta = [module.momentum for module in norms]
    groups = [getattr(module, "ghost_batch_size", None) for module in norms]
    with in_mode(model, training=False):
        for module in norms:
            module.train()
            module.reset_running_stats()
            module.momentum = None  # a cumulative mean
            # Statistics are of whole batches of one rank: ranks have different numbers of them.
            if isinstance(module, nn.SyncBatchNorm):
                module.process_group, module.alone = module.alone, module.process_group
            if isinstance(module, GhostBatchNorm):
                module.ghost_batch_size = sys.maxsize
        for batch in batches:
            model(batch)
    for module, momentum, rows in zip(norms, momenta, groups, strict=True):
        module.momentum = momentum
        module.running_mean.copy_(average(module.running_mean))
        module.running_var.copy_(average(module.running_var))
        module.num_batches_tracked.zero_()
        if isinstance(module, nn.SyncBatchNorm):
            module.process_group, module.alone = module.alone, module.process_group
        if rows:
            module.ghost_batch_size = rows
