"""Measured fields of rows, GPU-hours and energy, with a clock, a GPU and an NVML that are made up."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.validation import parse
from resnet_cifar.data import image_dataset
from resnet_cifar.data.image_dataset import ImageDataset, MmapImages
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.reporting.console import Screen
from resnet_cifar.training import finalize, flops, telemetry
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.telemetry import Telemetry

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BATCH = 32
RECIPE = parse(
    {
        "batch_size": BATCH,
        "data": {"image_size": 32},
        "model": {"name": "test_resnet", "pretrained": False},
        # Ten steps of the head, ten of everything, ten of it at 48 pixels.
        "phases": [
            {"epochs": 1, "lr": 0.1, "trainable": "head"},
            {"epochs": 1, "lr": 0.1},
            {"epochs": 1, "lr": 0.1, "image_size": 48},
        ],
    }
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`seconds` is what every clock shows."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("time.perf_counter", lambda: now.seconds)
    return now


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What torch says of a GPU: `peak` bytes of memory since the last reset."""
    found = SimpleNamespace(name="NVIDIA H100 80GB HBM3", peak=0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: found.name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234-5678"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: found.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(found, "peak", 0))
    return found


def context(
    device: torch.device = CPU, size: int = 1, precision: str = "no", uses_tf32: bool = False
) -> SimpleNamespace:
    return SimpleNamespace(
        device=device, size=size, precision=precision, uses_tf32=uses_tf32, all_reduce_sum_=lambda value: value * size
    )


def images(held: torch.Tensor | MmapImages, count: int = 320) -> ImageDataset:
    return ImageDataset(held, torch.zeros(count, dtype=torch.int64), np.arange(count))


def start(its_world: SimpleNamespace, train: ImageDataset | None = None) -> Telemetry:
    image_dataset = images(torch.zeros(320, 8, 8, 3, dtype=torch.uint8))
    data = ImageData(train or image_dataset, image_dataset, image_dataset, tuple("abcdefghij"), "f00d")
    return Telemetry(Plan(RECIPE, 320, its_world.size), its_world, data)


def test_on_a_cpu_a_row_has_its_speed_and_the_share_of_waiting(clock: SimpleNamespace) -> None:
    measured = start(context())
    measured.start(4)
    clock.seconds += 2
    assert measured.row(6) == {"images_per_second": 2 * BATCH / 2, "wait_share": 0.0}
    assert measured.energy_kwh() is None


def test_scores_and_checkpoints_count_for_the_share_of_waiting_and_not_for_the_speed(clock: SimpleNamespace) -> None:
    measured = start(context())
    clock.seconds += 1
    assert measured.row(1)["wait_share"] == 0.0
    with measured.waiting():
        clock.seconds += 2
    clock.seconds += 1
    measured.exclude(3)
    clock.seconds += 5
    assert measured.row(6) == {"images_per_second": 5 * BATCH / 5, "wait_share": 2 / 8}
    clock.seconds += 1
    assert measured.row(7) == {"images_per_second": BATCH, "wait_share": 0.0}, "each row counts its own"


def test_waits_for_images_on_disk_count_and_reads_that_are_done_do_not(
    clock: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "images.npy", np.zeros((320, 8, 8, 3), dtype=np.uint8))
    train = images(MmapImages([(tmp_path / "images.npy", np.arange(320))], CPU))
    measured = start(context(), train)
    asked = train.prefetch(np.arange(4))
    image_dataset.wait([asked.images._reading])
    asked.images(image_dataset.ALL)
    clock.seconds += 1
    assert measured.row(1)["wait_share"] == 0.0

    def take_three_seconds(reading: list) -> None:
        clock.seconds += 3

    asked = train.prefetch(np.arange(4))
    asked.images._reading.result()
    monkeypatch.setattr(asked.images._reading, "done", lambda: False)
    monkeypatch.setattr(image_dataset, "wait", take_three_seconds)
    assert len(asked.images(image_dataset.ALL)) == 4
    clock.seconds += 1
    assert measured.row(2)["wait_share"] == 3 / 4


class TestOnAGpu:
    def test_mfu_is_that_of_all_devices(self, clock: SimpleNamespace, gpu: SimpleNamespace) -> None:
        measured = start(context(GPU, size=4, precision="bf16"))
        measured.start(10)
        clock.seconds += 0.5
        row = measured.row(14)
        assert row["images_per_second"] == 4 * BATCH / 0.5
        an_image = flops.flops_an_image(RECIPE, 10)
        assert row["mfu"] == pytest.approx(row["images_per_second"] * an_image / (4 * 989.4e12))

    def test_mfu_counts_what_trains_at_its_size_in_each_update(
        self, clock: SimpleNamespace, gpu: SimpleNamespace
    ) -> None:
        measured = start(context(GPU, precision="bf16"))
        clock.seconds += 1
        row = measured.row(30)
        kinds = (32, "head"), (32, "all"), (48, "all")
        mean = sum(flops.flops_an_image(RECIPE, 10, *kind) for kind in kinds) / 3
        assert row["mfu"] == pytest.approx(30 * BATCH * mean / 989.4e12)

    @pytest.mark.parametrize(("is_on", "teraflops"), [(True, 494.7), (False, 67)])
    def test_float32s_peak_is_tf32s_only_where_that_is_on(
        self,
        is_on: bool,
        teraflops: float,
        clock: SimpleNamespace,
        gpu: SimpleNamespace,
    ) -> None:
        measured = start(context(GPU, uses_tf32=is_on))
        measured.start(10)
        clock.seconds += 1
        assert measured.row(11)["mfu"] == pytest.approx(BATCH * flops.flops_an_image(RECIPE, 10) / (teraflops * 1e12))

    def test_without_a_known_peak_there_is_no_mfu_and_nothing_is_counted(
        self, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(flops, "flops_an_image", None)
        gpu.name = "A device of next year"
        assert start(context(GPU)).row(1).keys() == {"images_per_second", "memory_gib", "wait_share"}

    def test_memory_is_the_peak_since_the_row_before(self, gpu: SimpleNamespace) -> None:
        gpu.peak = 7 * 2**30
        measured = start(context(GPU))  # what was allocated before is not counted
        gpu.peak = 3 * 2**30
        assert measured.row(1)["memory_gib"] == 3.0
        gpu.peak = 2**29
        assert measured.row(2)["memory_gib"] == 0.5


class Nvml:
    """The library's functions, by C's conventions: they return 0 where they succeed."""

    def __init__(self, millijoules: int = 0, percent: int = 0, error: int = 0) -> None:
        self.millijoules, self.percent, self.error, self.asked = millijoules, percent, error, b""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: ctypes._Pointer) -> int:
        self.asked, handle._obj.value = uuid, 77
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, energy: ctypes._Pointer) -> int:
        assert handle.value == 77
        energy._obj.value = self.millijoules
        return self.error

    def nvmlDeviceGetUtilizationRates(self, handle: ctypes.c_void_p, rates: ctypes._Pointer) -> int:
        assert handle.value == 77
        rates._obj[:] = self.percent, 99  # the second is of its memory
        return self.error


class TestNvml:
    def test_energy_is_the_difference_of_the_counters_over_all_ranks(
        self, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nvml = Nvml(millijoules=5_000_000)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
        monkeypatch.setattr(torch, "tensor", lambda value, dtype, device: torch.full((), value, dtype=dtype))
        measured = start(context(GPU, size=2))
        nvml.millijoules += 1_800_000_000  # on either GPU
        assert measured.energy_kwh() == pytest.approx(1.0)
        assert nvml.asked == b"GPU-1234-5678", "its own device, whatever number it has"
        nvml.error = 3
        assert measured.energy_kwh() is None

    def test_a_row_has_the_share_of_time_with_a_kernel(
        self, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nvml = Nvml(percent=87)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
        measured = start(context(GPU))
        assert measured.row(1)["gpu_utilization"] == 0.87
        nvml.percent = 0
        assert measured.row(2)["gpu_utilization"] == 0.0
        nvml.error = 3
        assert "gpu_utilization" not in measured.row(3)

    def test_they_are_absent_without_nvml_or_where_that_does_not_count(
        self, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(name: str) -> None:
            raise OSError(f"{name}: cannot open shared object file")

        def old(name: str) -> SimpleNamespace:
            return SimpleNamespace(nvmlInit_v2=lambda: 0, nvmlDeviceGetHandleByUUID=lambda uuid, handle: 0)

        def unsupported(name: str) -> Nvml:
            return Nvml(error=3)  # NVML_ERROR_NOT_SUPPORTED

        for library in (missing, old, unsupported):
            monkeypatch.setattr(ctypes, "CDLL", library)
            counters = telemetry.GpuCounters(GPU)
            assert (counters.joules(), counters.utilization()) == (None, None), library.__name__
        monkeypatch.setattr(ctypes, "CDLL", None)
        assert telemetry.GpuCounters(CPU).joules() is None, "not even asked"


class TestCosts:
    def test_they_are_those_of_all_starts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = SimpleNamespace(seconds=0.0)
        monkeypatch.setattr("time.time", lambda: now.seconds)

        def run(gpus: int, hours: float, state: str, **energy: float) -> RunDir:
            folder = RunDir(tmp_path / "run")
            folder.acquire(RECIPE, {})
            folder.status("running", gpus=gpus)
            now.seconds += 3600 * hours
            folder.status(state, gpus=gpus, **energy)
            return folder

        run(4, 0.5, "interrupted", energy_kwh=1.0)
        folder = run(2, 1.5, "finished", energy_kwh=0.25)
        assert telemetry.costs(folder.attempts) == {"seconds": 7200.0, "gpu_hours": 5.0, "energy_kwh": 1.25}
        run(1, 1.0, "running")  # killed
        folder = run(1, 1.0, "finished", energy_kwh=0.25)
        costs = telemetry.costs(folder.attempts)
        assert costs == {"seconds": 14400.0, "gpu_hours": 7.0}, "the energy of the killed one is not known"

    def test_it_is_only_time_on_a_cpu(self, tmp_path: Path) -> None:
        folder = RunDir(tmp_path / "run")
        folder.acquire(RECIPE, {})
        folder.status("running")
        folder.status("finished")
        assert telemetry.costs(folder.attempts).keys() == {"seconds"}

    @pytest.mark.parametrize(
        ("costs", "line"),
        [
            ({"gpu_hours": 1.2345, "energy_kwh": 0.81234}, "compute      1.23 GPU-hours, 0.812 kWh"),
            ({"gpu_hours": 0.01234}, "compute      0.0123 GPU-hours"),
            ({}, None),
        ],
    )
    def test_the_closing_table_has_them(
        self, costs: dict[str, float], line: str | None, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        result = {"test/accuracy": 0.9, "test/top5": 1.0, "seconds": 3.0, "stopped_early": False, **costs}
        finalize.closing_table(Screen(shown=True), RunDir(tmp_path), RECIPE, result, [])
        said = capsys.readouterr().out.splitlines()
        assert [each for each in said if each.startswith("compute")] == ([line] if line else [])


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
    found = flops.peak(device, precision, tf32)
    assert found == (None if teraflops is None else pytest.approx(teraflops * 1e12))


def test_a_resnet50_at_224_has_the_arithmetic_that_is_known_of_it() -> None:
    """4.1 GMAC forward (He et al. 2015, table 1, count 3.8 without the shortcuts), and twice that backward."""
    recipe = parse({"data": {"image_size": 224}, "model": {"name": "resnet50", "pretrained": False}})
    forward = 2 * 4.1e9
    assert flops.flops_an_image(recipe, 1000) == pytest.approx(3 * forward, rel=0.02)
    assert flops.flops_an_image(recipe, 1000, trains="head") == pytest.approx(forward, rel=0.02)
    assert flops.flops_an_image(recipe, 1000, image_size=448) == pytest.approx(4 * 3 * forward, rel=0.02)
