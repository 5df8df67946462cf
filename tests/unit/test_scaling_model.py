"""training/scaling_model.py: a simulator's truth is recovered, beyond what was measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from simulated_cluster import TRUTHS, SimulatedCluster

from resnet_cifar.training import scaling_model
from resnet_cifar.training.scaling_model import Link, ScalingModel, Step

MEASURED = {"slow network": (1, 2, 4, 8, 16, 32), "fast network": (1, 2, 4, 8, 16, 32), "one machine": (1, 2, 4, 8)}
BEYOND = {"slow network": (64, 256, 1024), "fast network": (64, 256, 1024), "one machine": (16, 32, 64)}


def fitted(name: str, noise: float, seed: int) -> ScalingModel:
    truth, cluster = TRUTHS[name], SimulatedCluster(TRUTHS[name], noise, seed)
    steps = [step for processes in MEASURED[name] for step in cluster.steps(processes)]
    transfers = [each for processes in MEASURED[name] for each in cluster.transfers(processes)]
    return scaling_model.fit(steps, transfers, truth.gradient_bytes, truth.devices_per_machine)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TRUTHS)
def test_the_throughput_of_larger_worlds_is_recovered_within_five_percent(name: str, seed: int) -> None:
    """Measurements have errors of 1 %; predictions reach 8 to 32 times as many devices."""
    truth, model = TRUTHS[name], fitted(name, 0.01, seed)
    for processes in BEYOND[name]:
        for images in (64, 128, 256):
            ours, true = (each.images_per_second(processes, images) for each in (model, truth))
            assert ours == pytest.approx(true, rel=0.05), (processes, images)


@pytest.mark.parametrize("name", TRUTHS)
def test_exact_measurements_give_the_parameters(name: str) -> None:
    truth, model = TRUTHS[name], fitted(name, 0.0, 0)
    for field in ("fixed", "per_image", "host", "sharing"):
        assert getattr(model, field) == pytest.approx(getattr(truth, field), rel=0.01), field
    for link in ("machine", "network"):
        ours, true = getattr(model, link), getattr(truth, link)
        assert (ours is None) == (true is None)
        if true is not None:
            assert ours.latency == pytest.approx(true.latency, rel=0.01)
            assert ours.bandwidth == pytest.approx(true.bandwidth, rel=0.01)
            assert ours.hops == true.hops


def test_held_back_steps_are_predicted_as_well_as_the_noise_allows() -> None:
    truth, cluster, worlds = TRUTHS["slow network"], SimulatedCluster(TRUTHS["slow network"], 0.01, 3), (1, 8, 16, 32)
    steps = [step for processes in worlds for step in cluster.steps(processes)]
    transfers = [each for processes in worlds for each in cluster.transfers(processes)]
    sizes = truth.gradient_bytes, truth.devices_per_machine
    found = scaling_model.held_back_errors(steps, transfers, *sizes)
    assert found["points"]["count"] == len(steps)
    assert 0.002 < found["points"]["median"] < 0.03
    assert found["largest_world"]["processes"] == 32
    assert found["largest_world"]["largest"] < 0.08
    # A step that no model of the others explains is an error that is stated.
    odd = [replace(steps[0], seconds=3 * steps[0].seconds, local_seconds=3 * steps[0].local_seconds), *steps[1:4]]
    assert scaling_model.held_back_errors(odd, [], *sizes)["points"]["largest"] > 0.3


def test_the_first_world_over_a_network_is_not_predicted_from_links_within_a_machine() -> None:
    truth, cluster = TRUTHS["slow network"], SimulatedCluster(TRUTHS["slow network"], 0.01, 3)
    steps = [step for processes in (1, 8, 16) for step in cluster.steps(processes)]
    transfers = [each for processes in (8, 16) for each in cluster.transfers(processes)]
    found = scaling_model.held_back_errors(steps, transfers, truth.gradient_bytes, truth.devices_per_machine)
    assert found["largest_world"] is None


@pytest.mark.parametrize("processes", [2, 16, 256])
def test_the_smallest_batch_that_keeps_an_efficiency_does_and_one_unit_less_does_not(processes: int) -> None:
    model, unit = TRUTHS["fast network"], 32
    rate = model.images_per_second(1, 256)
    batch = model.smallest_batch(processes, unit, rate)
    assert batch % (processes * unit) == 0

    def efficiency(images: int) -> float:
        return model.images_per_second(processes, images) / processes / rate

    images = batch // processes
    assert efficiency(images) >= 0.9
    assert images == unit or efficiency(images - unit) < 0.9
    assert model.smallest_batch(processes, unit, 2 * rate) is None


def test_an_all_reduce_costs_what_the_ring_does() -> None:
    """2 (N - 1) / N of the bytes cross each link (Thakur et al. 2005), and one process sends nothing."""
    assert Link(1e-6, 1e9, "ring").seconds(4, 1e9) == pytest.approx(1.5 + 3e-6)
    assert Link(1e-6, 1e9).seconds(8, 1e9, messages=5) == pytest.approx(1.75 + 15e-6)
    assert Link(1e-6, 1e9).seconds(1, 1e9) == 0


def test_communication_hides_behind_computing_but_for_the_last_bucket() -> None:
    model = ScalingModel(scaling_model.FIRST_BUCKET + 4 * scaling_model.BUCKET, 8, 0, 0, machine=Link(0.0, 1e9))
    total = model.machine.seconds(8, model.gradient_bytes)
    assert model.buckets == 5
    assert replace(model, overlap=0.5).exposed_seconds(8, 0.0) == pytest.approx(total)
    assert replace(model, overlap=0.5).exposed_seconds(8, total) == pytest.approx(total / 2)
    assert replace(model, overlap=0.5).exposed_seconds(8, 100 * total) == pytest.approx(total / 5)
    assert replace(model, overlap=0.5).exposed_seconds(8, total, passes=4) == pytest.approx(total * 7 / 8)
    assert model.exposed_seconds(1, 1.0) == 0


def test_with_gradient_accumulation_communication_hides_behind_the_last_pass_alone() -> None:
    """Of 256 images in passes of 32 an eighth hides it; a model of single passes would be 10 % too fast."""
    truth = replace(TRUTHS["slow network"], micro_batch=32)
    cluster = SimulatedCluster(truth, 0.01, 0)
    steps = [step for processes in (1, 2, 4, 8, 16, 32) for step in cluster.steps(processes)]
    transfers = [each for processes in (2, 4, 8, 16, 32) for each in cluster.transfers(processes)]
    model = scaling_model.fit(steps, transfers, truth.gradient_bytes, truth.devices_per_machine)
    assert model.micro_batch == 32
    for images in (32, 256):
        true = truth.images_per_second(64, images)
        assert model.images_per_second(64, images) == pytest.approx(true, rel=0.05)
    assert replace(truth, micro_batch=0).images_per_second(64, 256) > 1.1 * truth.images_per_second(64, 256)


def test_one_process_alone_gives_a_model_of_itself() -> None:
    steps = [Step(1, images, 0.01 + 0.001 * images, 0.01 + 0.001 * images) for images in (8, 16, 32)]
    model = scaling_model.fit(steps, [], 1000, 2)
    assert model.step_seconds(1, 64) == pytest.approx(0.074, rel=1e-3)
    assert model.machine is None and model.network is None
    single = scaling_model.fit(steps[:1], [], 1000, 2)
    assert single.step_seconds(1, 8) == pytest.approx(0.018, rel=1e-3)
    assert math.isfinite(single.step_seconds(4, 8))
    assert scaling_model.held_back_errors(steps[:1], [], 1000, 2)["points"]["count"] == 0
