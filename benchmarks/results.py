"""Where figures are kept: a JSON file for CPUs and one for GPUs, and a table for a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from resnet_cifar.atomic_io import read_json, write_json
from resnet_cifar.reporting import environment

FOLDER = Path(__file__).parent / "results"
_OF_A_RUN = ("time", "commit", "command", "job")  # of the environment; the rest is the machine
_ALONE = ("finetune", "serve", "checkpoints")  # take long, or need packages that others do without


def file(folder: Path, names: Sequence[str]) -> Path:
    """Of this machine's kind, in `folder`; the benchmarks of `_ALONE`, each measured alone, have files of their own."""
    about = f"{names[0]}-" if len(names) == 1 and names[0] in _ALONE else ""
    return folder / f"bench-{about}{'gpu' if torch.cuda.is_available() else 'cpu'}.json"


def keep(path: Path, name: str, source: str, measured: dict[str, Any]) -> None:
    """Puts what was measured under `name`; what another machine or other versions measured is dropped."""
    facts = environment.describe()
    machine = {key: value for key, value in facts.items() if key not in _OF_A_RUN}
    kept = read_json(path) or {}
    if kept.get("environment") != machine:
        kept = {}
    when = {"source": Path(source).name, "time": facts["time"], "commit": facts["commit"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**kept, "environment": machine, name: {**when, **measured}})


def show(results: dict[str, Any], console: Console) -> None:
    """Every section that was measured, as tables."""
    if training := results.get("training"):
        console.print(_of_training(training["configurations"]))
    if jobs := results.get("jobs"):
        for table in _of_jobs(jobs):
            console.print(table)
    for setting in results.get("finetune", {}).get("settings", ()):
        console.print(
            f"Fine-tuning, {setting['images']:,} images, {setting['image_size']} px, {setting['updates']:,} updates of "
            f"{setting['batch_size']}: accuracy on {setting['validation_images']:,} validation images"
        )
        console.print(_of_finetune(setting))
    others = Table(title="Pipeline and start", title_justify="left", show_header=False)
    for size, found in results.get("pipeline", {}).items():
        if isinstance(found, dict):
            speeds = found["images_per_second"]
            others.add_row(
                f"pipeline, {size}",
                f"{speeds['resident']:,} images/s resident, {speeds[found['best']]:,} from the {found['best']}: "
                f"{found['resident_over_best']:g} times",
            )
    if startup := results.get("startup"):
        cold, warm = (startup["seconds_to_first_step"][name] for name in ("cold", "warm"))
        others.add_row("first step after", f"{cold:.1f} s with an empty cache, {warm:.1f} s with a warm one")
    if others.rows:
        console.print(others)
    if serve := results.get("serve"):
        console.print(_of_serve(serve))


def _of_serve(serve: dict[str, Any]) -> Table:
    about = f"{serve['requests']} requests of {serve['clients']} clients, {serve['model']}, {serve['image_size']} px"
    table = Table("backend", "failed", "requests/s", "p50 ms", "p95 ms", "p99 ms", "mean batch", title=about)
    for backend in ("torch", "onnx"):
        found = serve[backend]
        values = (found["failed"], found["requests_per_second"], *found["milliseconds"].values(), found["mean_batch"])
        table.add_row(backend, *map(str, values))
    return table


def _of_finetune(setting: dict[str, Any]) -> Table:
    table = Table("recipe", "mean", "lowest", "highest", "seeds")
    for name, found in {"the probe alone": setting["probe"], **setting["scores"]}.items():
        if found:
            table.add_row(name, *(f"{value:.4f}" for value in (mean(found), min(found), max(found))), str(len(found)))
    return table


def _of_training(configurations: list[dict[str, Any]]) -> Table:
    table = Table(title="Training and scoring", title_justify="left")
    for column in ("model", "stem", "px", "batch", "precision", "compiled"):
        table.add_column(column)
    for column in ("images/s", "of bare", "of stock", "bare of stock", "scored/s", "device GiB", "host GiB", "of peak"):
        table.add_column(column, justify="right")
    for found in configurations:
        precision = f"{found['precision']} (tf32)" if found.get("tf32") else found["precision"]
        compiled = "yes" if found["compiled"] else "no"
        row = [found["model"], found["stem"], str(found["image_size"]), str(found["batch"]), precision, compiled]
        if why := found.get("left_out"):
            table.add_row(*row, f"[dim]{why}[/]", *[""] * 7)
            continue
        speeds = found["images_per_second"]
        table.add_row(
            *row,
            f"{speeds['whole']:,.0f}",
            _share(found["whole_over_bare"]),
            _share(found.get("whole_over_stock")),
            _share(found["bare_over_stock"]),
            f"{speeds['evaluation']:,.0f}",
            _gib(found["peak_device_bytes"]),
            _gib(found["peak_host_bytes"]),
            _share(found["share_of_peak"]),
        )
    return table


def _of_jobs(jobs: dict[str, Any]) -> Iterator[Table]:
    """The jobs side by side, and what the seconds of train.py are spent on."""
    job, ratios = jobs["job"], jobs["ratios"]
    title = f"Whole job: {job['model']}, {job['images']:,} images at {job['image_size']} px, {job['epochs']} epochs"
    table = Table(title=title, title_justify="left")
    table.add_column("script")
    for column in ("seconds", "CPU seconds", "peak GiB", "seconds, cold cache", "workers", "test accuracy"):
        table.add_column(column, justify="right")
    for name, found in jobs["scripts"].items():
        table.add_row(
            name,
            f"{found['seconds']:.1f}",
            f"{found['cpu_seconds']:.1f}",
            f"{found['peak_bytes'] / 2**30:.2f}",
            f"{found['cold']['seconds']:.1f}",
            str(found["workers"]),
            f"{found['test/accuracy']:.3f}",
        )
    names = ("seconds", "cpu_seconds", "peak_bytes")
    table.add_row("train.py over the better one", *(f"{ratios[name]:.2f}" for name in names), "", "", "")
    yield table
    if parts := jobs["seconds_by_part"]:
        spent = Table(title="Where the seconds of train.py go", title_justify="left", show_header=False)
        for name, seconds in parts.items():
            spent.add_row(name, f"{seconds:.2f} s")
        yield spent


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _gib(value: int | None) -> str:
    return "" if value is None else f"{value / 2**30:.1f}"
