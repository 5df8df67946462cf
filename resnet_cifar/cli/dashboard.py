"""`resnet-cifar dashboard`: a page of runs that updates itself while they go on, or the same as a W&B workspace."""

from __future__ import annotations

import importlib.util
import re
import signal
import threading
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_cifar import wandb_env
from resnet_cifar.cli.parser import check_page, parse
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import is_digits
from resnet_cifar.tracking.base import kept_identity

if TYPE_CHECKING:
    from resnet_cifar.reporting.dashboard.view import Dashboard

_USAGE = "resnet-cifar dashboard --local RUN... [--out FILE.html | --port PORT]"
_WANDB_USAGE = "resnet-cifar dashboard ENTITY/PROJECT [--report RUN...]"
_INTERVAL = 2.0  # seconds between looks at the run directories
_IDLE_FACTOR = 10  # ... or this many times as long as a look took: training needs the processor
_TITLE = 128  # characters that W&B allows
_RELOAD = 5  # seconds after which a file that still changes loads itself again


@dataclass(frozen=True)
class DashboardOptions:
    """Show runs on one page that updates itself while they go on, without an account (--local): curves, speed,
    predictions, seeds, sweeps and attempts. It is served to browsers of this machine until Ctrl-C, or written to a
    file. Or give a W&B project a saved workspace with the same sections."""

    project: str = field(default="", metadata={"positional": True})
    """ENTITY/PROJECT: create or update the workspace `resnet-cifar` of this W&B project, and print its address."""
    report: tuple[str, ...] = ()
    """Runs of that project, as directories: also create or update a W&B report that compares them."""
    local: tuple[str, ...] = ()
    """Run directories, and directories that hold runs: those of seeds and searches, also while runs are added."""
    out: str = ""
    """Write this file instead, and rewrite it until no run goes on."""
    port: str = ""
    """The port of 127.0.0.1 to listen on [default: any free one]."""


def parse_arguments(arguments: list[str]) -> DashboardOptions:
    """The options. Exits after --help; raises UserError."""
    options, _ = parse(DashboardOptions, f"{_USAGE}\n       {_WANDB_USAGE}", arguments)
    if options.project:
        _check_project(options)
        return options
    if options.report:
        raise UserError(f"--report is a report of W&B and needs its project: {_WANDB_USAGE}")
    if not options.local:
        raise UserError(f"--local or a W&B project is missing: name runs, {_USAGE}, or {_WANDB_USAGE}")
    for path in map(Path, options.local):
        if not path.is_dir():
            raise UserError(f"--local {path} is not a directory: name a run directory, or one that holds runs")
    if options.out and options.port:
        raise UserError(f"--out writes a file and --port {options.port} serves the page: remove one of them")
    if options.port and not (is_digits(options.port) and int(options.port) <= 65535):
        raise UserError(f"--port cannot be {options.port!r}: it should be a number up to 65535, such as 8000")
    check_page(Path(options.out), "dashboard")
    return options


def _check_project(options: DashboardOptions) -> None:
    for name in ("local", "out", "port"):
        if getattr(options, name):
            raise UserError(f"--{name} is of the local page and {options.project} a W&B project: remove one of them")
    if not re.fullmatch(r"[\w.-]+/[\w. -]+", options.project):
        raise UserError(
            f"{options.project} is not a W&B project: name ENTITY/PROJECT, as in its address, or --local RUN"
        )
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("dashboard needs the package wandb-workspaces: pip install -e '.[trackers]'")
    wandb_env.check_variables()
    if not wandb_env.has_account():
        raise UserError(
            f"there is no account for {wandb_env.endpoint()}: run `wandb login`, or set WANDB_API_KEY; "
            "resnet-cifar dashboard --local RUN needs none"
        )


def main(arguments: list[str]) -> None:
    """Serves the page until SIGINT or SIGTERM, or writes it until no run goes on; or saves a workspace of W&B.

    Raises UserError.
    """
    options = parse_arguments(arguments)
    if options.project:
        _save(options)
        return

    from resnet_cifar.reporting.dashboard.view import Dashboard, relative_link

    roots, ended = [Path(path) for path in options.local], threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: ended.set())
    if options.out:
        _write(Dashboard(roots, relative_link(Path(options.out))), Path(options.out), ended)
        return

    from resnet_cifar.cli.dashboard_server import DashboardServer, report_address

    try:
        server = DashboardServer(Dashboard(roots, report_address), int(options.port or 0), _INTERVAL, _IDLE_FACTOR)
    except OSError as error:
        raise UserError(
            f"--port {options.port} cannot be used ({error.strerror}): choose another, or leave it out"
        ) from None
    with server:
        print(f"listening on http://127.0.0.1:{server.server_port} (Ctrl-C ends it)", flush=True)
        ended.wait()
    print("ended", flush=True)


def _save(options: DashboardOptions) -> None:
    """Creates or updates the workspace and the report; prints their addresses. Raises UserError."""
    from resnet_cifar.cli.compare import runs_of
    from resnet_cifar.reporting import comparison_report
    from resnet_cifar.reporting.comparison_table import read_runs, unique_names
    from resnet_cifar.reporting.dashboard import wandb_workspace

    folders = [folder for word in options.report for folder in runs_of(Path(word))]
    identities, runs = [_wandb_id(folder) for folder in folders], read_runs(folders)
    title = f"Comparison: {', '.join(unique_names(folders))}" if runs else ""
    if len(title) > _TITLE:  # still one for each set of runs
        title = f"Comparison of {len(runs)} runs {zlib.crc32(' '.join(identities).encode()):08x}"
    sections = comparison_report.markdown_sections(runs) if runs else []
    entity, _, project = options.project.partition("/")
    try:
        print("workspace {}: {}".format(*wandb_workspace.save_workspace(entity, project)), flush=True)
        if runs:
            print("report {}: {}".format(*wandb_workspace.save_report(entity, project, title, sections, identities)))
    except UserError:
        raise
    except Exception as error:  # W&B's errors have no class in common
        reason = " ".join(str(error).split())
        raise UserError(f"{wandb_env.endpoint()} refuses ({reason}): check the account and the network") from None


def _wandb_id(run: Path) -> str:
    if (identity := kept_identity(run / "wandb" / ".id")) is None:
        raise UserError(f"--report {run} was not tracked by W&B: name runs of the project, trained with its tracker")
    return identity


def _write(dashboard: Dashboard, file: Path, ended: threading.Event) -> None:
    """Writes the page, again whenever runs have changed, until none goes on."""
    from resnet_cifar.reporting import html_page

    written = None
    while True:
        began = time.monotonic()
        view = dashboard.look()
        if view is not written:
            try:
                html_page.write_page(file, dashboard.page(view, reload=_RELOAD))
            except OSError as error:
                raise UserError(f"--out {file} cannot be written ({error.strerror}): name another file") from None
            if written is None:
                until = ", and again until no run goes on (Ctrl-C ends it)" if view.is_live else ""
                print(f"written: {file}{until}", flush=True)
            written = view
        if not view.is_live or ended.wait(max(_INTERVAL, _IDLE_FACTOR * (time.monotonic() - began))):
            return
