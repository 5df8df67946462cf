"""Floating-point operations of a training step, counted by torch, and the peak throughput of devices."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from resnet_cifar.config.schema import Recipe
from resnet_cifar.models.factory import create_model
from resnet_cifar.models.mlp_head import head_module

# Dense TFLOP/s by the first words of the device's name, in tensor cores where the format has them: NVIDIA's data sheets
# of each product (nvidia.com/en-us/data-center/h200, /h100, /grace-hopper-superchip, /a100, /a10, /l4, /l40s, /v100,
# /tesla-t4), where figures "with sparsity" are halved. float32 without TF32 runs outside of the tensor cores.
_PEAKS: dict[str, dict[str, float]] = {
    "NVIDIA H200 NVL": {"half": 835.5, "tf32": 417.7, "float32": 60},
    "NVIDIA H200": {"half": 989.4, "tf32": 494.7, "float32": 67},
    "NVIDIA GH200": {"half": 989.4, "tf32": 494.7, "float32": 67},
    "NVIDIA H100 PCIe": {"half": 756, "tf32": 378, "float32": 51},
    "NVIDIA H100 NVL": {"half": 835.5, "tf32": 417.7, "float32": 60},
    "NVIDIA H100 80GB HBM3": {"half": 989.4, "tf32": 494.7, "float32": 67},
    "NVIDIA A100": {"half": 312, "tf32": 156, "float32": 19.5},
    "NVIDIA A10": {"half": 125, "tf32": 62.5, "float32": 31.2},
    "NVIDIA L40S": {"half": 362, "tf32": 183, "float32": 91.6},
    "NVIDIA L4": {"half": 121, "tf32": 60, "float32": 30.3},
    "Tesla V100-SXM2": {"half": 125, "float32": 15.7},
    "Tesla T4": {"half": 65, "float32": 8.1},
}


def peak(device: str, precision: str, tf32: bool) -> float | None:
    """FLOP/s of the device of that name at its best; None where it is unknown, a slice of a device, or a CPU."""
    kind = "half" if precision in ("bf16", "fp16") else "tf32" if tf32 else "float32"
    if "MIG" in device or precision == "fp64":
        return None
    for name, peaks in _PEAKS.items():
        if re.match(rf"{re.escape(name)}\b", device):
            # A device without TF32 computes float32 whatever the setting.
            best = peaks.get(kind, peaks["float32"])
            return best * 1e12
    return None


def flops_an_image(recipe: Recipe, classes: int, image_size: int = 0, trains: str = "all") -> float:
    """FLOPs of forward and backward for one image, by torch's count of convolutions and matrix products.

    At `image_size` pixels (0: the recipe's), where `trains`, `all` or the `head`, gets gradients. Nothing is computed:
    tensors on the meta device have shapes only.
    """
    images, size = 2, image_size or recipe.data.image_size
    with torch.device("meta"):
        model = create_model(recipe, classes, pretrained=False)
    if trains == "head":
        model.requires_grad_(False)
        head_module(model).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.zeros(images, 3, size, size, device="meta"))
        F.cross_entropy(logits, torch.zeros(images, classes, device="meta")).backward()
    return counter.get_total_flops() / images
