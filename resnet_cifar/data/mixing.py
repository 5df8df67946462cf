"""Mixup and CutMix: rows 2j and 2j+1 of a batch are mixed, images and labels."""

import torch
from torch import Tensor

from resnet_cifar.data.transforms import inside_boxes


def mix(inputs: Tensor, targets: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Row 2j gets a share of row 2j+1 and vice versa; labels are mixed by the same shares as pixels.

    inputs [n, 3, h, w], n even, channels_last; targets [n, classes]; keep [n / 2, 1, h or 1, w or 1]: the share each
    pixel keeps (see `mixup_share`, `cutmix_share`). Shares of 0 and 1 copy a pixel exactly.
    """
    pairs, share = inputs.permute(0, 2, 3, 1).unflatten(0, (-1, 2)), keep.to(inputs.dtype).permute(0, 2, 3, 1)
    first, second = pairs.unbind(1)
    mixed = torch.empty_like(pairs, memory_format=torch.contiguous_format)
    # One kernel per half, which writes its result in place: no other tensor of the images' size is allocated.
    torch.lerp(second, first, share, out=mixed[:, 0])
    torch.lerp(first, second, share, out=mixed[:, 1])
    kept = keep.mean(dim=(1, 2, 3)).to(targets.dtype)[:, None, None]
    labels = targets.unflatten(0, (-1, 2))
    return mixed.flatten(0, 1).permute(0, 3, 1, 2), torch.lerp(labels.flip(1), labels, kept).flatten(0, 1)


def mixup_share(lam: Tensor) -> Tensor:
    """Mixup (Zhang et al. 2017): every pixel keeps the share lam. lam [pairs] -> [pairs, 1, 1, 1]."""
    return lam[:, None, None, None]


def cutmix_share(lam: Tensor, u: Tensor, size: int) -> Tensor:
    """CutMix (Yun et al. 2019): a box of area 1 - lam is replaced by the partner's pixels.

    The box is clipped at the border; labels are mixed by the clipped area. lam [pairs], u [pairs, 2] (down, right)
    -> [pairs, 1, size, size] of 0 and 1.
    """
    half = (size * (1 - lam).sqrt()).long() // 2
    side = 2 * half
    top = (u[:, 0] * size).long() - half
    left = (u[:, 1] * size).long() - half
    inside = inside_boxes(top, left, side, side, size, size)
    return (~inside).to(lam.dtype)[:, None]
