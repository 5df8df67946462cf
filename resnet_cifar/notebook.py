"""Training and reports in a notebook: `resnet_cifar.train("scratch", ...)` and `resnet_cifar.show(RUN)`.

Training runs in a process of its own, as from the command line: its memory is freed when it ends, several GPUs work,
and it does not depend on what the notebook does with CUDA. IPython is imported only in a notebook.
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
from resnet_cifar.checkpoints.run_dir import RunDir, check_version, default_run_path
from resnet_cifar.cli.entry import escape_what_the_console_lacks
from resnet_cifar.cli.train import parse_arguments
from resnet_cifar.config import synonyms
from resnet_cifar.config.diff import field_paths
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import is_field
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions, extended
from resnet_cifar.config.validation import unknown_field
from resnet_cifar.distributed import launcher_env
from resnet_cifar.sweeps import launcher, run_monitor

# The inputs of a report; a page that is older than one of these is rewritten.
_SOURCES = ("recipe.yaml", "environment.json", "status.json", "attempts.json", "metrics.jsonl", "result.json")
_SOURCES += ("eval-*", "predictions-*", "report/pictures-*.npz")


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A run directory, usable as a path. A notebook displays its report."""

    path: Path

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None if the run is not finished."""
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
        """The report in an iframe, which isolates its styles and scripts, for IPython."""
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
    refit: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> Run:
    """Trains like `train.py --recipe RECIPE` and shows the progress; a finished run is returned immediately.

    `run`: the run directory [runs/RECIPE-<8 hex digits of the recipe>]. `processes`: one per GPU. `restart`,
    `extend_epochs`, `refit` (instead of a recipe): as on the command line. `overrides`: fields of the recipe, as
    `**{"data.limit": 2000}` or as `seed=1, data={"limit": 2000}`.

    The interrupt button saves and stops; call again to resume. Raises UserError, `run_monitor.Interrupted` (a
    KeyboardInterrupt) or `run_monitor.Failed`.
    """
    escape_what_the_console_lacks()
    words = [f"--refit={os.fspath(refit)}" if refit else f"--recipe={os.fspath(recipe)}", *_words(overrides)]
    words += ["--restart"] if restart else []
    words += [f"--extend-epochs={extend_epochs}"] if extend_epochs else []
    options, base = parse_arguments(words)  # raises UserError before anything is started
    if not (isinstance(processes, int) and processes > 0):
        raise UserError(f"processes cannot be {processes!r}: it should be a whole number above 0")
    chosen = run or options.run
    folder = Path(chosen).expanduser() if chosen else _default_run_path(options.recipe, base)
    run_dir, extends = RunDir(folder), options.extend_epochs
    wanted = base if run_dir.is_extending(base, options.recipe, extends) else extended(base, extends)
    if restart or not launcher.finished(run_dir, wanted, extends=bool(extends)):
        process = launcher.start([*words, f"--run={folder}"], processes, quiet=is_notebook())
        run_monitor.follow(process, folder, is_shown=is_notebook())
    return Run(folder)


def _default_run_path(name: str, base: Recipe) -> Path:
    """The run directory that train.py chooses."""
    from resnet_cifar.training import preflight

    precision, _ = launcher_env.resolve_precision(base.precision)
    resolved = preflight.resolve(dataclasses.replace(base, precision=precision))
    return default_run_path(name, resolved)


def show(run: str | os.PathLike[str]) -> None:
    """Shows the report of a run: in a notebook the page itself, elsewhere its results and the path of the page.

    Raises UserError if `run` is not a run directory of this version.
    """
    escape_what_the_console_lacks()
    found = Run(Path(run).expanduser())
    check_version(found.path)
    if not (found.path / "recipe.yaml").is_file():
        raise UserError(f"show: {found.path} is not a run directory (it has no recipe.yaml): name one that train wrote")
    if not is_notebook():
        print(found)
        print(_report(found.path))
        return
    from IPython.display import HTML, display

    display(HTML(found._repr_html_()))


def is_notebook() -> bool:
    """Whether HTML is displayed: with a kernel (Jupyter, Colab, VS Code), not at a terminal."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython() if ipython else None, "kernel")


def _leaves(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(field path, value) of Python values; nested dictionaries, and lists of them, are nested fields."""
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
            yield from _leaves({str(number): part for number, part in enumerate(value)}, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _words(overrides: Mapping[str, Any]) -> Iterator[str]:
    """Words of the command line. Raises UserError for an unknown field."""
    options = [field.name for field in dataclasses.fields(TrainOptions)]
    for name, value in _leaves(overrides):
        if not is_field(name) and name not in options:
            known = [*(option.replace("_", "-") for option in options), *field_paths()]
            raise UserError(unknown_field(name, name, value, known, synonyms.as_python))
        yield f"--{name}={_word(value)}"


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_word, value))
    return "null" if value is None else str(value)


def _report(run: Path) -> Path:
    """The path of the report, which is rewritten if it is older than its inputs."""
    page = run / "report" / "index.html"
    newest = max(file.stat().st_mtime_ns for pattern in _SOURCES for file in run.glob(pattern))
    if page.is_file() and page.stat().st_mtime_ns >= newest:
        return page
    from resnet_cifar.reporting import run_report

    return run_report.write_run_report(run)
