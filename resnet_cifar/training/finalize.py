"""The end of a run: the best model is evaluated once on the test split, exported and reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import sha256, write_json
from resnet_cifar.checkpoints import checkpoint
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.schema import METRIC_NAMES, Recipe
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.evaluation import calibration, metrics, results_io
from resnet_cifar.evaluation.predict import Predictions, predict, predict_held_out
from resnet_cifar.models.export import export_model, needs_package
from resnet_cifar.reporting import environment, model_card, optional_outputs, suspect_list
from resnet_cifar.reporting.console import Screen, duration
from resnet_cifar.training.run_writer import RunWriter
from resnet_cifar.training.telemetry import Telemetry
from resnet_cifar.training.train_state import TrainState

_COSTS = {"gpu_hours": "GPU-hours", "energy_kwh": "kWh"}  # of result.json: unit
_TEST_METRICS = ("accuracy", "top5", "loss", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class TrainingOutcome:
    """How training ended. `best`: step and scores of the best model, None where nothing is held out.

    `validated`: its step and validation predictions where this process made them; `bn_stats_step`: the step that
    BatchNorm's statistics in memory belong to.
    """

    best: dict[str, Any] | None
    validated: tuple[int, Predictions] | None
    bn_stats_step: int


def test_and_export(
    state: TrainState,
    data: ImageData,
    writer: RunWriter,
    telemetry: Telemetry,
    outcome: TrainingOutcome,
    check_stop: Callable[[], None],
) -> None:
    """Evaluates the chosen checkpoint on the test split, once; rank 0 writes the result, the model and the report."""
    context, folder, recipe, part = state.context, writer.folder, state.plan.recipe, writer.timings.part
    best = outcome.best
    step = best["step"] if best else writer.done
    chosen = folder.checkpoints / checkpoint.name(step)
    is_in_memory = step == writer.done == outcome.bn_stats_step  # its checkpoint is written during the evaluation
    if context.is_main and not is_in_memory:
        with part("checkpoint"), folder.exclusively():
            checkpoint.read_state(chosen)
            state.scored.load_state_dict(checkpoint.weights(chosen))
    context.broadcast_(state.scored)
    scored = state.wrapped_for_eval
    with part("evaluation"):
        predictions = predict(context, scored, data.test, state.preprocess, check_stop)
        known = outcome.validated[1] if outcome.validated and outcome.validated[0] == step else None
        validated = predict_held_out(context, scored, data, state.preprocess, check_stop, known)
        temperature = calibration.fit_temperature(*validated) if validated else None
    writer.energy_kwh = telemetry.energy_kwh()
    if not context.is_main:
        return
    with part("checkpoint"), folder.exclusively():
        writer.wait()
        if is_in_memory:
            checkpoint.read_state(chosen)  # a result never names a damaged checkpoint
    with part("evaluation"), folder.exclusively():
        if validated:
            _write_results("validation", validated, temperature, data, writer, chosen)
        found = _write_results("test", predictions, temperature, data, writer, chosen)
    result = {
        **{name: value for name, value in (best or {}).items() if name.startswith("val/")},
        **({"selected_by": recipe.evaluate.select_by} if best else {}),
        **{f"test/{name}": found[name] for name in _TEST_METRICS if name in found},
        "checkpoint": found["checkpoint"],
        "step": step,
        "steps": writer.done,
        "stopped_early": writer.done < state.plan.steps,
        **({"refit_of": recipe.refit_of} if recipe.refit_steps else {}),
        "world_size": context.size,
        **writer.costs(),
    }
    facts = {"temperature": temperature, "preprocess": state.preprocess.facts, "fingerprint": data.fingerprint}
    with part("export"), folder.exclusively():
        card = optional_outputs.make_card(lambda: _card(state, found, {**result, **facts}), writer.screen.warn)
        weights, geometry = state.scored.state_dict(), state.preprocess.timm_config
        model = state.scored, folder.model, recipe, data.classes, weights, geometry
        export_model(*model, facts, card, before_rename=folder.check_lease)
        result["weights_sha256"] = sha256(folder.model / "model.safetensors")
        write_json(folder.path / "result.json", result, folder.check_lease)
    writer.status("finished")
    writer.wait()
    writer.screen.end()
    page = None
    if recipe.track.report:
        with part("report"):
            page = _report(predictions, validated, temperature, data, writer)
    writer.summary(_summary(result), with_figures=page is not None)
    writer.report_timings()
    closing_table(writer.screen, folder, recipe, result, writer.tracker.commands)


def _write_results(
    split: str, predictions: Predictions, temperature: float | None, data: ImageData, writer: RunWriter, chosen: Path
) -> dict[str, Any]:
    """Writes the evaluation of the checkpoint `chosen` on a split; returns its metrics."""
    folder, images = writer.folder.path, getattr(data, split)
    facts = results_io.evaluation_facts(split, writer.plan.recipe, data.fingerprint, str(chosen.relative_to(folder)))
    found = {**facts, **metrics.full(*predictions, data.classes, temperature)}
    for left in folder.glob(f"predictions-{split}.parquet.writing-*"):  # of an attempt that was killed
        left.unlink(missing_ok=True)
    results_io.write_results(folder, split, found, *predictions, images.indices, images.file_names)
    return found


def _report(
    predictions: Predictions,
    validated: Predictions | None,
    temperature: float | None,
    data: ImageData,
    writer: RunWriter,
) -> Path | None:
    folder, warn = writer.folder.path, writer.screen.warn
    optional_outputs.save_example_images(folder, "test", predictions, data.test, temperature, warn)
    if validated is not None:
        optional_outputs.save_example_images(
            folder, "validation", validated, data.validation, temperature, warn, suspects_only=True
        )
    return optional_outputs.write_report(folder, "test", warn)


def _summary(result: dict[str, Any]) -> dict[str, float]:
    """The final numbers that trackers show."""
    best = {f"best/{name}": value for name, value in result.items() if name == "step" or name.startswith("val/")}
    names = (*(f"test/{name}" for name in METRIC_NAMES), *_COSTS)
    return best | {name: result[name] for name in names if name in result}


def _card(state: TrainState, found: dict[str, Any], result: dict[str, Any]) -> str:
    config = state.scored.pretrained_cfg
    here = {**environment.describe(), "world_size": state.context.size}
    return model_card.render_card(state.plan.recipe, config, found, result, here, needs_package(config["architecture"]))


def _reached(result: dict[str, Any], split: str) -> str:
    """The accuracy on a split, after the metric that selected the model if it is another one."""
    names = dict.fromkeys((result.get("selected_by", "accuracy"), "accuracy"))
    found = {METRIC_NAMES[name]: result.get(f"{split}/{name}") for name in names}
    return ", ".join(f"{name} {value:.4f}" for name, value in found.items() if value is not None)


def closing_table(
    screen: Screen, folder: RunDir, recipe: Recipe, result: dict[str, Any], curves: list[tuple[str, str]]
) -> None:
    """What a finished run reached, where everything is, and what to do with it."""
    validation, test = (_reached(result, split) for split in ("val", "test"))
    early = f", stopped early at step {result['steps']}" if result["stopped_early"] else ""
    top5 = f"top-5 {result['test/top5']:.4f}, " if "test/top5" in result else ""
    unselected = f"none: trained {recipe.refit_remark}" if recipe.refit_steps else "none held out"
    page = folder.path / "report" / "index.html"
    suspects = suspect_list.list_file(page)
    costs = [f"{result[name]:.3g} {unit}" for name, unit in _COSTS.items() if name in result]
    screen.table(
        f"Finished in {duration(result['seconds'])}{early}",
        [
            ("validation", validation or f"{unselected}; the last model counts"),
            ("test", f"{test}, {top5}evaluated once"),
            *([("compute", ", ".join(costs))] if costs else []),
            ("load model", f'timm.create_model("local-dir:{folder.model}", pretrained=True)'),
            ("evaluate", f"python eval.py {folder.path}"),
            ("metrics", str(folder.path / "metrics.jsonl")),
            *curves,
            *([("labels", f"suspect ones are listed in {suspects}")] if suspects.is_file() else []),
            ("report", str(page) if page.is_file() else f"none yet: resnet-cifar report {folder.path}"),
        ],
    )
