"""A model with its preprocessing as one graph: uint8 images of any size -> logits, for torch.export and ONNX."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from resnet_cifar.data.resized_crop import cubic
from resnet_cifar.data.sources.image_io import BORDER
from resnet_cifar.data.transforms import resize_weights
from resnet_cifar.evaluation.loaded_model import LoadedModel

_LONGEST = 64  # height : width, as in `image_io.cover`
_UNIT = 2.0**22  # of Pillow's fixed-point weights


class Deployed(nn.Module):
    """Decoded images, uint8 [n, height, width, 3] -> (logits, probabilities), float32 [n, classes], on the CPU.

    Images are prepared as in prediction and evaluation: resized to cover the stored size, which leaves those of that
    size as they are, and cropped (or to fit it, and padded); then resized to the network's input and normalized. The
    probabilities are those of logits / temperature. In float32, whatever the model was trained in;
    `model.preprocess.decoding.size` is known.
    """

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        data, self.stored_size = model.preprocess.data, model.preprocess.decoding.size
        self.prepare = fit if model.preprocess.decoding.mode == "pad" else cover
        # Contiguous: channels_last makes torch decompose pooling into strided views, which ONNX has to gather.
        self.model = copy.deepcopy(model.plain).to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()
        size, antialias = data.image_size, max(self.stored_size) > data.image_size
        self.is_resized, self.overshoots = self.stored_size != (size, size), data.interpolation == "bicubic"
        down, across = (resize_weights(side, size, data.interpolation, antialias) for side in self.stored_size)
        mean, std = (getattr(model.preprocess, name).cpu().double()[:, None, None] for name in ("mean", "std"))
        constants = {"down": down, "across": across.T, "scale": 1 / (255 * std), "shift": -mean / std}
        for name, values in constants.items():
            self.register_buffer(name, values.float().contiguous())
        self.temperature = model.temperature or 1.0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        pixels = self.prepare(images.permute(0, 3, 1, 2), *self.stored_size).float()
        if self.is_resized:
            pixels = self.down @ (pixels @ self.across)
            pixels = pixels.clamp(0, 255) if self.overshoots else pixels
        logits = self.model(pixels * self.scale + self.shift)
        return logits, (logits / self.temperature).softmax(1)


def cover(images: Tensor, height: int, width: int) -> Tensor:
    """`image_io.cover` of a batch: uint8 [n, 3, h, w] -> whole numbers in 0..255, float64 [n, 3, height, width].

    The pixels are Pillow's, which resizes across, then down, with weights of 22 binary digits, and rounds after each:
    in float64 such sums are exact. Sizes are tensors, so that a graph that is exported holds for images of any size.
    """
    tall, wide = (torch.scalar_tensor(side, dtype=torch.float64) for side in images.shape[2:])
    used_tall, used_wide = torch.minimum(tall, _LONGEST * wide), torch.minimum(wide, _LONGEST * tall)
    new_tall = torch.floor(width * used_tall / used_wide).clamp(min=height)
    new_wide = torch.floor(height * used_wide / used_tall).clamp(min=width)
    across = _weights(images.shape[3], wide, used_wide, new_wide, width, torch.round((new_wide - width) / 2))
    down = _weights(images.shape[2], tall, used_tall, new_tall, height, torch.round((new_tall - height) / 2))
    return _rounded(down @ _rounded(images.double() @ across.T))


def fit(images: Tensor, height: int, width: int) -> Tensor:
    """`image_io.fit` of a batch, on the color BORDER: see `cover`. Strips of over 100 : 1 may differ by a level."""
    tall, wide = (torch.scalar_tensor(side, dtype=torch.float64) for side in images.shape[2:])
    ratio = torch.maximum(tall / height, wide / width)
    new_tall, new_wide = (torch.round(side / ratio).clamp(min=1) for side in (tall, wide))
    top, left = torch.floor((height - new_tall) / 2), torch.floor((width - new_wide) / 2)
    across = _weights(images.shape[3], wide, wide, new_wide, width, -left)
    down = _weights(images.shape[2], tall, tall, new_tall, height, -top)
    resized = _rounded(down @ _rounded(images.double() @ across.T))
    border = torch.tensor(BORDER, dtype=torch.float64)[:, None, None]
    return torch.where(_inside(height, top, new_tall)[:, None] & _inside(width, left, new_wide), resized, border)


def _inside(size: int, start: Tensor, length: Tensor) -> Tensor:
    """bool [size]: True for `length` pixels from `start`."""
    pixel = torch.arange(size, dtype=torch.float64)
    return (pixel >= start) & (pixel < start + length)


def _rounded(sums: Tensor) -> Tensor:
    return torch.floor(sums / _UNIT + 0.5).clamp(0, 255)


def _weights(places: int, side: Tensor, used: Tensor, new: Tensor, size: int, start: Tensor) -> Tensor:
    """Pillow's bicubic weights, whole numbers [size, places], of `size` pixels from `start` of `used` pixels resized to
    `new`; these are the center of `side`, of which there are `places`. Beyond the `new` pixels they are 0."""
    scale = used / new
    position = torch.arange(places, dtype=torch.float64) - torch.round((side - used) / 2)
    center = (torch.arange(size, dtype=torch.float64) + start + 0.5) * scale
    weights = cubic((position - center[:, None] + 0.5) / scale.clamp(min=1)) * ((position >= 0) & (position < used))
    weights = weights / weights.sum(1, keepdim=True) * _UNIT
    weights = torch.where(_inside(size, -start, new)[:, None], weights, 0.0)
    return torch.trunc(weights + 0.5 * weights.sign())
