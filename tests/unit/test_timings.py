"""training/timings.py, with a clock that the test moves."""

from __future__ import annotations

import time

import pytest

from resnet_cifar.training.timings import Timings


def test_every_second_belongs_to_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    timings = Timings()
    imports = timings.seconds()["imports"]
    assert imports > 0, "the process is older than the timings"
    clock[0] += 1
    with timings.part("steps"):
        clock[0] += 2
        with pytest.raises(KeyError), timings.part("evaluation"):
            clock[0] += 4
            raise KeyError
        clock[0] += 8
        with timings.part("evaluation"):
            clock[0] += 16
    clock[0] += 32
    assert timings.seconds() == {"imports": imports, "other": 33, "steps": 10, "evaluation": 20}
