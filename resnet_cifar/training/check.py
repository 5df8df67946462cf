"""The eval command with --check: whether the exported model, loaded by timm alone, gives the run's logits."""

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

from resnet_cifar import model as models
from resnet_cifar import target as targets
from resnet_cifar.commands import EvalCommand
from resnet_cifar.data import store
from resnet_cifar.data.resident import ImageSet
from resnet_cifar.data.store import ImageData
from resnet_cifar.recipe import Mistake, Recipe
from resnet_cifar.reporting import model_card
from resnet_cifar.reporting.console import Screen
from resnet_cifar.run_folder import RunFolder, read_json
from resnet_cifar.target import Target
from resnet_cifar.training import trained
from resnet_cifar.training.evaluate import predict
from resnet_cifar.training.world import World

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


def check(command: EvalCommand, recipe: Recipe) -> None:
    """Compares logits of `command.check` test images, spread over the split. Raises Mistake, or SystemExit (4).

    The exported model is loaded by timm in a process of its own, as its card says, and fed by the card's transform. It
    is held against the run's chosen checkpoint in the run's own pipeline, both in float32 on the CPU, and against the
    logits that the run has stored, which may have been computed elsewhere and in another precision.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Mistake("--check starts a process of its own: run it by itself, python eval.py RUN --check")
    os.environ["ACCELERATE_USE_CPU"] = "true"  # a GPU rounds otherwise
    world = World("no")
    target = targets.find(Path(command.target))
    screen = Screen(shown=True)
    own = dataclasses.replace(recipe, precision=world.precision)
    model = trained.load(target, own, world)
    data = store.load(store.ensure(recipe.data), own, world.device)
    stored, scored_in = _stored(target, model.name, data)
    rows = np.linspace(0, len(data.test) - 1, min(command.check, len(data.test))).round().astype(np.int64)
    exported = _exported(target, data.test, rows)
    chosen = ImageSet(data.test.take(rows), data.test.labels[rows], data.test.indices[rows])
    again = predict(world, model.model, chosen, model.format).logits.numpy()
    largest = float(np.abs(again).max())
    comparisons = {
        f"{model.name}, scored here in float32": Comparison(exported, again, _ROUNDING * largest),
        f"predictions-test.parquet, {scored_in[0]}": Comparison(exported, stored[rows], scored_in[1] * largest),
    }
    world.close()
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
    """The logits that the run has stored, and (in words, as a tolerance) in what they were computed. Raises Mistake."""
    scores = read_json(target.path / "eval-test.json") or {}
    result = RunFolder(target.path).result() or {}
    of_this = scores.get("checkpoint") == result.get("checkpoint") == weights
    if not of_this or scores.get("fingerprint") != data.fingerprint:
        raise Mistake(
            f"--check: {target.path}/eval-test.json is not of {weights} and the images that are there now: "
            "bring the run's own files back"
        )
    table = pyarrow.parquet.read_table(target.path / "predictions-test.parquet", columns=["index", "logits"])
    if not np.array_equal(table["index"].to_numpy(), data.test.indices):
        raise Mistake(
            f"--check: {target.path}/predictions-test.parquet is of other images: bring the run's own file back"
        )
    precision = scores["precision"]
    is_on_a_gpu = bool((read_json(target.path / "environment.json") or {}).get("gpus"))
    tolerance = max(_SCORED_IN[precision], _ON_A_GPU if is_on_a_gpu and precision == "no" else 0)
    where = f"precision {precision} on {'a GPU' if is_on_a_gpu else 'a CPU'}"
    return np.array(table["logits"].to_pylist()), (where, tolerance)


def _exported(target: Target, images: ImageSet, rows: np.ndarray) -> np.ndarray:
    """Logits of the exported model, from a new process. Raises Mistake where timm cannot load it."""
    model = target.path / "model"
    needs_package = models.is_ours(targets.export(model).architecture)
    package = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as folder:
        pixels, logits = Path(folder) / "images.npy", Path(folder) / "logits.npy"
        np.save(pixels, images.take(rows).numpy())
        script = model_card.loading(str(model.resolve()), needs_package) + _SCORING
        command: list[Any] = [sys.executable, "-c", script, pixels, logits]
        done = subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode:
            reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise Mistake(f"timm cannot load {model} ({reason}): bring it back, or train again with --fresh") from None
        return np.load(logits)
