"""Ctrl-C at any moment: SIGINT to the foreground process group leaves no orphan and no torn file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import safetensors
from faulty import RECIPE, TRY_AGAIN, FaultyRun, Start, fault

MOMENTS = [fault("import", 1, "SIGINT launcher"), fault("save", 9, "SIGINT launcher")]
MOMENTS += [fault("evaluation", 4, "SIGINT launcher")]  # in an update: the seeds below


def check_nothing_torn(folder: Path) -> None:
    """Fails where a file is half written, or was left beside the one that it should have become."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path.name for path in files if ".writing" in path.name or ".building" in path.name] == []
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            assert [json.loads(line)["step"] for line in path.read_text().splitlines()]
        elif path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as tensors:
                assert tensors.keys()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.proof_only)])
def test_ctrl_c_leaves_no_orphan_and_no_torn_file(hurt_run, processes: int) -> None:
    run = hurt_run(processes)
    for moment in MOMENTS:
        code, start = run.hurt(moment)  # fails where a process outlives the command
        assert code == (TRY_AGAIN if processes == 1 else 1), start.said
        assert start.errors == []
        if moment["at"] == "import":
            assert not run.folder.exists()
            continue
        assert (run.status["state"], run.status["why"]) == ("interrupted", "SIGINT")
        run.check_whole()
        check_nothing_torn(run.folder)


def test_ctrl_c_ends_the_seed_that_trains_and_the_rest(tmp_path: Path) -> None:
    words = [str(word) for pair in RECIPE.items() for word in pair if word not in ("--recipe", "debug")]
    words += ["--track.trackers", "none", "--track.report", "False", "--run", "S", "--seeds", "0..2"]
    command = [sys.executable, "-m", "resnet_cifar", "seeds", "debug", *words]
    start = Start(command, tmp_path, "start", (fault("update", 3, "SIGINT launcher"),), {})
    try:
        assert start.wait() == TRY_AGAIN, start.said
    finally:
        start.end()
    start.check_fired()
    saved = FaultyRun(tmp_path, run=tmp_path / "S" / "seed-0")
    assert (saved.status["state"], saved.status["why"]) == ("interrupted", "SIGINT")
    saved.check_whole()
    check_nothing_torn(tmp_path / "S")
    assert [path.name for path in (tmp_path / "S").iterdir()] == ["seed-0"]
    assert "interrupted: rerun the same command to resume" in start.stderr
    assert start.stdout.count("not run") == 2
