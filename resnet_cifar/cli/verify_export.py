"""The eval command with --verify-export: whether the exported model, loaded by timm alone, gives the run's logits."""

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
from resnet_cifar.cli.scoring import EvalCommand
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data import image_data
from resnet_cifar.data.image_data import ImageData
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import loaded_model
from resnet_cifar.evaluation import target as targets
from resnet_cifar.evaluation.predict import predict
from resnet_cifar.evaluation.target import Target
from resnet_cifar.models.export import needs_package
from resnet_cifar.reporting import model_card
from resnet_cifar.reporting.console import Screen

DIFFERENT = 4  # the exit code where the exported model gives other logits
# Shares of the largest logit by which logits may differ: another order of sums, and the rounding of what the run's own
# scores were computed in (convolutions of a GPU round float32 to TF32's 10 bits, as few as fp16 has; bf16 has 7).
_ROUNDING = 1e-4
_SCORED_IN = {"fp64": _ROUNDING, "no": _ROUNDING, "fp16": 0.02, "bf16": 0.1}
_ON_A_GPU = 0.02

# Follows the card's lines that load the model: images [n, h, w, 3] of one .npy file, logits [n, classes] into another.
_SCORING = """
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
    """Logits [n, classes] of the exported model beside others of the same images, and the `tolerance` between them."""

    exported: np.ndarray
    others: np.ndarray
    tolerance: float

    @property
    def largest(self) -> float:
        """The largest difference between two logits; NaN where one is not a number."""
        return float(np.abs(self.exported - self.others).max())

    @property
    def other_classes(self) -> int:
        """Images of which the two predict different classes."""
        return int((self.exported.argmax(1) != self.others.argmax(1)).sum())

    @property
    def holds(self) -> bool:
        """Whether the difference is rounding; classes then differ only where two logits are that close."""
        return self.largest <= self.tolerance

    def sentence(self) -> str:
        """What a person reads of it."""
        count, other = len(self.exported), self.other_classes
        classes = f"{other} of {count} predicted classes differ" if other else f"all {count} predicted classes agree"
        return f"largest difference {self.largest:.2g} (rounding: up to {self.tolerance:.2g}), {classes}"


def verify_export(command: EvalCommand, recipe: Recipe) -> None:
    """Compares logits of `command.verify_export` test images, spread over the split. Raises UserError, or SystemExit (4).

    The exported model is loaded by timm in a process of its own, as its card says, and fed by the card's transform. It
    is held against the run's chosen checkpoint in the run's own pipeline, both in float32 on the CPU, and against the
    logits that the run has stored, which may have been computed elsewhere and in another precision.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "--verify-export starts a process of its own: run it by itself, python eval.py RUN --verify-export"
        )
    os.environ["ACCELERATE_USE_CPU"] = "true"  # a GPU rounds otherwise
    context = DistributedContext("no")
    target = targets.find_target(Path(command.target))
    screen = Screen(shown=True)
    own = dataclasses.replace(recipe, precision=context.precision)
    model = loaded_model.load_model(target, own, context)
    data = image_data.load(image_data.prepare(recipe.data), own, context.device)
    stored, scored_in = _stored(target, model.name, data)
    rows = np.linspace(0, len(data.test) - 1, min(command.verify_export, len(data.test))).round().astype(np.int64)
    exported = _exported(target, data.test, rows)
    chosen = ImageDataset(data.test.gather(rows), data.test.labels[rows], data.test.indices[rows])
    again = predict(context, model.model, chosen, model.preprocess).logits.numpy()
    largest = float(np.abs(again).max())
    comparisons = {
        f"{model.name}, scored here in float32": Comparison(exported, again, _ROUNDING * largest),
        f"predictions-test.parquet, {scored_in[0]}": Comparison(exported, stored[rows], scored_in[1] * largest),
    }
    context.close()
    title = f"{target.path / 'model'}, loaded by timm in a process of its own, on {len(rows)} test images, and"
    screen.table(title, [(name, comparison.sentence()) for name, comparison in comparisons.items()])
    _conclude(target, comparisons)


def _conclude(target: Target, comparisons: dict[str, Comparison]) -> None:
    for name, comparison in comparisons.items():
        if not comparison.holds:
            sentence = f"{target.path / 'model'} does not give the logits of {name}: {comparison.sentence()}"
            print(f"error: {sentence}", file=sys.stderr, flush=True)
            raise SystemExit(DIFFERENT)


def _stored(target: Target, weights: str, data: ImageData) -> tuple[np.ndarray, tuple[str, float]]:
    """The logits that the run has stored, and (in words, as a tolerance) in what they were computed. Raises UserError."""
    scores = read_json(target.path / "eval-test.json") or {}
    result = RunDir(target.path).result() or {}
    of_this = scores.get("checkpoint") == result.get("checkpoint") == weights
    if not of_this or scores.get("fingerprint") != data.fingerprint:
        raise UserError(
            f"--verify-export: {target.path}/eval-test.json is not of {weights} and the images that are there now: "
            "bring the run's own files back"
        )
    table = pyarrow.parquet.read_table(target.path / "predictions-test.parquet", columns=["index", "logits"])
    if not np.array_equal(table["index"].to_numpy(), data.test.indices):
        raise UserError(
            f"--verify-export: {target.path}/predictions-test.parquet is of other images: bring the run's own file back"
        )
    precision = scores["precision"]
    is_on_a_gpu = bool((read_json(target.path / "environment.json") or {}).get("gpus"))
    tolerance = max(_SCORED_IN[precision], _ON_A_GPU if is_on_a_gpu and precision == "no" else 0)
    where = f"precision {precision} on {'a GPU' if is_on_a_gpu else 'a CPU'}"
    return np.array(table["logits"].to_pylist()), (where, tolerance)


def _exported(target: Target, images: ImageDataset, rows: np.ndarray) -> np.ndarray:
    """Logits of the exported model, from a new process. Raises UserError where timm cannot load it."""
    model = target.path / "model"
    package_needed = needs_package(targets.read_export_config(model).architecture)
    package = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as folder:
        pixels, logits = Path(folder) / "images.npy", Path(folder) / "logits.npy"
        np.save(pixels, images.gather(rows).numpy())
        script = model_card.loading_code(str(model.resolve()), package_needed) + _SCORING
        command: list[Any] = [sys.executable, "-c", script, pixels, logits]
        done = subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode:
            reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(
                f"timm cannot load {model} ({reason}): bring it back, or train again with --restart"
            ) from None
        return np.load(logits)
