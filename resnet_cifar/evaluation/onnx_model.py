"""A model of `resnet-cifar export` run by onnxruntime, with the methods of `LoadedModel`. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from resnet_cifar.config.errors import UserError
from resnet_cifar.data.sources import image_io
from resnet_cifar.data.sources.image_io import NO_LIMITS, Decoding, Limits


class OnnxModel:
    """Classifies on the CPU, on OMP_NUM_THREADS threads, or one per core.

    `name`: of the weights that were exported. `fingerprint`: of the training images. `temperature`: fitted, or None.
    Raises UserError if the file is damaged or not of `resnet-cifar export`.
    """

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        threads = os.environ.get("OMP_NUM_THREADS", "")
        options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            facts = self._session.get_modelmeta().custom_metadata_map
            self.classes = tuple(json.loads(facts["class_names"]))
            self.temperature = float(facts["temperature"]) if facts["temperature"] else None
            self.architecture, self.name = facts["architecture"], facts["weights"]
            self.fingerprint = facts["fingerprint"]
            size, value_range = (json.loads(facts[name]) for name in ("stored_size", "value_range"))
            self._decoding = Decoding(tuple(size), value_range and tuple(value_range), facts["decode_mode"])
        except Exception as error:  # onnxruntime's errors have no base of their own
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"{file} is not a model of resnet-cifar export, or of another version ({reason}): export it again"
            ) from None
        (self._input,) = [each.name for each in self._session.get_inputs()]

    def read(self, image: Any, limits: Limits = NO_LIMITS) -> np.ndarray:
        """An image (see `to_rgb`) as uint8 [h, w, 3], as in the model's training. Raises UndecodableImage."""
        return image_io.to_rgb(image, self._decoding, limits=limits)

    def logits(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Of images as `read` gives them, in one batch: float64 [n, classes]."""
        (logits,) = self._session.run(["logits"], {self._input: np.stack(images)})
        return logits.astype(np.float64)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """softmax(logits / temperature), if the model has one."""
        return softmax(logits / (self.temperature or 1.0), axis=1)
