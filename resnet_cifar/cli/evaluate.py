"""`resnet-cifar evaluate TARGET`, which eval.py runs too: metrics of a trained model on a split of a dataset."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resnet_cifar.cli.parser import parse
from resnet_cifar.cli.predict import INPUT_FIELDS, PredictOptions, check_paths, classify_images
from resnet_cifar.config.diff import flatten
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed.launcher_env import check_launcher
from resnet_cifar.evaluation import model_location
from resnet_cifar.evaluation.model_location import Target

if TYPE_CHECKING:
    from resnet_cifar.data.image_dataset import ImageDataset
    from resnet_cifar.data.prepared_data import ImageData
    from resnet_cifar.distributed.context import DistributedContext
    from resnet_cifar.evaluation.loaded_model import LoadedModel
    from resnet_cifar.evaluation.predict import Predictions
    from resnet_cifar.reporting.console import Screen

_USAGE = "resnet-cifar evaluate TARGET [--split validation] [--data.source SOURCE] [--data.FIELD VALUE ...]"
_DIGITS = 6  # hex digits in a file name that identify the changed settings


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a model on a split of its dataset (the run's own data.source is the default) or of another one; with
    --images, classify image files instead."""

    target: str
    """A run directory (its best checkpoint), a checkpoint (RUN/checkpoints/step-...), a model in timm's format
    (RUN/model, or one written by timm's save_for_hf: it needs --data.source), or the model that track.log_model has
    uploaded (wandb:ENTITY/PROJECT/NAME:ALIAS)."""
    split: Literal["test", "validation", "train"] = "test"
    """The split to evaluate; `train`: the images that were trained on, without augmentation."""
    tta: Literal["none", "flip"] = "none"
    """`flip`: test-time augmentation, the mean over each image and its mirror image, reported besides."""
    out: str = ""
    """Directory of eval-NAME.json and predictions-NAME.parquet [default: the run; without one, TARGET-scores]."""
    images: tuple[str, ...] = ()
    """Image files and directories to classify, as in resnet-cifar predict."""
    json: bool = False
    """With --images: print one JSON object per line instead of the table."""
    verify_export: int = field(default=0, metadata={"const": "256"})
    """Load RUN/model with timm in a separate process and compare its logits with the run's on this many test images
    [256 if no number is given]."""


def parse_arguments(arguments: list[str]) -> tuple[EvaluateOptions, Recipe]:
    """The options and the target's recipe with overrides of `data.*` and `precision`. Raises UserError."""
    options, overrides = parse(EvaluateOptions, _USAGE, arguments, fields=("data.", "precision"))
    _check(options, [word[2:].partition("=")[0] for word in arguments if word.startswith("--")])
    target = model_location.find_target(Path(options.target))
    if options.verify_export:
        _check_export(target)
    recipe = model_location.recipe(target, overrides)
    if not target.has_recipe and "data.source" not in overrides and not options.images:
        raise UserError(f"{target.path} is a model without a recipe: name its evaluation data with --data.source")
    return options, recipe


def _check(options: EvaluateOptions, given: list[str]) -> None:
    """Raises UserError if options exclude each other. `given`: the options and overrides on the command line."""
    if options.images:
        for name in given:
            is_unread = name.startswith("data.") and name.replace("-", "_") not in INPUT_FIELDS
            if is_unread or name in ("split", "tta", "out"):
                raise UserError(f"--{name} is for evaluations, and --images classifies images: remove one of them")
        check_paths(options.images, "--images ")
    elif options.json:
        raise UserError("--json is for --images: evaluations are written as JSON anyway")
    if options.verify_export and (others := [name for name in given if name.replace("_", "-") != "verify-export"]):
        raise UserError(f"--verify-export compares with the run's own evaluation: remove --{others[0]}")


def _check_export(target: Target) -> None:
    """Raises UserError if there is no exported model, or no predictions to compare it with."""
    if target.kind != "run":
        raise UserError(
            f"--verify-export compares a run's exported model with its predictions, and {target.path} is not a run "
            "directory: name one"
        )
    for file in ("result.json", "model/config.json", "predictions-test.parquet"):
        if not (target.path / file).is_file():
            raise UserError(
                f"--verify-export: {target.path} has no {file}: let train.py finish the run, or restore the file"
            )


def main(arguments: list[str]) -> None:
    """Nothing heavy is imported before the options are checked."""
    options, recipe = parse_arguments(arguments)
    check_launcher()
    if options.images:
        classify_images(PredictOptions(options.target, options.images, options.json), recipe)
        return

    from resnet_cifar.data.sources import registry

    registry.go_offline_if_unreachable(recipe)
    if options.verify_export:
        from resnet_cifar.cli.verify_export import verify_export

        verify_export(model_location.find_target(Path(options.target)), recipe, options.verify_export)
        return
    evaluate(options, recipe)


def evaluate(options: EvaluateOptions, recipe: Recipe) -> None:  # noqa: PLR0915 (ten are imports)
    """Evaluates the target on a split; prints and writes the metrics. Raises UserError."""
    import torch

    from resnet_cifar.data import prepared_data
    from resnet_cifar.data.sampling import bn_indices
    from resnet_cifar.distributed.context import DistributedContext
    from resnet_cifar.evaluation import loaded_model, metrics, results_io
    from resnet_cifar.evaluation.predict import precise_bn, predict
    from resnet_cifar.evaluation.throughput import ThroughputTimer
    from resnet_cifar.evaluation.tta import MirroredPreprocess, mean_logits
    from resnet_cifar.reporting import optional_outputs, suspect_list
    from resnet_cifar.reporting.console import Screen, track

    target = model_location.find_target(Path(options.target))
    trained = model_location.recipe(target)
    before = flatten(trained)
    changed = {path: value for path, value in flatten(recipe).items() if before.get(path) != value}
    context = DistributedContext(recipe.precision)
    recipe = dataclasses.replace(recipe, precision=context.precision)
    screen = Screen(shown=context.is_main)
    model = loaded_model.load_model(target, recipe, context)
    # Other images take the form of the model's, which a third party's model does not record.
    known = model.fingerprint and not changed.keys() & {"data.decode_size", "data.decode_mode", "data.value_range"}
    how = model.preprocess.decoding if known else None
    prepare = partial(prepared_data.prepare, recipe.data, how, one_class=True)
    entry = Path(context.run_on_main(lambda: str(prepare()), per_node=True))
    is_other_data = model.fingerprint != prepared_data.fingerprint(entry)
    is_unseen = is_other_data and ("data.source" in changed or not target.has_recipe)
    if is_unseen:
        recipe = for_unseen_images(recipe, options.split, keep_test="data.test_fraction" in changed)
    data = prepared_data.load(entry, recipe, context.device)
    images: ImageDataset = getattr(data, options.split)
    if not len(images):
        why = {"validation": "no images were held out (data.validation_fraction 0)", "train": "data.test_fraction is 1"}
        if recipe.refit_steps:
            why["validation"] = f"the model was trained on its images (refit_steps {recipe.refit_steps})"
        raise UserError(f"--split {options.split} is empty, {why[options.split]}: use --split test")
    indices = class_indices(data.classes, model.classes, recipe.data.source)
    images = dataclasses.replace(images, labels=torch.tensor(indices, device=context.device)[images.labels])

    if is_other_data:
        model.check_fresh()
    elif not model.is_fresh:
        own = data if recipe.data == trained.data else prepared_data.load(entry, trained, context.device)
        rows = bn_indices(recipe.seed, len(own.train))
        bar = partial(track, description="BatchNorm statistics", shown=context.is_main)
        precise_bn(context, model.plain, own.train, model.preprocess, rows, track=bar)

    bar = partial(track, description=f"{options.split} split", shown=context.is_main)
    timer = ThroughputTimer(context.device)
    predictions = predict(context, model.model, images, model.preprocess, timer, bar)
    speed = timer.images_per_second(len(images))
    flipped = None
    if options.tta == "flip":
        mirrored = MirroredPreprocess(**vars(model.preprocess))
        flipped = predict(context, model.model, images, mirrored, track=bar)
    is_known = target.has_recipe and not is_other_data
    is_held_out = is_known and changed.keys() <= {"precision", *INPUT_FIELDS}
    temperature, origin = _temperature(context, model, data, is_held_out)
    is_foreign = is_other_data and model.fingerprint is not None
    seen = 0 if is_unseen else prepared_data.trained_images(entry, recipe, trained if is_known else None, options.split)
    changed |= {"fingerprint": data.fingerprint} if is_foreign else {}
    name = file_name(options, target, model.name, changed)
    folder = Path(options.out) if options.out else target.results
    written: tuple[Path, ...] = ()
    if context.is_main:
        found = {
            **results_io.evaluation_facts(options.split, recipe, data.fingerprint, model.name),
            **metrics.full(*predictions, model.classes, temperature),
            **({"trained_on": True} if seen == len(images) else {}),
            **({} if flipped is None else {"flip": metrics.overall(*mean_logits(predictions, flipped))}),
            "throughput": {"images_per_second": speed, "processes": context.size, "device": context.describe()},
        }
        if is_foreign:
            screen.warn("these are not the images that the model was trained on, or they have changed since")
        if "trained_on" in found:
            screen.say("the model was trained on these images: this is how well it fits them")
        elif seen is None:
            screen.warn("the model may have been trained on some of these images: what its run held out is unknown")
        elif seen:
            screen.warn(f"the model was trained on {seen:,} of these {len(images):,} images: this is another division")
        written = _write(folder, name, found, predictions, images, flipped)
        _show(screen, found, origin, model.remark)
        optional_outputs.save_example_images(folder, name, predictions, images, temperature, screen.warn)
    context.close()  # the other processes need not wait for the page
    if context.is_main:
        page = optional_outputs.write_report(folder, name, screen.warn)
        lists = [file for file in [page and suspect_list.list_file(page)] if file and file.is_file()]
        screen.say("written: " + ", ".join(map(str, (*written, *lists, *filter(None, [page])))))


def for_unseen_images(recipe: Recipe, split: str, keep_test: bool) -> Recipe:
    """The recipe that divides images of which the model has seen none, as an evaluation of `split` needs them.

    Without a test split of their own all are one (unless `keep_test`), none were added to the training images, and no
    validation split is cut that is not evaluated, for which there may be too few.
    """
    division: dict[str, float] = {} if split == "validation" else {"validation_fraction": 0.0}
    if split == "test" and not keep_test:
        division["test_fraction"] = 1.0
    return dataclasses.replace(recipe, refit_steps=0, data=dataclasses.replace(recipe.data, **division))


def _write(
    folder: Path,
    name: str,
    found: dict[str, Any],
    predictions: Predictions,
    images: ImageDataset,
    flipped: Predictions | None,
) -> tuple[Path, ...]:
    """Writes the evaluation's files and returns their paths. Raises UserError, with the result, if that fails."""
    from resnet_cifar.evaluation import results_io

    try:
        extra = None if flipped is None else flipped.logits
        names = images.file_names
        return results_io.write_results(folder, name, found, *predictions, images.indices, names, extra)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); the result was {results_io.summary_line(found)}: "
            "make it writable, or name another directory with --out"
        ) from None


def class_indices(classes: Sequence[str], known: Sequence[str], source: str) -> list[int]:
    """The index of each of the source's classes in the model's classes `known`, by name. Raises UserError."""
    indices = {name: index for index, name in enumerate(known)}
    if missing := [name for name in classes if name not in indices]:
        raise UserError(
            f"data.source {source!r} has classes that the model does not know: {_short(missing)}; it knows "
            f"{_short(known)}: use a source whose classes are among these, in any order"
        )
    return [indices[name] for name in classes]


def file_name(options: EvaluateOptions, target: Target, weights: str, changed: dict[str, Any]) -> str:
    """NAME of eval-NAME.json: the split and weights, a hash of the fields `changed` since training, and the TTA."""
    from resnet_cifar.evaluation.loaded_model import results_name

    parts = [results_name(target, options.split, weights)]
    if "data.source" in changed:
        parts.append(re.sub(r"\W+", "-", Path(changed["data.source"]).name).strip("-"))
    if changed:
        parts.append(hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:_DIGITS])
    if options.tta != "none":
        parts.append(options.tta)
    return "-".join(parts)


def _temperature(
    context: DistributedContext, model: LoadedModel, data: ImageData, is_held_out: bool
) -> tuple[float | None, str]:
    """(temperature, its origin or why there is none). `is_held_out`: whether the validation split is known to be."""
    from resnet_cifar.evaluation.calibration import fit_temperature
    from resnet_cifar.evaluation.predict import predict_held_out
    from resnet_cifar.reporting import console

    if is_held_out:
        bar = partial(console.track, description="calibration", shown=context.is_main)
        held_out = predict_held_out(context, model.model, data, model.preprocess, track=bar)
        fitted = fit_temperature(*held_out) if held_out else None
        return fitted, "fitted on the validation split" if fitted else "none: no images held out, or no optimum on them"
    if model.temperature is None:
        return None, "none: none was fitted before, and these images may not be held out"
    return model.temperature, "fitted before"


def _show(screen: Screen, found: dict[str, Any], origin: str, remark: str | None) -> None:
    from resnet_cifar.evaluation import results_io
    from resnet_cifar.reporting import console

    if remark:
        screen.warn(remark)
    title = f"{found['split']} split of {found['source']}, {found['checkpoint']}: {results_io.summary_line(found)}"
    screen.table(title, results_io.class_lines(found))
    if absent := [name for name, values in found["classes"].items() if not values["images"]]:
        screen.say(f"classes without images: {_short(absent)}")
    if "flip" in found:
        screen.say(f"with flip test-time augmentation: {results_io.summary_line(found['flip'])}")
    if found["temperature"]:
        origin = f"{found['temperature']:.4f} ({origin}): calibration error {found['calibration_error_scaled']:.4f}"
    screen.say(f"temperature: {origin}")
    if speed := console.speed(found["throughput"]["images_per_second"] or 0):
        where = "{processes} x {device}".format(**found["throughput"])
        screen.say(f"{speed} on {where}: resized, classified and gathered, without the first batch")


def _short(classes: Sequence[str]) -> str:
    return ", ".join(classes[:3]) + f", ... ({len(classes)})" * (len(classes) > 3)
