"""A run that `resnet_cifar.train` follows, stopped by the notebook's interrupt button and by the notebook's end."""

from __future__ import annotations

import sys

import pytest
from faulty import RECIPE, FaultyRun, Start, fault

SETTINGS = {name.removeprefix("--"): value for name, value in RECIPE.items() if name != "--recipe"} | {
    "track.trackers": "none"
}
SCRIPT = f"""
import resnet_cifar
from resnet_cifar.sweeps.run_monitor import Interrupted

try:
    print("--", resnet_cifar.train({RECIPE["--recipe"]!r}, run="RUN", **{SETTINGS!r}))
except Interrupted as stopped:
    print("--", *stopped._render_traceback_())
"""


def follow(run: FaultyRun, *faults: dict) -> str:
    """What the script says of the run in the end, when all that it started has ended."""
    start = Start([sys.executable, "-c", SCRIPT], run.home, f"start-{len(run.starts) + 1}", faults, {})
    run.starts.append(start)
    start.wait()
    start.check_fired()
    assert "Traceback" not in start.said, start.said
    return start.stdout.rpartition("-- ")[2].strip()


@pytest.mark.proof_only
def test_an_interrupt_is_handed_on_and_the_same_call_goes_on(hurt_run, undisturbed) -> None:
    run = hurt_run()
    said = follow(run, fault("update", 20, "SIGINT launcher"))
    status = run.status
    assert (status["state"], status["why"]) == ("interrupted", "SIGINT")
    where = f"at step {status['step']} of {status['steps']}"
    assert said == f"interrupted (SIGINT) and saved {where}: call again to resume"
    assert follow(run).startswith("Run('RUN'): finished, step 39 of 39")
    undisturbed().check_equal(run)


@pytest.mark.proof_only
def test_a_run_whose_notebook_is_killed_stops_saved(hurt_run) -> None:
    run = hurt_run()
    follow(run, fault("update", 20, "SIGKILL launcher"))
    status = run.status
    assert (status["state"], status["why"]) == ("interrupted", "the end of the process that monitors it")
    assert status["step"] >= 20
