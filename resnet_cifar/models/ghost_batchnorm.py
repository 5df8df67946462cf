"""Ghost BatchNorm (Hoffer et al. 2017): in training, groups of consecutive rows are normalised by their own statistics.

Groups of a fixed number of rows make a step the same computation on any number of processes and micro-batches. What
computes them follows from the situation, and all forms agree to rounding:

- compiled: a few vectorised operations in one graph, of which the compiler makes as many kernels as of one BatchNorm
- eager, CUDA, channels_last: four Triton kernels a layer, whatever the number of groups (ghost_batchnorm_triton.py)
- otherwise: torch's native BatchNorm for one group after the other, which on CPUs is the fastest
- groups that span processes: torch's SyncBatchNorm

Running statistics are not updated in training: they do not influence it, and `model.estimate_bn_stats` computes them
before every evaluation.
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

Implementation = Literal["auto", "compiled", "triton", "native"]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, None, None]


def apply_ghost_batchnorm(model: nn.Module, rows: int, implementation: Implementation = "auto") -> nn.Module:
    """Replaces every BatchNorm of `model`, in place, by one that normalises groups of `rows` rows in training.

    Names of parameters and buffers stay, and so do the parameters themselves. Returns `model`, or its replacement where
    it is a BatchNorm itself. `implementation` is for benchmarks and tests; "auto" chooses at every call.
    """
    replaced: dict[nn.Module, nn.Module] = {}

    def replacement(module: nn.Module) -> nn.Module:
        if not isinstance(module, _BatchNorm):
            return module
        if module not in replaced:  # a module may stand in several places
            replaced[module] = module if isinstance(module, GhostBatchNorm) else GhostBatchNorm(module)
            replaced[module].ghost_batch_size, replaced[module].implementation = rows, implementation
        return replaced[module]

    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would leave out the second place
            if child is not None and (new := replacement(child)) is not child:
                setattr(parent, name, new)
    return replacement(model)


def sync_batchnorm(model: nn.Module, group: Any, alone: Any) -> nn.Module:
    """Makes every BatchNorm normalise over the rows of all processes in `group` (SyncBatchNorm, on GPUs only).

    `alone`: the process group of this process only, for statistics that are not shared batch by batch
    (`model.estimate_bn_stats`).
    """
    model = convert_sync_batchnorm(model, process_group=group)
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.alone = alone
    return model


class GhostBatchNorm(_BatchNorm):
    """Takes the place of `norm` (a BatchNorm of torch, or timm's BatchNormAct2d) and shares its parameters and buffers.

    Training batches of more than `ghost_batch_size` rows are normalised group by group; smaller ones, and all in eval
    mode, as `norm` would. Input: [rows, channels, ...] in any memory format, which the output keeps.
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
        """Any number of dimensions: it stands for BatchNorm1d and BatchNorm2d."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises, and applies what follows the norm in timm's class."""
        grouped = self.training and len(input) > self.ghost_batch_size
        output = self._normalize_groups(input) if grouped else super().forward(input)
        for child in self.children():
            output = child(output)
        return output

    def _normalize_groups(self, input: Tensor) -> Tensor:
        groups, rest = divmod(len(input), self.ghost_batch_size)
        if rest:  # not in training, whose batches are whole groups
            whole, last = input.split([len(input) - rest, rest])
            return torch.cat([ghost_batch_norm(whole, self, groups), ghost_batch_norm(last, self, 1)])
        return ghost_batch_norm(input, self, groups)


def ghost_batch_norm(input: Tensor, norm: GhostBatchNorm, groups: int) -> Tensor:
    """Normalises `groups` equal runs of consecutive rows of `input` [rows, channels, ...], each by its own statistics.

    Statistics are float32 (float64 for float64); the output has the type and the strides of `input`.
    """
    weight, bias = norm.weight, norm.bias
    if weight is None:
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        weight, bias = input.new_ones(norm.num_features, dtype=wide), input.new_zeros(norm.num_features, dtype=wide)
    form = _FORMS[choose(input) if norm.implementation == "auto" else norm.implementation]
    return form(input, weight, bias, groups, norm.eps)


def choose(input: Tensor) -> Implementation:
    """The implementation for `input` as it is: its device, type and memory format, and whether it is being compiled."""
    if torch.compiler.is_compiling():
        return "compiled"
    # The kernels add in float32, and read [rows, channels] without gaps.
    dense = input.dim() == 2 and input.is_contiguous()
    dense = dense or (input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last))
    return "triton" if input.is_cuda and input.dtype != torch.float64 and dense and _has_triton() else "native"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


class _Compiled(torch.autograd.Function):
    """The backward pass is written out: two reductions and one pass, a third less than autograd makes of it."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        grouped = x.unflatten(0, (groups, -1)).to(wide)  # [groups, rows, channels, ...]
        var, mean = torch.var_mean(grouped, _reduced(grouped), correction=0, keepdim=True)
        invstd = (var + eps).rsqrt()
        scale = invstd * _per_channel(weight.to(wide), grouped)
        output = (grouped - mean) * scale + _per_channel(bias.to(wide), grouped)
        ctx.save_for_backward(x, weight, mean, invstd)
        # The clone is no copy once compiled, and a ReLU may then write into what would else be a view.
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
    """One call for each group, forward and backward, into one output: no list of parts that is concatenated.

    On CPUs the small layers of a ResNet take as long to call as to compute, so the calls are the cheapest there are.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        output = torch.empty_like(x)  # its strides too
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
        found = [
            _native_backward(dy, rows, weight, None, None, mean, invstd, True, ctx.eps, (True, True, True))
            for dy, rows, mean, invstd in parts
        ]
        dx, dweight, dbias = zip(*found, strict=True)
        return torch.cat(dx), torch.stack(dweight).sum(0), torch.stack(dbias).sum(0), None, None


_native_backward = torch.ops.aten.native_batch_norm_backward.default


def _triton(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    from resnet_cifar.models.ghost_batchnorm_triton import ghost_batch_norm_triton

    return ghost_batch_norm_triton(x, weight, bias, groups, eps)


_FORMS = {"compiled": _Compiled.apply, "triton": _triton, "native": _Native.apply}
