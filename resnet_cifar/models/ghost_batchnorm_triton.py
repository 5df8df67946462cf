"""Triton kernels of ghost BatchNorm: two forward and two backward, for any number of groups.

x is dense [groups * rows, channels] in memory, as channels_last images are: `rows` is the number of positions in one
group, images times height times width. A program reads tiles of BLOCK_ROWS x BLOCK_CHANNELS. First, every split of a
group's rows writes partial sums; then every chunk of rows adds these up and writes its part of the result, without
synchronization in between. Sums are float32 in a fixed order, so results are reproducible bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_PROGRAMS = 8 * 132  # of a launch: about eight for each multiprocessor of an H100
_MAX_SPLITS = 32
_TILE = 4096  # elements


@triton.jit
def sums_kernel(
    x, sums, squares, rows, channels, rows_per_split, splits, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    """Sums of x - shift and of its square over a split of a group; the shift, its first row, saves digits."""
    group, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    column = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = column < channels
    base = x + group.to(tl.int64) * rows * channels
    shift = tl.load(base + column, mask=is_channel, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    square = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    start = split * rows_per_split
    end = tl.minimum(start + rows_per_split, rows)
    for first in range(start, end, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        mask = (row < end)[:, None] & is_channel[None, :]
        value = tl.load(base + row[:, None].to(tl.int64) * channels + column[None, :], mask=mask, other=0.0)
        value = tl.where(mask, value.to(tl.float32) - shift[None, :], 0.0)
        total += value
        square += value * value
    place = (split * tl.num_programs(0) // splits + group) * channels + column
    tl.store(sums + place, tl.sum(total, 0), mask=is_channel)
    tl.store(squares + place, tl.sum(square, 0), mask=is_channel)


@triton.jit
def normalize_kernel(
    x, out, weight, bias, sums, squares, mean, invstd, rows, channels, groups, splits, rows_per_chunk, chunks, eps,
    MAX_SPLITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Statistics from the partial sums, and the normalized rows of one chunk of one group."""
    group, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    column = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = column < channels
    base = group.to(tl.int64) * rows * channels
    shift = tl.load(x + base + column, mask=is_channel, other=0.0).to(tl.float32)
    split = tl.arange(0, MAX_SPLITS)  # all at once, to wait for memory only once
    place = (split[:, None] * groups + group) * channels + column[None, :]
    is_split = (split < splits)[:, None] & is_channel[None, :]
    total = tl.sum(tl.load(sums + place, mask=is_split, other=0.0), 0) / rows
    square = tl.sum(tl.load(squares + place, mask=is_split, other=0.0), 0) / rows
    variance = tl.maximum(square - total * total, 0.0)
    center = shift + total
    inverse = 1.0 / tl.sqrt(variance + eps)
    if chunk == 0:
        tl.store(mean + group * channels + column, center, mask=is_channel)
        tl.store(invstd + group * channels + column, inverse, mask=is_channel)
    scale = inverse * tl.load(weight + column, mask=is_channel, other=0.0).to(tl.float32)
    offset = tl.load(bias + column, mask=is_channel, other=0.0).to(tl.float32) - center * scale
    start = chunk * rows_per_chunk
    end = tl.minimum(start + rows_per_chunk, rows)
    for first in range(start, end, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        mask = (row < end)[:, None] & is_channel[None, :]
        at = base + row[:, None].to(tl.int64) * channels + column[None, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * scale[None, :] + offset[None, :]
        tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def grad_sums_kernel(
    grad, x, mean, invstd, sums, products, rows, channels, rows_per_split, splits,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient, and of its products with the normalized input, over one split of one group."""
    group, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    column = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = column < channels
    base = group.to(tl.int64) * rows * channels
    center = tl.load(mean + group * channels + column, mask=is_channel, other=0.0)
    inverse = tl.load(invstd + group * channels + column, mask=is_channel, other=0.0)
    total = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    product = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    start = split * rows_per_split
    end = tl.minimum(start + rows_per_split, rows)
    for first in range(start, end, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        mask = (row < end)[:, None] & is_channel[None, :]
        at = base + row[:, None].to(tl.int64) * channels + column[None, :]
        dy = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        value = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - center[None, :]) * inverse[None, :]
        total += dy
        product += dy * value
    place = (split * tl.num_programs(0) // splits + group) * channels + column
    tl.store(sums + place, tl.sum(total, 0), mask=is_channel)
    tl.store(products + place, tl.sum(product, 0), mask=is_channel)


@triton.jit
def grad_input_kernel(
    grad, x, weight, mean, invstd, sums, products, dx, dweight, dbias, rows, channels, groups, splits, rows_per_chunk,
    chunks, MAX_SPLITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of one chunk's rows, and from its first chunk each group's gradient of weight and bias."""
    group, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    column = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = column < channels
    base = group.to(tl.int64) * rows * channels
    center = tl.load(mean + group * channels + column, mask=is_channel, other=0.0)
    inverse = tl.load(invstd + group * channels + column, mask=is_channel, other=0.0)
    scale = inverse * tl.load(weight + column, mask=is_channel, other=0.0).to(tl.float32)
    split = tl.arange(0, MAX_SPLITS)
    place = (split[:, None] * groups + group) * channels + column[None, :]
    is_split = (split < splits)[:, None] & is_channel[None, :]
    total = tl.sum(tl.load(sums + place, mask=is_split, other=0.0), 0)
    product = tl.sum(tl.load(products + place, mask=is_split, other=0.0), 0)
    if chunk == 0:
        tl.store(dweight + group * channels + column, product, mask=is_channel)
        tl.store(dbias + group * channels + column, total, mask=is_channel)
    total, product = total / rows, product / rows
    start = chunk * rows_per_chunk
    end = tl.minimum(start + rows_per_chunk, rows)
    for first in range(start, end, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        mask = (row < end)[:, None] & is_channel[None, :]
        at = base + row[:, None].to(tl.int64) * channels + column[None, :]
        dy = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        value = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - center[None, :]) * inverse[None, :]
        found = (dy - total[None, :] - value * product[None, :]) * scale[None, :]
        tl.store(dx + at, found.to(dx.dtype.element_ty), mask=mask)


class Tiling(NamedTuple):
    """How x is divided among programs; `across`: the number of programs along the channels."""

    rows: int
    channels: int
    block_rows: int
    block_channels: int
    across: int
    splits: int
    rows_per_split: int
    chunks: int
    rows_per_chunk: int

    @classmethod
    def of(cls, x: Tensor, groups: int) -> Tiling:
        """Wide enough tiles for whole memory transactions, and enough programs for every multiprocessor."""
        channels = x.shape[1]
        rows = x.numel() // (channels * groups)
        block_channels = min(triton.next_power_of_2(channels), 64)  # 128 bytes of bfloat16 in a row
        block_rows = max(1, min(_TILE // block_channels, triton.next_power_of_2(rows)))
        across = triton.cdiv(channels, block_channels)
        splits = max(1, min(_PROGRAMS // (groups * across), triton.cdiv(rows, 2 * block_rows), _MAX_SPLITS))
        chunks = max(1, min(2 * _PROGRAMS // (groups * across), triton.cdiv(rows, block_rows)))
        rows_per_split, rows_per_chunk = (
            triton.cdiv(triton.cdiv(rows, parts), block_rows) * block_rows for parts in (splits, chunks)
        )
        splits, chunks = triton.cdiv(rows, rows_per_split), triton.cdiv(rows, rows_per_chunk)
        return cls(rows, channels, block_rows, block_channels, across, splits, rows_per_split, chunks, rows_per_chunk)


class _GhostBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        t = Tiling.of(x, groups)
        partial = x.new_empty((2, t.splits, groups, t.channels), dtype=torch.float32)
        statistics = x.new_empty((2, groups, t.channels), dtype=torch.float32)
        output = torch.empty_like(x)
        block = {"BLOCK_ROWS": t.block_rows, "BLOCK_CHANNELS": t.block_channels}
        sums_kernel[(groups * t.splits, t.across)](
            x, partial[0], partial[1], t.rows, t.channels, t.rows_per_split, t.splits, **block
        )
        normalize_kernel[(groups * t.chunks, t.across)](
            x, output, weight, bias, partial[0], partial[1], statistics[0], statistics[1], t.rows, t.channels, groups,
            t.splits, t.rows_per_chunk, t.chunks, eps, MAX_SPLITS=triton.next_power_of_2(t.splits), **block,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, statistics)
        ctx.tiling = t
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, statistics = ctx.saved_tensors
        t, groups = ctx.tiling, statistics.shape[1]
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        partial = x.new_empty((2, t.splits, groups, t.channels), dtype=torch.float32)
        of_groups = x.new_empty((2, groups, t.channels), dtype=torch.float32)
        dx = torch.empty_like(x)
        block = {"BLOCK_ROWS": t.block_rows, "BLOCK_CHANNELS": t.block_channels}
        grad_sums_kernel[(groups * t.splits, t.across)](
            grad, x, statistics[0], statistics[1], partial[0], partial[1], t.rows, t.channels, t.rows_per_split,
            t.splits, **block,
        )  # fmt: skip
        grad_input_kernel[(groups * t.chunks, t.across)](
            grad, x, weight, statistics[0], statistics[1], partial[0], partial[1], dx, of_groups[0], of_groups[1],
            t.rows, t.channels, groups, t.splits, t.rows_per_chunk, t.chunks,
            MAX_SPLITS=triton.next_power_of_2(t.splits), **block,
        )  # fmt: skip
        dweight, dbias = of_groups.sum(1).to(weight.dtype)
        return dx, dweight, dbias, None, None


def ghost_batch_norm_triton(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Normalizes `groups` equal groups of consecutive rows of x by their own statistics (float32).

    x: [n, channels] contiguous, or [n, channels, h, w] in channels_last; float32, bfloat16 or float16, on a CUDA device
    (or anywhere in Triton's interpreter). The output has x's dtype and strides.
    """
    return _GhostBatchNorm.apply(x, weight, bias, groups, eps)
