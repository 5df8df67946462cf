"""`resnet-cifar tune`: each trial is trained once and judged by the validation split, also after a kill."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pretending
import pytest
import starting

from resnet_cifar.config.loading import read_recipe

ROOT = Path(__file__).parents[2]
INJECT = ROOT / "tests" / "faults" / "inject"
TINY = "debug --model.name test_resnet --data.image_size 32 --data.limit 200 --track.trackers none --track.report False"
TINY += " --run S"
REAL = f"{TINY} --phases.0.lr 1e-3..1e-1 --optimizer.name sgd,adamw"
PRETENDED = f"debug --track.trackers none --run S --launch 'python {pretending.__file__}'"


def tune(cwd: Path, words: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "resnet_cifar", "tune", *shlex.split(words)]
    return subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
    )


def hurt(cwd: Path, words: str, count: int, then: str) -> subprocess.CompletedProcess:
    """The same; its whole process group is given the signal `then` in update `count` of a start of train.py."""
    plan = {"journal": str(cwd / "journal"), "tester": os.getpid()}
    plan["faults"] = [{"rank": 0, "restart": 0, "at": "update", "count": count, "then": f"{then} launcher"}]
    return tune(cwd, words, FAULTS=json.dumps(plan), PYTHONPATH=f"{INJECT}{os.pathsep}{ROOT}")


def study(cwd: Path) -> dict[str, Any]:
    return json.loads((cwd / "S" / "study.json").read_text())


def states(cwd: Path) -> list[str]:
    return [trial["state"] for trial in study(cwd)["trials"]]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """A trial of 11 updates; the command was killed in the 10th, with all that it had started, and was given again."""
    cwd = tmp_path_factory.mktemp("killed")
    assert hurt(cwd, f"{REAL} --trials 1", 10, "SIGKILL").returncode == -9
    return cwd, tune(cwd, f"{REAL} --trials 1")


def test_a_search_goes_on_after_a_kill_with_the_trial_that_was_under_way(killed) -> None:
    cwd, done = killed
    assert done.returncode == 0, done.stderr
    assert states(cwd) == ["finished"]
    log = (cwd / "S" / "trial-000.log").read_text()
    assert "resuming at step 8," in log, "of 11, from its newest checkpoint"
    assert sorted(path.name for path in (cwd / "S").glob("trial-*")) == ["trial-000", "trial-000.log"]


def test_what_counts_is_the_validation_split_and_the_test_split_is_not_shown(killed) -> None:
    cwd, done = killed
    result = json.loads((cwd / "S" / "trial-000" / "result.json").read_text())
    assert result["val/accuracy"] != result["test/accuracy"], "or there is nothing to see"
    assert study(cwd)["trials"][0]["val/accuracy"] == result["val/accuracy"]
    said = done.stdout + json.dumps(study(cwd)) + (cwd / "S" / "journal.log").read_text()
    assert "test/" not in said
    assert f"{result['test/accuracy']:.4f}" not in done.stdout


def test_the_best_recipe_is_the_best_trials(killed) -> None:
    cwd, _ = killed
    best = study(cwd)["best"]
    written, trained = (read_recipe(str(cwd / "S" / name)) for name in ("best.yaml", f"trial-00{best}/recipe.yaml"))
    assert read_recipe(str(cwd / "S" / "best.yaml"), {"precision": trained.precision}) == trained
    assert written.precision == "auto"
    assert written.phases[0].lr == study(cwd)["trials"][best]["values"]["phases.0.lr"]


@pytest.mark.proof_only
def test_what_was_killed_ends_as_what_was_not(killed, tmp_path: Path) -> None:
    cwd, _ = killed
    for folder in (cwd, tmp_path):
        assert tune(folder, f"{REAL} --trials 2").returncode == 0
    assert study(tmp_path) == study(cwd)
    for number in (0, 1):
        starting.assert_same_run(str(cwd / "S" / f"trial-00{number}"), str(tmp_path / "S" / f"trial-00{number}"))


def test_ctrl_c_ends_the_trial_and_the_same_command_goes_on_with_it(tmp_path: Path) -> None:
    words = f"{PRETENDED} --phases.0.lr 1e-2..1 --optimizer.name adam --trials 1"
    stopped = tune(tmp_path, words)
    assert (stopped.returncode, stopped.stderr) == (75, "interrupted: rerun the same command to resume\n")
    assert states(tmp_path) == ["running"]
    done = tune(tmp_path, words)
    assert done.returncode == 0, done.stderr
    assert states(tmp_path) == ["finished"]
    assert json.loads((tmp_path / "S" / "trial-000" / "lease.json").read_text())["attempt"] == 2


def test_a_finished_search_is_told_again_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    words = f"{PRETENDED} --phases.0.lr 1e-2..1 --optimizer.name adamw"
    assert tune(tmp_path, f"{words} --trials 2").returncode == 0
    before = study(tmp_path)
    again = tune(tmp_path, f"{words} --trials 2")
    assert (again.returncode, "== trial" in again.stdout, study(tmp_path)) == (0, False, before)
    more = tune(tmp_path, f"{words} --trials 4").stdout
    assert re.findall(r"== trial (\d):", more) == ["2", "3"]
    assert study(tmp_path)["trials"][:2] == before["trials"]
    accuracies = [float(accuracy) for accuracy in re.findall(r"^\d +finished +(\S+)", more, re.MULTILINE)]
    assert len(accuracies) == 4
    assert accuracies == sorted(accuracies, reverse=True), "the best first"
    assert study(tmp_path)["importance"] == {"phases.0.lr": 1.0}
    assert "importance for the best trials (PED-ANOVA): phases.0.lr 1.00" in more
    assert read_recipe(str(tmp_path / "S" / "best.yaml")).phases[0].lr == pytest.approx(accuracies[0], abs=1e-4)


def test_a_search_by_loss_keeps_the_smallest(tmp_path: Path) -> None:
    words = f"{PRETENDED} --phases.0.lr 1e-2..1 --optimizer.name adamw --evaluate.select_by loss --trials 3"
    done = tune(tmp_path, words)
    assert done.returncode == 0, done.stderr
    found, losses = study(tmp_path), [trial["val/loss"] for trial in study(tmp_path)["trials"]]
    assert losses == [pytest.approx(2 * trial["values"]["phases.0.lr"]) for trial in found["trials"]]
    assert (found["metric"], found["best"]) == ("val/loss", losses.index(min(losses)))
    shown = re.findall(r"^\d +finished +(\S+)", done.stdout, re.MULTILINE)
    assert shown == [f"{loss:.4f}" for loss in sorted(losses)]
    assert re.findall(r"validation loss (\S+)", done.stdout) == [f"{loss:.4f}" for loss in losses]


def test_a_trial_that_fails_is_recorded_with_its_sentence_and_the_search_goes_on(tmp_path: Path) -> None:
    done = tune(tmp_path, f"{PRETENDED} --optimizer.name adamw,lamb,lion --trials 8")
    assert done.returncode == 0, done.stderr
    found = {trial["values"]["optimizer.name"]: trial for trial in study(tmp_path)["trials"][::-1]}
    assert {name: trial["state"] for name, trial in found.items()} == {
        "adamw": "finished", "lamb": "failed", "lion": "failed",
    }  # fmt: skip
    assert found["lamb"]["why"] == "optimizer.name 'lamb' is not liked: use another"
    assert found["lion"]["why"] == "RuntimeError: a lion"
    logs = list((tmp_path / "S").glob("*.log"))
    assert len([log for log in logs if log.name.startswith("trial")]) == 3, "what was tried is not trained again"


def test_a_trial_whose_values_contradict_each_other_is_not_started(tmp_path: Path) -> None:
    """Of a warm-up of 1 to 60 epochs and 1 to 60 epochs half are impossible."""
    words = f"{PRETENDED} --optimizer.name adamw --phases.0.epochs 1..60 --phases.0.warmup_epochs 1..60 --trials 3"
    done = tune(tmp_path, words)
    failed = [trial for trial in study(tmp_path)["trials"] if trial["state"] == "failed"]
    assert failed, done.stdout
    assert all(re.match(r"phases.0.warmup_epochs .* is longer than the phase's", trial["why"]) for trial in failed)
    assert len(list((tmp_path / "S").glob("trial-*.log"))) == 3 - len(failed)


def test_a_search_ends_where_every_trial_fails(tmp_path: Path) -> None:
    done = tune(tmp_path, f"{PRETENDED} --phases.0.lr 1e-2..1 --optimizer.name lion --trials 20")
    assert done.returncode == 1
    assert done.stderr == (
        "error: 3 trials in a row failed, see above: fix the cause, then rerun the same command to resume\n"
    )
    assert states(tmp_path) == ["failed"] * 3
    assert not (tmp_path / "S" / "best.yaml").exists()


def test_hopeless_trials_are_asked_to_end(tmp_path: Path) -> None:
    """Those with sgd do not end by themselves."""
    words = f"{PRETENDED} --phases.0.lr 1e-1..1 --optimizer.name adamw,sgd --trials 4 --prune 1"
    done = tune(tmp_path, words)
    assert done.returncode == 0, done.stderr
    numbers = [number for number, state in enumerate(states(tmp_path)) if state == "ended early"]
    statuses = [json.loads((tmp_path / "S" / f"trial-00{number}" / "status.json").read_text()) for number in numbers]
    assert {status["state"] for status in statuses} == {"interrupted"}
    ended = [study(tmp_path)["trials"][number] for number in numbers]
    assert {trial["values"]["optimizer.name"] for trial in ended} >= {"sgd"}
    assert {(trial["why"], trial["val/accuracy"]) for trial in ended} == {("below the median at evaluation 1", None)}
    assert "finished" in states(tmp_path)


def test_processes_share_the_trials_of_a_search(tmp_path: Path) -> None:
    """Each waits in its first trial until the other has one too."""
    (tmp_path / "met").mkdir()
    words = f"{PRETENDED} --phases.0.lr 1e-2..1 --optimizer.name adamw --trials 5 --parallel 2"
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: tune(tmp_path, words, MEET=str(tmp_path / "met")), range(2)))
    assert [done.returncode for done in both] == [0, 0], [done.stderr for done in both]
    started = sorted(path.name[:9] for path in (tmp_path / "met").iterdir())
    assert started == [f"trial-00{number}" for number in range(5)], "each once"
    own = [set(re.findall(r"== trial (\d+):", done.stdout)) for done in both]
    assert all(own)
    assert not own[0] & own[1]
    assert states(tmp_path) == ["finished"] * 5
    values = [json.dumps(trial["values"]) for trial in study(tmp_path)["trials"]]
    assert len(set(values)) == 5, "nobody repeats another's random numbers"


@pytest.mark.proof_only
def test_real_trials_diverge_and_are_ended_early(tmp_path: Path) -> None:
    """A rate of 1e30 diverges at once; one of 1e-12 learns nothing."""
    words = f"{TINY} --phases.0.lr 0.02,1e-12,1e30 --phases.1.lr 0.01 --trials 8 --prune 1"
    done = tune(tmp_path, words)
    assert done.returncode == 0, done.stderr
    found = {trial["values"]["phases.0.lr"]: trial for trial in study(tmp_path)["trials"][::-1]}
    assert found["1e30"]["state"] == "diverged"
    assert re.match(r"the loss of step \d+ is not finite", found["1e30"]["why"])
    assert found["0.02"]["state"] == "finished"
