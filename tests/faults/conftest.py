"""Runs to hurt, and the undisturbed ones that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty import FaultyRun, Reference


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rounds(short, long): how often the test runs in CI, and for the proof")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`@pytest.mark.rounds(short, long)`: the values of a test's argument `number`, in CI and for the proof."""
    if marker := metafunc.definition.get_closest_marker("rounds"):
        short, long = marker.args
        count = long if metafunc.config.getoption("--proof") else short
        metafunc.parametrize("number", range(1, count + 1), ids=[f"round{n}" for n in range(1, count + 1)])


@pytest.fixture
def hurt_run(tmp_path: Path) -> Iterator[Callable[..., FaultyRun]]:
    """Makes runs in the test's folder; what is left of their processes ends with the test."""
    made: list[FaultyRun] = []

    def make(processes: int = 1, name: str = "", **more: object) -> FaultyRun:
        home = tmp_path / (name or f"run{len(made)}")
        home.mkdir()
        made.append(FaultyRun(home, processes, **more))
        return made[-1]

    yield make
    for run in made:
        run.end()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Reference]:
    """The finished run of this many processes, made when it is first asked for."""
    made: dict[int, Reference] = {}

    def reference(processes: int = 1) -> Reference:
        if processes not in made:
            run = Reference(tmp_path_factory.mktemp(f"undisturbed{processes}"), processes)
            run.finish()
            made[processes] = run
        return made[processes]

    return reference
