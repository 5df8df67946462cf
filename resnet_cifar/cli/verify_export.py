"""`resnet-cifar evaluate RUN --verify-export`: compares the exported model's logits with the run's."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from PIL import Image

from resnet_cifar.atomic_io import read_json
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data import prepared_data
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.data.sources import image_io
from resnet_cifar.data.sources.registry import find_source
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
ROUNDING = 1e-4
_TOLERANCES = {"fp64": ROUNDING, "no": ROUNDING, "fp16": 0.02, "bf16": 0.1}
_GPU_TOLERANCE = 0.02

# Appended to the model card's lines that load the model: reads the files that are named in a list, and writes logits
# [n, classes], with the card's transform and with timm's.
_INFERENCE = """
import importlib.util
import json
import sys

if importlib.util.find_spec("pillow_heif"):  # the card says that HEIC files need it
    import pillow_heif

    pillow_heif.register_heif_opener()
files = json.load(open(sys.argv[1]))
timm_transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
transforms = {"card": to_input, "timm": lambda image: timm_transform(decode(image))}
logits = {name: [] for name in transforms}
with torch.inference_mode():
    for start in range(0, len(files), 32):
        images = [Image.open(file) for file in files[start : start + 32]]
        for name, transform in transforms.items():
            logits[name].append(model(torch.stack([transform(image) for image in images])).numpy())
np.savez(sys.argv[2], **{name: np.concatenate(parts) for name, parts in logits.items()})
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
        rounding = f"(rounding: up to {self.tolerance:.2g})"
        return f"largest difference {self.largest:.2g} {rounding}, {self.classes_sentence()}"

    def classes_sentence(self) -> str:
        """How many predicted classes agree."""
        count, other = len(self.exported), self.other_classes
        return f"{other} of {count} predicted classes differ" if other else f"all {count} predicted classes agree"


def verify_export(target: Target, recipe: Recipe, images: int) -> None:
    """Compares logits of `images` test images, spread over the split. Raises UserError, or SystemExit (4).

    The exported model is loaded by timm in a process of its own, as described in its card, which reads the source's
    original files, if it has files, with the card's transform. Its logits are compared with those of the run's best
    checkpoint in the run's pipeline, in float32 on the CPU, and with the logits that the run has stored, which may have
    been computed elsewhere and in another precision. Those with timm's own transform are checked where it can be exact.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "--verify-export starts a process of its own: run it without a launcher, python eval.py RUN --verify-export"
        )
    context = DistributedContext("no", cpu=True)  # a GPU rounds differently
    screen = Screen(shown=True)
    recipe = dataclasses.replace(recipe, precision=context.precision)
    model = loaded_model.load_model(target, recipe, context)
    data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, context.device)
    stored, precision, tolerance = _stored_logits(target, model.name, data)
    rows = np.linspace(0, len(data.test) - 1, min(images, len(data.test))).round().astype(np.int64)
    exported, originals = timm_logits(target.path / "model", recipe, data.test, rows)
    subset = ImageDataset(data.test.gather(rows), data.test.labels[rows], data.test.indices[rows])
    recomputed = predict(context, model.model, subset, model.preprocess).logits.numpy()
    largest = float(np.abs(recomputed).max())
    comparisons = {
        f"{model.name}, evaluated here in float32": Comparison(exported["card"], recomputed, ROUNDING * largest),
        f"predictions-test.parquet, {precision}": Comparison(exported["card"], stored[rows], tolerance * largest),
    }
    timm = Comparison(exported["timm"], recomputed, ROUNDING * largest)
    if model.preprocess.is_exact_in_timm:
        comparisons[f"{model.name}, with timm's own transform of upright RGB images"] = timm
    context.close()
    kind = f" ({originals} original files)" if originals else ""
    title = f"{target.path / 'model'}, loaded by timm in a process of its own, on {len(rows)} test images{kind}, and"
    lines = [(name, comparison.sentence()) for name, comparison in comparisons.items()]
    if not model.preprocess.is_exact_in_timm:
        lines.append(("timm's own transform", f"is another (see the model card): {timm.classes_sentence()}"))
    screen.table(title, lines)
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


def timm_logits(
    model: Path, recipe: Recipe, images: ImageDataset, rows: np.ndarray
) -> tuple[dict[str, np.ndarray], int]:
    """Logits of the exported `model` with the `card`'s and `timm`'s transform, from a new process, and how many of the
    images it has read from original files.

    Raises UserError if timm cannot load it.
    """
    with tempfile.TemporaryDirectory() as folder:
        files, originals = _originals(recipe, images, rows, Path(folder))
        return _exported_logits(model, files, Path(folder)), originals


def _originals(recipe: Recipe, images: ImageDataset, rows: np.ndarray, folder: Path) -> tuple[list[str], int]:
    """The files of the images, and how many are original ones; stored images are written into `folder` for others."""
    contents = find_source(recipe.data.source).read(recipe.data)
    split = contents.test or contents.train
    files, originals = [], 0
    for row, pixels in zip(rows, images.gather(rows).numpy(), strict=True):
        image = split.images[images.indices[row] : images.indices[row] + 1][0]
        file = Path(image_io.source_file(image))
        if isinstance(image, dict) and image["bytes"] is not None:
            file = folder / f"{row}{file.suffix}"
            file.write_bytes(image["bytes"])
        if isinstance(image, np.ndarray):
            file = folder / f"{row}.png"
            Image.fromarray(pixels).save(file)
        else:
            originals += 1
        files.append(str(file.absolute()))
    return files, originals


def _exported_logits(model: Path, files: list[str], folder: Path) -> dict[str, np.ndarray]:
    package_needed = needs_package(model_location.read_export_config(model).architecture)
    package = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    names, logits = folder / "files.json", folder / "logits.npz"
    names.write_text(json.dumps(files))
    preprocess = (read_json(model / "config.json") or {}).get("preprocess")
    if preprocess is None:
        raise UserError(f"{model / 'config.json'} has no preprocess: restore it, or train again with --restart")
    script = model_card.loading_code(str(model.resolve()), preprocess, package_needed) + _INFERENCE
    command: list[Any] = [sys.executable, "-c", script, names, logits]
    done = subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["without a message"])[-1]
        raise UserError(f"timm cannot load {model} ({reason}): restore it, or train again with --restart") from None
    with np.load(logits) as arrays:
        return dict(arrays)
