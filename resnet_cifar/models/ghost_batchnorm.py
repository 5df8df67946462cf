"""Ghost BatchNorm (Hoffer et al. 2017): in training, groups of consecutive rows are normalized by their own statistics.

With groups of a fixed size, a step is the same computation on any number of processes and micro-batches. There are
several implementations, which agree up to rounding:

- compiled: a few vectorized operations in one graph, compiled to as many kernels as stock BatchNorm
- eager, CUDA, channels_last: four Triton kernels per layer for any number of groups (ghost_batchnorm_triton.py)
- otherwise: torch's native BatchNorm for each group in turn, which is the fastest on CPUs
- groups that span processes: torch's SyncBatchNorm

Running statistics are not updated in training: they do not influence it, and `precise_bn.estimate_bn_stats` computes
them before every evaluation.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, Literal

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_cifar.models.frozen_batchnorm import FrozenStatistics

Implementation = Literal["auto", "compiled", "triton", "native"]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, None, None]


def apply_ghost_batchnorm(model: nn.Module, rows: int, implementation: Implementation = "auto") -> nn.Module:
    """Replaces every BatchNorm of `model`, in place, by one that normalizes groups of `rows` rows in training.

    Parameters and buffers are kept, with their names. Returns `model`, or its replacement if it is a BatchNorm itself.
    `implementation` is for benchmarks and tests; "auto" chooses at every call.
    """
    replaced: dict[nn.Module, nn.Module] = {}

    def replacement(module: nn.Module) -> nn.Module:
        if not isinstance(module, _BatchNorm) or isinstance(module, FrozenStatistics):
            return module
        if module not in replaced:  # a module may be used in several places
            replaced[module] = module if isinstance(module, GhostBatchNorm) else GhostBatchNorm(module)
            replaced[module].ghost_batch_size, replaced[module].implementation = rows, implementation
        return replaced[module]

    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips repeated modules
            if child is not None and (new := replacement(child)) is not child:
                setattr(parent, name, new)
    return replacement(model)


def sync_batchnorm(model: nn.Module, group: Any, local_group: Any) -> nn.Module:
    """Makes every BatchNorm normalize over the rows of all processes in `group` (SyncBatchNorm, on GPUs only).

    `local_group`: the process group of this process only, which `precise_bn.estimate_bn_stats` uses.
    """
    model = convert_sync_batchnorm(model, process_group=group)
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.local_group = local_group
    return model


class GhostBatchNorm(_BatchNorm):
    """Replaces `norm` (torch's BatchNorm or timm's BatchNormAct2d) and shares its parameters and buffers.

    Training batches of more than `ghost_batch_size` rows are normalized group by group; smaller ones, and all in eval
    mode, like `norm`. Input: [rows, channels, ...] in any memory format, which the output keeps.
    """

    ghost_batch_size: int
    implementation: Implementation

    def __init__(self, norm: _BatchNorm) -> None:
        nn.Module.__init__(self)
        for name in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
            setattr(self, name, getattr(norm, name))
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(norm, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        for name, child in norm.named_children():  # timm's BatchNormAct2d: drop, then act
            self.add_module(name, child)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accepts any number of dimensions, since it replaces BatchNorm1d and BatchNorm2d."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes, then applies the activation of timm's class, if any."""
        grouped = self.training and len(input) > self.ghost_batch_size
        output = self._normalize_groups(input) if grouped else super().forward(input)
        for child in self.children():
            output = child(output)
        return output

    def _normalize_groups(self, input: Tensor) -> Tensor:
        groups, rest = divmod(len(input), self.ghost_batch_size)
        if rest:  # not in training, where batches consist of whole groups
            whole, last = input.split([len(input) - rest, rest])
            return torch.cat([ghost_batch_norm(whole, self, groups), ghost_batch_norm(last, self, 1)])
        return ghost_batch_norm(input, self, groups)


def ghost_batch_norm(input: Tensor, norm: GhostBatchNorm, groups: int) -> Tensor:
    """Normalizes `groups` equal groups of consecutive rows of `input` [rows, channels, ...] by their own statistics.

    Statistics are float32 (float64 for float64); the output has the dtype and strides of `input`.
    """
    weight, bias = norm.weight, norm.bias
    if weight is None:
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        weight, bias = input.new_ones(norm.num_features, dtype=wide), input.new_zeros(norm.num_features, dtype=wide)
    name = choose_implementation(input) if norm.implementation == "auto" else norm.implementation
    return _IMPLEMENTATIONS[name](input, weight, bias, groups, norm.eps)


def choose_implementation(input: Tensor) -> Implementation:
    """Depends on the device, dtype and memory format of `input`, and on whether it is being compiled."""
    if torch.compiler.is_compiling():
        return "compiled"
    # The kernels accumulate in float32 and read dense [rows, channels].
    dense = input.dim() == 2 and input.is_contiguous()
    dense = dense or (input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last))
    return "triton" if input.is_cuda and input.dtype != torch.float64 and dense and _has_triton() else "native"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


class _Compiled(torch.autograd.Function):
    """The explicit backward pass takes two reductions and one pass, a third less than autograd's."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        grouped = x.unflatten(0, (groups, -1)).to(wide)  # [groups, rows, channels, ...]
        var, mean = torch.var_mean(grouped, _reduced(grouped), correction=0, keepdim=True)
        invstd = (var + eps).rsqrt()
        scale = invstd * _per_channel(weight.to(wide), grouped)
        output = (grouped - mean) * scale + _per_channel(bias.to(wide), grouped)
        ctx.save_for_backward(x, weight, mean, invstd)
        # The clone costs nothing when compiled, and lets an in-place ReLU follow.
        return output.to(x.dtype).flatten(0, 1).clone()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Gradients:
        x, weight, mean, invstd = ctx.saved_tensors
        wide = mean.dtype
        dy = grad.unflatten(0, (len(mean), -1)).to(wide)
        normalized = (x.unflatten(0, (len(mean), -1)).to(wide) - mean) * invstd
        count = x.numel() // mean.numel()
        total = dy.sum(_reduced(dy), keepdim=True)
        product = (dy * normalized).sum(_reduced(dy), keepdim=True)
        dx = (dy - total / count - normalized * (product / count)) * (invstd * _per_channel(weight.to(wide), dy))
        dweight, dbias = product.flatten(1).sum(0).to(weight.dtype), total.flatten(1).sum(0).to(weight.dtype)
        return dx.to(x.dtype).flatten(0, 1), dweight, dbias, None, None


def _reduced(grouped: Tensor) -> list[int]:
    return [1, *range(3, grouped.dim())]


def _per_channel(values: Tensor, grouped: Tensor) -> Tensor:
    return values.view(-1, *[1] * (grouped.dim() - 3))


class _Native(torch.autograd.Function):
    """One call per group, forward and backward; the forward pass writes into one output without concatenation.

    On CPUs the call overhead of a ResNet's small layers matches their computation, so the cheapest calls are used.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        output = torch.empty_like(x)  # same strides
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        statistics = x.new_empty((2, groups, x.shape[1]), dtype=wide)  # mean and 1 / standard deviation
        for rows, *out in zip(x.chunk(groups), output.chunk(groups), *map(torch.unbind, statistics), strict=True):
            torch.native_batch_norm(rows, weight, bias, None, None, True, 0.0, eps, out=out)
        ctx.save_for_backward(x, weight, statistics)
        ctx.eps = eps
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Gradients:
        x, weight, statistics = ctx.saved_tensors
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        groups = statistics.shape[1]
        parts = zip(grad.chunk(groups), x.chunk(groups), *map(torch.unbind, statistics), strict=True)
        gradients = [
            _native_backward(dy, rows, weight, None, None, mean, invstd, True, ctx.eps, (True, True, True))
            for dy, rows, mean, invstd in parts
        ]
        dx, dweight, dbias = zip(*gradients, strict=True)
        return torch.cat(dx), torch.stack(dweight).sum(0), torch.stack(dbias).sum(0), None, None


_native_backward = torch.ops.aten.native_batch_norm_backward.default


def _triton(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    from resnet_cifar.models.ghost_batchnorm_triton import ghost_batch_norm_triton

    return ghost_batch_norm_triton(x, weight, bias, groups, eps)


_IMPLEMENTATIONS = {"compiled": _Compiled.apply, "triton": _triton, "native": _Native.apply}
