"""The dashboard as a saved workspace of a W&B project, and a comparison of runs as a W&B report.

Both are found again by a fixed name, and saved only where the server holds something else: a second call changes
nothing, and neither touches what else a project holds.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from resnet_cifar.config.errors import UserError
from resnet_cifar.reporting.dashboard.panels import TITLES
from resnet_cifar.reporting.dashboard.view import SECTIONS

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

NAME = "resnet-cifar"  # of the workspace, as W&B lists it
_VIEW = "resnetcifar"  # ... and in its address
_MEDIA = ("figures/confusion", "figures/mistakes", "report")  # the report has scores by class and suspect labels
_COLUMNS = ("summary:best/val/accuracy", "summary:test/accuracy", "summary:images_per_second")
_SEARCHED = (  # fields of a recipe that searches vary most
    "phases.0.lr",
    "batch_size",
    "optimizer.weight_decay",
    "optimizer.head_lr_multiplier",
    "loss.label_smoothing",
    "augment.mixup_alpha",
)
_GPUS = range(8)  # of a machine
_NODES = {  # what W&B calls system metrics: with the label of a node at the end where a run has several
    "GPU utilization by node, %": r"system/gpu\.[0-9]+\.gpu(/l:.*)?$",
    "GPU memory by node, %": r"system/gpu\.[0-9]+\.memoryAllocated(/l:.*)?$",
    "processor by node, %": r"system/cpu(/l:.*)?$",
    "memory by node, %": r"system/memory_percent(/l:.*)?$",
    "network sent by node, bytes": r"system/network\.sent(/l:.*)?$",
    "network received by node, bytes": r"system/network\.recv(/l:.*)?$",
}


class Saved(NamedTuple):
    """What a call did to a workspace or report, and its address."""

    what: Literal["created", "updated", "unchanged"]
    url: str


def save_workspace(entity: str, project: str) -> Saved:
    """Creates or updates the workspace of a project. Raises UserError if there is no such project."""
    import wandb_workspaces.workspaces as ws

    view = workspace(entity, project)
    try:
        found = ws.Workspace.from_url(f"https://wandb.ai/{entity}/{project}?nw={_VIEW}")  # only the path counts
    except ValueError as error:
        if "Project" in str(error):
            raise UserError(
                f"{entity}/{project} is not a W&B project of yours: train a run with --track.project {project}, or "
                "correct the name"
            ) from None
        found = None
    if found is not None:
        view._internal_id = found._internal_id
        if _spec(found) == _spec(view):
            return Saved("unchanged", view.url)
    with contextlib.redirect_stderr(io.StringIO()):  # it says where the workspace is
        view.save()
    return Saved("created" if found is None else "updated", view.url)


def save_report(entity: str, project: str, title: str, sections: Sequence[tuple[str, str]], runs: list[str]) -> Saved:
    """Creates or updates the report called `title`: `sections` are (heading, Markdown); charts of `runs`, W&B ids."""
    import wandb
    import wandb_workspaces.reports.v2 as wr

    panels = _numbered("report", [*_overview(wr), *_lines(wr, "speed"), *_lines(wr, "optimization")])
    drawn = wr.Runset(entity, project, filters=f"ID in {runs}")
    drawn._id = "resnetcifar-runs"  # random otherwise
    blocks = [block for heading, text in sections for block in (wr.H2(heading), wr.MarkdownBlock(text))]
    blocks += [wr.H2("Curves"), wr.PanelGrid(runsets=[drawn], panels=panels)]
    report = wr.Report(project, entity, title, "Written by resnet-cifar dashboard --report", blocks, "fluid")
    found = next((each for each in wandb.Api().reports(f"{entity}/{project}") if each.display_name == title), None)
    if found is not None:
        report.id = found.id
        if found.spec == _spec(report):
            return Saved("unchanged", report.url)
    with contextlib.redirect_stderr(io.StringIO()):
        report.save()
    return Saved("created" if found is None else "updated", report.url)


def workspace(entity: str, project: str) -> ws.Workspace:
    """The workspace, not saved: the sections of the local dashboard as W&B's panels."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    panels = {
        "overview": _overview(wr),
        "speed": [
            *_lines(wr, "speed"),
            wr.LinePlot("GPU utilization, %", "Relative Time (Process)", [f"system/gpu.{gpu}.gpu" for gpu in _GPUS]),
            wr.BarPlot("GPU-hours", ["gpu_hours"]),
            wr.BarPlot("energy, kWh", ["energy_kwh"]),
        ],
        "optimization": _lines(wr, "optimization"),
        "predictions": [wr.MediaBrowser(media_keys=[name]) for name in _MEDIA],
        "seeds": [
            wr.LinePlot(
                f"{title}: mean and standard error of each group",
                "step",
                [field],
                groupby="Group",  # the run's group; in lower case a field of its config
                groupby_aggfunc="mean",
                groupby_rangefunc="stderr",
            )
            for title, field in (("validation accuracy", "val/accuracy"), ("validation loss", "val/loss"))
        ],
        "sweep": [
            wr.ParallelCoordinatesPlot(
                [
                    *(wr.ParallelCoordinatesPlotColumn(wr.Config(field)) for field in _SEARCHED),
                    wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric("best/val/accuracy")),
                ],
                "recipe fields and validation accuracy",
            ),
            wr.ParameterImportancePlot(with_respect_to="best/val/accuracy"),
            wr.RunComparer(diff_only="split"),
        ],
        "cluster": [
            wr.LinePlot(title, "Relative Time (Process)", metric_regex=names) for title, names in _NODES.items()
        ],
    }
    view = ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(SECTIONS[name], _numbered(name, each), is_open=name not in ("sweep", "cluster"))
            for name, each in panels.items()
        ],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=20),
        runset_settings=ws.RunsetSettings(pinned_columns=["run:displayName", "run:state", *_COLUMNS]),
    )
    # Otherwise random: it would be another workspace at each call.
    view._internal_name, view._internal_runset_id = f"nw-{_VIEW}-v", "resnetcifar-runs"
    return view


def _overview(wr: Any) -> list[wr.Panel]:
    curves = [
        wr.LinePlot(f"{name} by {axis}", axis, [f"train/{name}", f"val/{name}"])
        for axis in ("step", "epoch")
        for name in ("loss", "accuracy")
    ]
    return [
        *curves,
        wr.BarPlot("best validation accuracy", ["best/val/accuracy"]),
        wr.BarPlot("test accuracy", ["test/accuracy"]),
    ]


def _lines(wr: Any, section: str) -> list[wr.Panel]:
    return [wr.LinePlot(title, "step", [field]) for field, title in TITLES[section].items()]


def _numbered(section: str, panels: list[wr.Panel]) -> list[wr.Panel]:
    """Panels with ids that stay the same from call to call."""
    for number, panel in enumerate(panels):
        panel._id = f"{section}-{number}"
    return panels


def _spec(view: ws.Workspace | wr.Report) -> dict[str, Any]:
    """What the server keeps of a workspace or report."""
    return json.loads(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
