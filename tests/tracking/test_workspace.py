"""The W&B workspace and report of `resnet-cifar dashboard`, as the real library sends them to a server that keeps them.

tests/tracking/workspace.json is the workspace as W&B stores it; after an intended change: `python test_workspace.py`.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_recipe_comparison import finished_run
from wandb_server import StoredRun, WandbServer

from resnet_cifar.cli import dashboard
from resnet_cifar.config.errors import UserError

GOLDEN = Path(__file__).parent / "workspace.json"


def tracked_run(folder: Path, identity: str, accuracy: float, seed: int, **fields: str) -> str:
    finished_run(folder, seed, accuracy, **fields)
    (folder / "wandb").mkdir()
    (folder / "wandb" / ".id").write_text(identity)
    return folder.name


def command(home: Path, server: WandbServer, *words: str) -> subprocess.CompletedProcess:
    """`resnet-cifar dashboard WORDS` of a user who has an account."""
    program = [sys.executable, "-m", "resnet_cifar", "dashboard", *words]
    env = {**os.environ, **server.account(), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(program, cwd=home, env=env, capture_output=True, text=True, timeout=120, check=False)


def spec(view: dict[str, Any]) -> dict[str, Any]:
    return json.loads(view["spec"])


def test_a_workspace_and_a_report_are_saved_once_and_nothing_else_is_touched(tmp_path: Path) -> None:
    a = tracked_run(tmp_path / "a", "id-a", 0.75, 0)
    b = tracked_run(tmp_path / "b", "id-b", 0.5, 0, **{"phases.0.lr": "0.02"})
    with WandbServer() as server:
        server.runs = {"p/id-a": StoredRun("p", "id-a"), "other/x": StoredRun("other", "x")}
        mine = {"type": "project-view", "name": "nw-mine-v", "displayName": "mine", "spec": "{}", "description": ""}
        theirs = {**mine, "name": "nw-resnetcifar-v", "project": {"name": "other", "entityName": "local"}}
        mine["project"] = {"name": "p", "entityName": "local"}
        server.views = [{"id": "mine", **mine}, {"id": "theirs", **theirs}]
        untouched = copy.deepcopy(server.views)

        done = command(tmp_path, server, "local/p", "--report", a, b)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(
            rf"workspace created: {server.url}/local/p\?nw=resnetcifar\n"
            rf"report created: {server.url}/local/p/reports/Comparison:-a,-b--view3\n",
            done.stdout,
        )
        workspace, report = server.views[2:]
        assert (workspace["type"], workspace["displayName"]) == ("project-view", "resnet-cifar")
        assert workspace["project"]["name"] == report["project"]["name"] == "p"
        assert spec(workspace) == json.loads(GOLDEN.read_text())
        text = report["spec"]
        assert (report["type"], report["displayName"]) == ("runs", "Comparison: a, b")
        assert "| phases.0.lr | 0.001 | 0.02 |" in text and "id-a" in text and "id-b" in text
        assert "| a | finished | 20 | 65.00 % | 75.0 % (10.0 % to 90.0 %) | 6 |" in text
        assert "| a | b | +0.00 | +0.00 to +0.00 | 0 and 0 of 6 | 1 |" in text  # McNemar's

        kept = copy.deepcopy(server.views)
        done = command(tmp_path, server, "local/p", "--report", a, b)
        assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
            "workspace unchanged",
            "report unchanged",
        ]
        assert server.views == kept

        broken = spec(server.views[2])
        del broken["section"]["panelBankConfig"]["sections"][0]
        server.views[2]["spec"] = json.dumps(broken)
        assert command(tmp_path, server, "local/p").stdout.startswith("workspace updated: ")
        assert server.views == kept and server.views[:2] == untouched

        done = command(tmp_path, server, "local/q")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "local/q is not a W&B project of yours: train a run with --track.project q" in done.stderr
        server.status = 401
        done = command(tmp_path, server, "local/p")
        assert done.returncode == 2 and re.search(r"error: http://[\d.:]+ refuses \(.*401.*\): check", done.stderr)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("local/p --local a", "--local is of the local page and local/p a W&B project: remove one of them"),
        ("local/p --out a.html", "--out is of the local page and local/p a W&B project: remove one of them"),
        ("p", "p is not a W&B project: name ENTITY/PROJECT, as in its address, or --local RUN"),
        ("https://wandb.ai/local/p", "is not a W&B project: name ENTITY/PROJECT"),
        ("local/p again", "'again' belongs to no option"),
        ("--report a", "--report is a report of W&B and needs its project"),
        ("local/p --report a", "--report a was not tracked by W&B: name runs of the project"),
        ("local/p --report nowhere", "nowhere is not a run directory"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(words: str, sentence: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    finished_run(Path("a"), 0, 0.5)
    with pytest.raises(UserError, match=re.escape(sentence)):
        dashboard.main(words.split())


def test_without_an_account_the_local_page_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"there is no account for http://127\.0\.0\.1:9: run `wandb login`"):
        dashboard.main(["local/p"])


if __name__ == "__main__":
    from resnet_cifar.reporting.dashboard import wandb_workspace

    found = wandb_workspace._spec(wandb_workspace.workspace("local", "p"))
    GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
