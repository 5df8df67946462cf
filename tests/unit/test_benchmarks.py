"""benchmarks/: the whole harness on a tiny model. No figure is tested."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

import benchmarks.__main__ as command
from benchmarks import gpu, results, training
from benchmarks.step import Configuration

CONFIGURATION = Configuration("scratch", "cifar", 32, 64, "no", model="test_resnet", rounds=1, seconds=0.0)


@pytest.mark.proof_only
def test_a_rehearsal_measures_everything_and_keeps_nothing(capsys: pytest.CaptureFixture) -> None:
    """What training measures is left out here: the other rehearsal, below, does that."""
    before = {file: file.read_bytes() for file in results.FOLDER.iterdir()}
    assert command.main(["--rehearse", "--minutes", "0", "training", "pipeline", "startup"]) == 0
    said = capsys.readouterr().out
    for words in ("no time was left", "images/s resident", "with an empty cache"):
        assert words in said
    assert {file: file.read_bytes() for file in results.FOLDER.iterdir()} == before


def test_a_configuration_without_time_is_left_out_and_said() -> None:
    (found,) = training.measure("synthetic", time.monotonic() + 1, [CONFIGURATION])
    assert found["left_out"] == "no time was left" and found["model"] == "test_resnet"
    console = Console(width=160)
    with console.capture() as printed:
        results.show({"training": {"configurations": [found]}}, console)
    assert "no time was left" in printed.get()


def test_a_configuration_that_fails_says_why_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Configuration("scratch", "cifar", 32, 33, "no", model="test_resnet", rounds=1)
    (found,) = training.measure("synthetic", time.monotonic() + 60, [broken])
    assert found["left_out"] == "it failed"
    assert "batch_size 33" in found["error"]


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        command.main(["pipelin"])
    assert "'pipelin'" in capsys.readouterr().err


def test_figures_are_kept_beside_each_other_until_the_machine_changes(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    results.keep(file, "pipeline", "/somewhere/cifar10", {"x": 1})
    results.keep(file, "startup", "synthetic", {"y": 2})
    kept = json.loads(file.read_text())
    assert kept["pipeline"]["x"] == 1 and kept["startup"]["y"] == 2
    assert kept["pipeline"]["source"] == "cifar10", "the machine's folders stay out"
    assert {"commit", "time"} <= kept["startup"].keys() and "command" not in kept["environment"]
    file.write_text(json.dumps({**kept, "environment": {**kept["environment"], "cpu": "another"}}))
    results.keep(file, "startup", "synthetic", {"y": 3})
    assert json.loads(file.read_text()).keys() == {"environment", "startup"}


class TestGpuCheck:
    """benchmarks.gpu, as far as it goes without a GPU."""

    def test_a_rehearsal_goes_the_whole_way_and_keeps_nothing(
        self, capfd: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        before = sorted(results.FOLDER.iterdir())
        code = gpu.main(["--rehearse"])
        said = capfd.readouterr()
        assert code == 0, said.err
        assert "test_resnet" in said.out and "it failed" not in said.out
        assert "aten::convolution_backward" in said.out, "the trace's summary"
        assert "validation accuracy" in said.out and "test accuracy" in said.out
        assert "rehearsed: all is well" in said.out
        assert sorted(results.FOLDER.iterdir()) == before and not list(tmp_path.iterdir())

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_without_a_gpu_it_says_so(self, capsys: pytest.CaptureFixture) -> None:
        assert gpu.main([]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_the_whole_step_must_keep_up_with_the_bare_one(self) -> None:
        def found(share: float, compiled: bool = False) -> dict:
            return {"recipe": "scratch", "image_size": 32, "compiled": compiled, "whole_over_bare": share}

        (sentence,) = gpu.too_slow([found(0.971), found(0.969, compiled=True)])
        assert sentence == "scratch at 32 px, compiled trains at 96.9% of the bare step, under 97%"
        left_out = {**found(0.0), "left_out": "no time was left"}
        assert gpu.too_slow([left_out]) == []
        assert gpu.too_slow([{**left_out, "error": "out of memory"}]) == ["scratch at 32 px failed: out of memory"]

    def test_training_takes_the_way_that_gives_the_most_epochs(self) -> None:
        def way(compiled: bool, speed: float, first_steps: float) -> dict:
            speeds = {"whole": speed, "evaluation": 70_480.0}  # 0.1 s a score
            found = {"recipe": "scratch", "compiled": compiled, "images_per_second": speeds}
            return {**found, "seconds_of_first_steps": first_steps}

        eager, compiled = way(False, 4_500, 1), way(True, 9_000, 100)
        assert gpu.best_way([eager, compiled], 50_000, 146) == (8, eager)  # 90 s / 10.1 s
        assert gpu.best_way([eager, compiled], 50_000, 345) == (35, compiled)  # 180 s / 5.1 s
        assert gpu.best_way([eager], 50_000, 20) == (1, eager)
        assert gpu.best_way([eager], 50_000, 1e6) == (100, eager)

    def test_what_fails_in_the_tests_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said = "..F\nFAILED tests/gpu/test_gpu.py::test_x[bf16] - RuntimeError: called a synchronizing CUDA operation\n"
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, said))
        (failed,) = gpu.tests(collect_only=False, seconds=300)
        assert failed.startswith("tests/gpu/test_gpu.py::test_x[bf16] - RuntimeError")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 4, "no such folder"))
        assert gpu.tests(collect_only=True, seconds=300) == ["tests/gpu ended with 4"]
