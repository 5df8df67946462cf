"""Training, and looking at runs, from a notebook: `resnet_cifar.train("scratch", ...)` and `resnet_cifar.show(RUN)`.

Training is a start of train.py in a process of its own, as on the command line: its memory comes back when it ends,
several GPUs work, and what the notebook does with CUDA does not matter. IPython is there where a notebook is.
"""

from __future__ import annotations

import dataclasses
import html
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import read_json
from resnet_cifar.checkpoints.run_dir import RunDir, default_run_path
from resnet_cifar.cli.arguments import positive_integer
from resnet_cifar.cli.train import train_command
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.options import extended
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed import launcher_env
from resnet_cifar.sweeps import launcher, run_monitor

# What a report is made from; a page that is older than one of these is written anew.
_SOURCES = ("recipe.yaml", "environment.json", "status.json", "attempts.json", "metrics.jsonl", "result.json")
_SOURCES += ("eval-*", "predictions-*", "report/pictures-*.npz")


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A run folder. A notebook shows its report; `resnet_cifar.show` and `open` take it for its path."""

    path: Path

    @property
    def result(self) -> dict[str, Any] | None:
        """What result.json holds; None where the run is not finished."""
        return RunDir(self.path).result()

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        status = read_json(self.path / "status.json") or {"state": "empty"}
        reached = [f"step {status['step']} of {status['steps']}"] if "step" in status else []
        result = self.result or {}
        reached += [f"{name} {result[name]:.4f}" for name in ("val/accuracy", "test/accuracy") if name in result]
        return f"Run({str(self.path)!r}): {', '.join([status['state'], *reached])}"

    def _repr_html_(self) -> str:
        """What IPython shows: the report page in a frame, so that its styles and scripts stay its own."""
        page = html.escape(_report(self.path).read_text(encoding="utf-8"))
        return (
            f'<div><iframe srcdoc="{page}" sandbox="allow-scripts" title="report of {html.escape(self.path.name)}" '
            'style="width: 100%; height: 760px; border: 1px solid #8884; border-radius: 6px;"></iframe></div>'
        )


def train(
    recipe: str | os.PathLike[str] = "finetune",
    *,
    run: str | os.PathLike[str] | None = None,
    processes: int = 1,
    restart: bool = False,
    extend_epochs: float = 0.0,
    **overrides: Any,
) -> Run:
    """Trains what `train.py --recipe RECIPE` would and shows how it goes; a finished run is returned at once.

    `run`: the run folder, anywhere, a mounted drive for example [runs/RECIPE-<8 hex of the recipe>]. `processes`: one
    for each GPU that should train. `restart`, `extend_epochs`: as on the command line. `overrides`: fields of the recipe, as
    `**{"data.limit": 2000}` or as `seed=1, data={"limit": 2000}`.

    The interrupt button stops it saved, and the same call goes on from there. Raises UserError for what can be mended,
    `following.Stopped` (a KeyboardInterrupt) where it was interrupted, `following.Failed` where it broke.
    """
    words = [f"--recipe={os.fspath(recipe)}", *_words(overrides)]
    words += ["--restart"] if restart else []
    words += [f"--extend-epochs={extend_epochs}"] if extend_epochs else []
    command, base = train_command(words)  # a mistake is told before anything is started
    positive_integer("processes", str(processes))
    folder = Path(run).expanduser() if run else _default_folder(command.recipe, base)
    wanted = extended(base, command.extend_epochs)
    if restart or not launcher.finished(RunDir(folder), wanted, extends=bool(extend_epochs)):
        process = launcher.start([*words, f"--run={folder}"], processes, quiet=is_notebook())
        run_monitor.follow(process, folder, is_shown=is_notebook())
    return Run(folder)


def _default_folder(name: str, base: Recipe) -> Path:
    """Where train.py would put the run."""
    from resnet_cifar.training import preflight

    precision, _ = launcher_env.resolve_precision(base.precision)
    resolved = preflight.resolved(dataclasses.replace(base, precision=precision))
    return default_run_path(name, resolved)


def show(run: str | os.PathLike[str]) -> None:
    """Shows the report of a run folder: in a notebook the page itself, elsewhere what it reached and where the page is.

    Raises UserError where it is no run folder.
    """
    found = Run(Path(run).expanduser())
    if not (found.path / "recipe.yaml").is_file():
        raise UserError(f"show: {found.path} is no run folder (it has no recipe.yaml): name a folder that train wrote")
    if not is_notebook():
        print(found)
        print(_report(found.path))
        return
    from IPython.display import HTML, display

    display(HTML(found._repr_html_()))


def is_notebook() -> bool:
    """Whether somebody sees HTML: behind a kernel (Jupyter, Colab, VS Code), not at a terminal."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython() if ipython else None, "kernel")


def _words(overrides: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The command line's words for Python values; nested dictionaries, and lists of them, are fields under a field."""
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _words(value, f"{above}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
            yield from _words({str(number): part for number, part in enumerate(value)}, f"{above}{name}.")
        else:
            yield f"--{above}{name}={_word(value)}"


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_word, value))
    return "null" if value is None else str(value)


def _report(run: Path) -> Path:
    """The run's page, written anew where it is older than what it is made from."""
    page = run / "report" / "index.html"
    newest = max(file.stat().st_mtime_ns for pattern in _SOURCES for file in run.glob(pattern))
    if page.is_file() and page.stat().st_mtime_ns >= newest:
        return page
    from resnet_cifar.reporting import run_report

    return run_report.write_run_report(run)
