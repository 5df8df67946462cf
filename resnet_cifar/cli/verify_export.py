"""`resnet-cifar evaluate RUN --verify-export`: compares the exported model's logits with the run's."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from resnet_cifar.atomic_io import read_json
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data import prepared_data
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import loaded_model, model_location
from resnet_cifar.evaluation.model_location import Target
from resnet_cifar.evaluation.predict import predict
from resnet_cifar.models.export import needs_package
from resnet_cifar.reporting import model_card
from resnet_cifar.reporting.console import Screen

DIFFERENT = 4  # the exit code if the exported model gives different logits
# Tolerances relative to the largest logit: another order of sums, and the rounding of the precision that the run's own
# evaluation was computed in (GPU convolutions round float32 to TF32's 10 bits, as few as fp16 has; bf16 has 7).
_ROUNDING = 1e-4
_TOLERANCES = {"fp64": _ROUNDING, "no": _ROUNDING, "fp16": 0.02, "bf16": 0.1}
_GPU_TOLERANCE = 0.02

# Appended to the model card's lines that load the model: reads images [n, h, w, 3], writes logits [n, classes].
_INFERENCE = """
import sys

images = np.load(sys.argv[1])
logits = []
with torch.inference_mode():
    for start in range(0, len(images), 32):
        inputs = [to_input(Image.fromarray(image)) for image in images[start : start + 32]]
        logits.append(model(torch.stack(inputs)).numpy())
np.save(sys.argv[2], np.concatenate(logits))
"""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Logits [n, classes] of the exported model and others of the same images, and the `tolerance` between them."""

    exported: np.ndarray
    others: np.ndarray
    tolerance: float

    @property
    def largest(self) -> float:
        """The largest difference between two logits; NaN if one is not a number."""
        return float(np.abs(self.exported - self.others).max())

    @property
    def other_classes(self) -> int:
        """Images for which the predicted classes differ."""
        return int((self.exported.argmax(1) != self.others.argmax(1)).sum())

    @property
    def holds(self) -> bool:
        """Whether the difference is rounding; classes then differ only if two logits are that close."""
        return self.largest <= self.tolerance

    def sentence(self) -> str:
        """A summary for the table."""
        count, other = len(self.exported), self.other_classes
        classes = f"{other} of {count} predicted classes differ" if other else f"all {count} predicted classes agree"
        return f"largest difference {self.largest:.2g} (rounding: up to {self.tolerance:.2g}), {classes}"


def verify_export(target: Target, recipe: Recipe, images: int) -> None:
    """Compares logits of `images` test images, spread over the split. Raises UserError, or SystemExit (4).

    The exported model is loaded by timm in a process of its own, as described in its card, with the card's transform.
    Its logits are compared with those of the run's best checkpoint in the run's pipeline, in float32 on the CPU, and
    with the logits that the run has stored, which may have been computed elsewhere and in another precision.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "--verify-export starts a process of its own: run it without a launcher, python eval.py RUN --verify-export"
        )
    os.environ["ACCELERATE_USE_CPU"] = "true"  # a GPU rounds differently
    context = DistributedContext("no")
    screen = Screen(shown=True)
    recipe = dataclasses.replace(recipe, precision=context.precision)
    model = loaded_model.load_model(target, recipe, context)
    data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, context.device)
    stored, precision, tolerance = _stored_logits(target, model.name, data)
    rows = np.linspace(0, len(data.test) - 1, min(images, len(data.test))).round().astype(np.int64)
    exported = _exported_logits(target, data.test, rows)
    subset = ImageDataset(data.test.gather(rows), data.test.labels[rows], data.test.indices[rows])
    recomputed = predict(context, model.model, subset, model.preprocess).logits.numpy()
    largest = float(np.abs(recomputed).max())
    comparisons = {
        f"{model.name}, evaluated here in float32": Comparison(exported, recomputed, _ROUNDING * largest),
        f"predictions-test.parquet, {precision}": Comparison(exported, stored[rows], tolerance * largest),
    }
    context.close()
    title = f"{target.path / 'model'}, loaded by timm in a process of its own, on {len(rows)} test images, and"
    screen.table(title, [(name, comparison.sentence()) for name, comparison in comparisons.items()])
    for name, comparison in comparisons.items():
        if not comparison.holds:
            sentence = f"{target.path / 'model'} does not give the logits of {name}: {comparison.sentence()}"
            print(f"error: {sentence}", file=sys.stderr, flush=True)
            raise SystemExit(DIFFERENT)


def _stored_logits(target: Target, weights: str, data: ImageData) -> tuple[np.ndarray, str, float]:
    """The run's stored logits, their precision in words, and its relative tolerance. Raises UserError."""
    evaluation = read_json(target.path / "eval-test.json") or {}
    result = RunDir(target.path).result() or {}
    is_current = evaluation.get("checkpoint") == result.get("checkpoint") == weights
    if not is_current or evaluation.get("fingerprint") != data.fingerprint:
        raise UserError(
            f"--verify-export: {target.path}/eval-test.json does not belong to {weights} and the present images: "
            "restore the run's own files"
        )
    table = pyarrow.parquet.read_table(target.path / "predictions-test.parquet", columns=["index", "logits"])
    if not np.array_equal(table["index"].to_numpy(), data.test.indices):
        raise UserError(
            f"--verify-export: {target.path}/predictions-test.parquet is of other images: restore the run's own file"
        )
    precision = evaluation["precision"]
    on_gpu = bool((read_json(target.path / "environment.json") or {}).get("gpus"))
    tolerance = max(_TOLERANCES[precision], _GPU_TOLERANCE if on_gpu and precision == "no" else 0)
    where = f"precision {precision} on {'a GPU' if on_gpu else 'a CPU'}"
    return np.array(table["logits"].to_pylist()), where, tolerance


def _exported_logits(target: Target, images: ImageDataset, rows: np.ndarray) -> np.ndarray:
    """Logits of the exported model, from a new process. Raises UserError if timm cannot load it."""
    model = target.path / "model"
    package_needed = needs_package(model_location.read_export_config(model).architecture)
    package = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as folder:
        pixels, logits = Path(folder) / "images.npy", Path(folder) / "logits.npy"
        np.save(pixels, images.gather(rows).numpy())
        script = model_card.loading_code(str(model.resolve()), package_needed) + _INFERENCE
        command: list[Any] = [sys.executable, "-c", script, pixels, logits]
        done = subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode:
            reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["without a message"])[-1]
            raise UserError(f"timm cannot load {model} ({reason}): restore it, or train again with --restart") from None
        return np.load(logits)
