"""Runs an exported model on images as a program of its own: MODEL IMAGES RESULTS BATCH THREADS.

Uses onnxruntime and NumPy, or torch for .pt2, and nothing of this project. IMAGES: uint8 [n, h, w, 3] as .npy. RESULTS:
an .npz with `logits` and `seconds` (after a first batch to warm up).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np


def _load(model: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Images -> logits."""
    if model.endswith(".pt2"):
        import torch

        torch.set_num_threads(threads)
        program = torch.export.load(model).module()

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return program(torch.from_numpy(images))[0].numpy()

        return run

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (name,) = [each.name for each in session.get_inputs()]
    return lambda images: session.run(["logits"], {name: images})[0]


def main(model: str, images: str, results: str, batch: str, threads: str) -> None:
    """See the module."""
    run, pixels, size = _load(model, int(threads)), np.load(images, mmap_mode="r"), int(batch)
    run(np.array(pixels[:size]))
    began = time.perf_counter()
    logits = np.concatenate([run(np.array(pixels[start : start + size])) for start in range(0, len(pixels), size)])
    np.savez(results, logits=logits, seconds=time.perf_counter() - began)
    assert "timm" not in sys.modules and "resnet_cifar.models" not in sys.modules, "the file needs its makers"


if __name__ == "__main__":
    main(*sys.argv[1:])
