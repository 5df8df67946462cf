"""Writes the files of `resnet-cifar export` and runs each in a process of its own on the whole test split."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnet_cifar.atomic_io import read_json, sha256, write_json
from resnet_cifar.cli.verify_export import DIFFERENT, ROUNDING, Comparison, timm_logits
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data import prepared_data
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.sampling import bn_indices
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation import export_formats, loaded_model
from resnet_cifar.evaluation.deployed import Deployed
from resnet_cifar.evaluation.loaded_model import LoadedModel
from resnet_cifar.evaluation.model_location import Target
from resnet_cifar.evaluation.predict import batch_size, predict
from resnet_cifar.reporting import environment, export_card
from resnet_cifar.reporting.console import Screen

_BATCH = 128
_CALIBRATION = 512  # training images, at most, on which int8's ranges are measured
_SHOWN = 50  # indices in a message


def export(target: Target, recipe: Recipe, formats: Collection[str], out: Path) -> None:
    """Writes the `formats` (onnx, int8, pt2, timm) to `out`. Raises UserError, or SystemExit (4) if one disagrees.

    The files are written to OUT/unverified and moved to OUT once all of them give the run's logits, computed here in
    float32 on the CPU by the run's own pipeline, up to rounding, and the same class for every test image. int8 differs.
    Those of an earlier export stay if they have the same weights, and are removed otherwise.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("export starts processes of its own: run it without a launcher, resnet-cifar export RUN")
    context, screen = DistributedContext("no", cpu=True), Screen(shown=True)  # a GPU rounds differently
    recipe = dataclasses.replace(recipe, precision=context.precision)
    model = loaded_model.load_model(target, recipe, context)
    how = model.preprocess.decoding if model.fingerprint else None
    data = prepared_data.load(prepared_data.prepare(recipe.data, how, one_class=True), recipe, context.device)
    if model.fingerprint != data.fingerprint:
        raise UserError(
            f"exports are verified on test images, and {target.path} is not known to be trained on the present images "
            f"of {recipe.data.source!r}: name its own with --data.source"
        )
    aside, earlier = out / "unverified", read_json(out / "export.json") or {}
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): name another directory") from None
    expected = predict(context, model.model, data.test, model.preprocess).logits.numpy()
    context.close()
    write_formats(formats, model, target, aside, _calibration_images(recipe, data.train))
    facts = _run_all(aside, recipe, data.test, expected)
    facts["model"] = sha256(_model_folder(target) / export_card.TIMM)  # of these weights: push does not mix runs
    write_json(aside / "export.json", facts)
    title = f"{len(expected):,} test images, accuracy {facts['accuracy']:.4f} in this project"
    screen.table(title, export_card.lines(facts))
    wrong = {name: each for name, each in facts["files"].items() if not each["agrees"] and name != export_card.INT8}
    for name, each in wrong.items():
        print(f"error: {_complaint(aside / name, each, model.name)}", file=sys.stderr, flush=True)
    if wrong:
        raise SystemExit(DIFFERENT)
    names = [*facts["files"], "README.md", "export.json"]
    stale = _join_earlier(facts, earlier, out)
    write_json(aside / "export.json", facts)
    (aside / "README.md").write_text(export_card.render(_model_folder(target), facts), encoding="utf-8")
    for file in aside.iterdir():
        file.replace(out / file.name)
    aside.rmdir()
    screen.say(f"written: {', '.join(str(out / name) for name in names)}")
    for file in stale:
        file.unlink(missing_ok=True)
    if stale:
        screen.say(f"removed, of other weights: {', '.join(map(str, stale))}")


def _join_earlier(facts: dict[str, Any], earlier: Mapping[str, Any], out: Path) -> list[Path]:
    """Adds to `facts` those files of the export.json `earlier` that are still in `out` and have the same weights.

    Returns those of other weights.
    """
    others = {
        name: found
        for name, found in earlier.get("files", {}).items()
        if name not in facts["files"] and (out / name).is_file() and sha256(out / name) == found.get("sha256")
    }
    if earlier.get("model") == facts["model"]:
        facts["files"] |= others
        return []
    return [out / name for name in [*others, *["config.json"] * (export_card.TIMM in others)]]


def _model_folder(target: Target) -> Path:
    return target.path / "model" if target.kind == "run" else target.path


def write_formats(
    formats: Collection[str], model: LoadedModel, target: Target, folder: Path, calibration: Iterator[np.ndarray]
) -> None:
    """Writes the files of the `formats` (onnx, int8, pt2, timm) into `folder`, unverified. Raises UserError.

    `calibration`: batches of training images, for int8.
    """
    if "timm" in formats:
        for name in ("config.json", "model.safetensors"):
            shutil.copy(_model_folder(target) / name, folder)
    if set(formats) <= {"timm"}:
        return
    data, size = model.preprocess.data, model.preprocess.decoding.size
    metadata = {
        "class_names": json.dumps(model.classes),
        "temperature": str(model.temperature or ""),
        "stored_size": json.dumps(size),
        "decode_mode": model.preprocess.decoding.mode,
        "value_range": json.dumps(model.preprocess.decoding.value_range),
        "image_size": str(data.image_size),
        "interpolation": data.interpolation,
        "architecture": model.architecture,
        "fingerprint": model.fingerprint,
        "weights": model.name,
    }
    try:
        program = export_formats.capture(Deployed(model))
        if "pt2" in formats:
            export_formats.write_pt2(program, folder / export_card.PT2, metadata)
        if "onnx" in formats:
            export_formats.write_onnx(program, folder / export_card.ONNX, metadata)
    except (RuntimeError, ValueError) as error:  # the base of torch's own
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"torch cannot export {metadata['architecture']} ({reason}): use --to timm") from None
    if "int8" in formats:
        export_formats.write_int8(folder / export_card.ONNX, folder / export_card.INT8, calibration)


def _calibration_images(recipe: Recipe, images: ImageDataset) -> Iterator[np.ndarray]:
    """Batches of training images, uint8 [n, h, w, 3], always the same."""
    rows = bn_indices(recipe.seed, len(images))
    rows = rows[:: -(-len(rows) // _CALIBRATION)]
    yield from (pixels.numpy() for pixels in images.read(np.array_split(rows, -(-len(rows) // 32))))


def _run_all(folder: Path, recipe: Recipe, images: ImageDataset, expected: np.ndarray) -> dict[str, Any]:
    """The content of export.json: each of the files on all `images`, compared with their `expected` logits."""
    costs = {"threads": torch.get_num_threads(), "batch": batch_size(len(images), recipe.data.image_size, _BATCH)}
    files = {}
    for name in [name for name in export_card.FILES if (folder / name).is_file()]:
        if name == export_card.TIMM:
            found, _ = timm_logits(folder, recipe, images, np.arange(len(images)))
            logits, rate = found["card"], None  # its process reads files
        else:
            logits, rate = _run(folder / name, images, **costs)
        about = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        files[name] = {**compare(logits, expected, images), "images_per_second": rate, **about}
    accuracy = float((expected.argmax(1) == images.labels.numpy()).mean())
    about = {"opset": export_formats.OPSET, "environment": environment.describe()}
    return {"images": len(images), "accuracy": accuracy, "files": files, **costs, **about}


def _run(file: Path, images: ImageDataset, threads: int, batch: int) -> tuple[np.ndarray, float]:
    """Logits of an exported model from a new process, and images per second."""
    package = Path(__file__).parents[2]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        pixels, results = Path(folder) / "images.npy", Path(folder) / "results.npz"
        array = np.lib.format.open_memmap(pixels, "w+", np.uint8, (len(images), *images.size, 3))
        starts = range(0, len(images), batch)
        read = images.read(np.arange(start, min(start + batch, len(images))) for start in starts)
        for start, part in zip(starts, read, strict=True):
            array[start : start + batch] = part.numpy()
        words = [sys.executable, "-m", "resnet_cifar.cli.run_exported", file, pixels, results, str(batch), str(threads)]
        done = subprocess.run(words, check=False, env=variables, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"{file} cannot be run:\n{done.stderr.decode(errors='replace')}")
        with np.load(results) as arrays:
            return arrays["logits"], len(images) / float(arrays["seconds"])


def compare(logits: np.ndarray, expected: np.ndarray, images: ImageDataset) -> dict[str, Any]:
    """How the logits of an exported model differ; `differing`: images of another class, as indices in the source."""
    comparison = Comparison(logits, expected, ROUNDING * float(np.abs(expected).max()))
    predicted = logits.argmax(1)
    return {
        "agrees": comparison.holds and not comparison.other_classes,
        "differing": images.indices[predicted != expected.argmax(1)].tolist(),
        "largest_difference": comparison.largest,
        "rounding": comparison.tolerance,
        "accuracy": float((predicted == images.labels.numpy()).mean()),
    }


def _complaint(file: Path, found: dict[str, Any], weights: str) -> str:
    shown = ", ".join(map(str, found["differing"][:_SHOWN])) + ", ..." * (len(found["differing"]) > _SHOWN)
    images = f" (test images {shown})" if shown else ""
    return (
        f"{file} does not predict like {weights}: {len(found['differing'])} classes differ{images}, largest difference "
        f"{found['largest_difference']:.2g} (rounding: up to {found['rounding']:.2g}); it stays there, unpublished"
    )
