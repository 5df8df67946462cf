"""benchmarks/: the whole harness on a tiny model, the table of peaks, and what is counted. No figure is tested."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import benchmarks.__main__ as command
from benchmarks import arithmetic, results, training
from benchmarks.step import Configuration

CONFIGURATION = Configuration("scratch", "cifar", 32, 64, "no", model="test_resnet", rounds=1, seconds=0.0)


def test_a_rehearsal_measures_everything_and_keeps_nothing(run: Callable, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in results.FOLDER.iterdir()}
    done = run("-m", "benchmarks", "--rehearse", env={"COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    assert "test_resnet" in done.stdout and "it failed" not in done.stdout
    for said in ("times", "with an empty cache", "scored/s"):
        assert said in done.stdout
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


@pytest.mark.parametrize(
    ("device", "precision", "tf32", "teraflops"),
    [
        ("NVIDIA H200", "bf16", False, 989.4),
        ("NVIDIA H200", "no", True, 494.7),
        ("NVIDIA H200", "no", False, 67),
        ("NVIDIA H200 NVL", "fp16", False, 835.5),
        ("NVIDIA A100-SXM4-80GB", "bf16", False, 312),
        ("NVIDIA A10", "bf16", False, 125),
        ("NVIDIA A10G", "bf16", False, None),
        ("NVIDIA L4", "no", True, 60),
        ("Tesla T4", "no", True, 8.1),  # it has no TF32
        ("NVIDIA H200 MIG 1g.18gb", "bf16", False, None),
        ("NVIDIA H200", "fp64", False, None),
        ("A device of next year", "bf16", False, None),
    ],
)
def test_the_peak_of_a_device(device: str, precision: str, tf32: bool, teraflops: float | None) -> None:
    found = arithmetic.peak(device, precision, tf32)
    assert found == (None if teraflops is None else pytest.approx(teraflops * 1e12))


def test_a_resnet50_at_224_has_the_arithmetic_that_is_known_of_it() -> None:
    """4.1 GMAC forward (He et al. 2015, table 1, count 3.8 without the shortcuts), and twice that backward."""
    recipe = Configuration("finetune", "imagenet", 224, 64, "no").read("synthetic")
    assert arithmetic.flops_an_image(recipe, 1000) == pytest.approx(3 * 2 * 4.1e9, rel=0.02)
