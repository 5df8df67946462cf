"""`resnet-cifar scale` on real processes: the page, scaling.json, and the plan that uses it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState

from resnet_cifar.cli import scale
from resnet_cifar.cli import train as cli_train
from resnet_cifar.distributed import signals
from resnet_cifar.training import trainer
from resnet_cifar.training.scaling_model import ScalingModel

RECIPE = ["--recipe", "debug", "--model.name", "test_resnet", "--data.image_size", "32", "--track.trackers", "none"]
RECIPE += ["--model.stem", "auto"]  # the plan is compared after such fields are resolved


class NoStop:
    """In place of StopSignals, which would handle the signals of this process."""

    def hand_over(self, answer: Callable[[str], None]) -> None:
        """Nothing."""


def scaled(cwd: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "resnet_cifar", "scale", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where one process was measured in this process, and then two by the command, which adds to the results."""
    home = tmp_path_factory.mktemp("scaling")
    AcceleratorState._reset_state(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(signals, "StopSignals", NoStop)
        scale.main([*RECIPE, "--launched", "--seconds", "0.05", "--out", "out"])
    AcceleratorState._reset_state(True)
    done = scaled(home, "--processes", "2", "--out", "out", "--seconds", "0.05", *RECIPE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 processes: 32 images each, ")
    yield home


@pytest.fixture(scope="module")
def scaling(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out/scaling.json").read_text())


def test_both_worlds_are_measured_with_the_shares_of_strong_and_weak_scaling(scaling: dict[str, Any]) -> None:
    assert set(scaling["efficiency"]) == {"1", "2"}
    assert scaling["efficiency"]["1"] == 1 and 0 < scaling["efficiency"]["2"] < 3
    for processes, world in scaling["worlds"].items():
        assert world["processes"] == int(processes) and world["machines"] == 1
        assert [point["images_per_device"] for point in world["points"]] == [32, 16, 8]  # down to one BatchNorm group
        for point in world["points"]:
            assert point["rounds"] >= 3 and point["local_seconds"] > 0 and 0 <= point["communication_share"] < 1
        assert world["plan"]["steps"] == 11 and world["plan"]["unit"] == 8
    assert scaling["worlds"]["1"]["points"][0]["communication_share"] == 0
    assert scaling["strong"][1]["images_per_device"] == 16 and scaling["weak"][1]["batch_size"] == 64


def test_two_processes_measure_communication_and_its_variants(scaling: dict[str, Any]) -> None:
    alone, pair = scaling["worlds"]["1"], scaling["worlds"]["2"]
    assert alone["all_reduce"] == [] and alone["variants"] == []
    sizes = [each["bytes"] for each in pair["all_reduce"]]
    assert sizes[0] == 32 * 1024 and sizes == [sizes[0] * 2**power for power in range(len(sizes))]
    assert sizes[-1] == 2**30 or re.match(
        rf"{2 * sizes[-1] / 2**20:g} MiB and more take longer", pair["all_reduce_stopped"]
    )
    for each in pair["all_reduce"]:
        assert each["bus_bytes_per_second"] == pytest.approx(each["bytes"] / each["seconds"])
    names = [each["name"] for each in pair["variants"]]
    assert names == ["buckets of 1 MiB", "buckets of 100 MiB", "gradients in bf16"]
    assert scaling["model"]["machine"]["bandwidth"] > 0 and scaling["model"]["network"] is None


def test_the_gradients_are_those_of_the_model(scaling: dict[str, Any]) -> None:
    import timm

    model = timm.create_model("test_resnet", num_classes=10)
    model.conv1 = torch.nn.Conv2d(3, 32, 3, bias=False)  # the stem that `auto` takes at 32 pixels
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert scaling["worlds"]["2"]["plan"]["gradient_bytes"] == 4 * weights


def test_the_page_is_written_beside_the_results(folder: Path, scaling: dict[str, Any]) -> None:
    page = (folder / "out/index.html").read_text()
    assert "written by resnet-cifar scale" in page
    assert f"{100 * scaling['efficiency']['2']:.1f}" in page
    assert sorted(path.name for path in folder.iterdir()) == ["out"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["index.html", "scaling.json"]


def test_a_plan_of_more_devices_uses_the_measurements(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    words = [*RECIPE, "--run", "r", "--dry-run", "--scaling", "out/scaling.json", "--scaling-devices", "4"]
    words += ["--micro_batch", "8"]
    AcceleratorState._reset_state(True)
    trainer.train(*reversed(cli_train.parse_arguments(words)), NoStop())
    AcceleratorState._reset_state(True)
    said = capsys.readouterr().out
    assert re.search(
        r"^scaling +4 devices: about [\d,.]+ images/s, \d+% efficiency, .* device-hours", said, re.MULTILINE
    )
    assert re.search(
        r"^ +(batch_size \d+ is the smallest that keeps|no batch size keeps) 90% efficiency on 4 devices",
        said,
        re.MULTILINE,
    )
    assert not (folder / "r").exists()


@pytest.mark.proof_only
def test_the_step_without_synchronization_reduces_nothing(launch, tmp_path: Path) -> None:
    """1.4 MiB of gradients: DDP's first bucket of 1 MiB and the rest, as the model counts them."""
    done = launch(tmp_path, Path(__file__).with_name("reducing.py"))
    assert done.returncode == 0, done.stderr
    counts = json.loads(re.search(r"^reductions (.*)$", done.stderr, re.MULTILINE)[1])
    assert counts["step"] == ScalingModel(1_494_632, 2, 0.0, 0.0).buckets == 2
    assert counts["local"] == 0
    assert counts["buckets of 100 MiB"] == 1
    assert counts["gradients in bf16"] == 2


@pytest.mark.proof_only
def test_a_measurement_ends_with_the_command_that_has_started_it(tmp_path: Path) -> None:
    """However that ends: nobody is left who would use the devices."""
    command = [sys.executable, "-m", "resnet_cifar", "scale", "--processes", "2", "--seconds", "600", *RECIPE]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    below: list[psutil.Process] = []
    try:
        while len(below) < 3:  # the launcher and two processes
            assert process.poll() is None
            below = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.communicate()
    assert psutil.wait_procs(below, 60)[1] == []


@pytest.mark.proof_only
def test_one_to_four_processes_and_the_error_of_a_held_back_world(tmp_path: Path, record) -> None:
    """More processes than cores are measured and shown, and left out of the model."""
    words = ["--processes", "1,2,3,4", "--out", "out", "--seconds", "2", *RECIPE]
    done = scaled(tmp_path, *words, "--batch_size", "96", "--micro_batch", "0")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/scaling.json").read_text())
    assert list(found["efficiency"]) == ["1", "2", "3", "4"]
    cores = len(os.sched_getaffinity(0))
    assert [world["shares_cores"] for world in found["worlds"].values()] == [n > cores for n in (1, 2, 3, 4)]
    record(
        "scaling, gloo on CPUs",
        cores=cores,
        strong={n: round(value, 3) for n, value in found["efficiency"].items()},
        weak={str(row["processes"]): round(row["efficiency"], 3) for row in found["weak"]},
        communication={str(row["processes"]): round(row["communication_share"], 3) for row in found["strong"]},
        held_back=found["model"]["held_back"],
    )
