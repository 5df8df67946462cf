"""A cluster whose truth is known: what `resnet-cifar scale` would measure on it, with noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from resnet_cifar.config.schema import Recipe
from resnet_cifar.training import scaling_results
from resnet_cifar.training.scaling_measurement import SIZES
from resnet_cifar.training.scaling_model import Link, ScalingModel, Step, Transfer

RESNET50 = 102_228_128  # bytes of float32 gradients
# Eight devices a machine: a slow network whose latency grows with every device, a fast one, and a single machine.
TRUTHS = {
    "slow network": ScalingModel(
        *(RESNET50, 8, 0.004, 0.0003, 0.01, 0.03, 0.4, 1.1),
        *(Link(8e-6, 2e11), Link(5e-5, 3e9, "ring")),
    ),
    "fast network": ScalingModel(
        *(RESNET50, 8, 0.004, 0.0003, 0.006, 0.05, 0.5, 1.3),
        *(Link(8e-6, 2e11), Link(4e-5, 1.1e10)),
    ),
    "one machine": ScalingModel(*(RESNET50, 64, 0.01, 0.0005, 0.0, 0.04, 0.45, 1.25), Link(2e-4, 2e9)),
}


class SimulatedCluster:
    """Measures `truth` with errors of the relative standard deviation `noise`."""

    def __init__(self, truth: ScalingModel, noise: float, seed: int) -> None:
        self.truth, self._noise, self._random = truth, noise, np.random.default_rng(seed)

    def _measured(self, seconds: float) -> float:
        return seconds * float(np.exp(self._noise * self._random.standard_normal()))

    def steps(self, processes: int, batch: int = 256) -> list[Step]:
        """The step with the shares of images that the command measures."""
        found = []
        for images in sorted({batch, batch // 2, batch // 4, batch // 8, batch // processes}):
            local = self.truth.local_seconds(processes, images)
            passes = -(-images // self.truth.micro_batch) if self.truth.micro_batch else 1
            whole = local + self.truth.exposed_seconds(processes, local, passes)
            times = self._measured(whole), self._measured(local), self._measured(self.truth.host)
            found.append(Step(processes, images, *times, passes))
        return found

    def transfers(self, processes: int) -> list[Transfer]:
        """All-reduces from 32 KiB to 1 GiB."""
        link = self.truth.link(processes)
        return [
            Transfer(processes, size, self._measured(link.seconds(processes, size))) for size in SIZES if processes > 1
        ]

    def world(self, processes: int, recipe: Recipe) -> dict[str, Any]:
        """What `scaling_measurement.measure` returns."""
        variants = [("buckets of 1 MiB", 1.03), ("gradients in bf16", 0.8)] if processes > 1 else []
        return {
            "processes": processes,
            "machines": -(-processes // self.truth.devices_per_machine),
            "devices_per_machine": self.truth.devices_per_machine,
            "shares_cores": False,
            "device": "a simulated device",
            "compiled": "",
            "precision": "bf16",
            "points": [
                {
                    "images_per_device": step.images,
                    "micro_batch": step.images // step.passes,
                    "seconds": step.seconds,
                    "local_seconds": step.local_seconds,
                    "host_seconds": step.host_seconds,
                    "communication_share": max(0.0, 1 - step.local_seconds / step.seconds),
                    "rounds": 9,
                    "spread": 0.02,
                }
                for step in self.steps(processes, recipe.batch_size)
            ],
            "variants": [
                {"name": name, "seconds": 0.02, "seconds_ratio": ratio, "spread": 0.02} for name, ratio in variants
            ],
            "all_reduce": [
                {"bytes": each.size, "seconds": each.seconds, "bus_bytes_per_second": each.size / each.seconds}
                for each in self.transfers(processes)
            ],
            "all_reduce_stopped": "",
            "plan": {
                "images_per_epoch": 45_000,
                "batch_size": recipe.batch_size,
                "steps": 1_760,
                "phase": 0,
                "trainable": "all",
                "image_size": recipe.data.image_size,
                "gradient_bytes": self.truth.gradient_bytes,
                "unit": 32,
                "step": scaling_results.step_fields(recipe),
            },
            "environment": {"commit": "0123456789ab", "packages": {"torch": "2.9.0"}},
        }


def results(recipe: Recipe, worlds: Sequence[int], name: str = "fast network", price: float = 0.0) -> dict[str, Any]:
    """A scaling.json of a simulated cluster."""
    cluster = SimulatedCluster(TRUTHS[name], 0.01, seed=0)
    *earlier, last = (cluster.world(processes, recipe) for processes in worlds)
    kept = {"worlds": {str(world["processes"]): world for world in earlier}}
    return scaling_results.add(kept, last, recipe, price)
