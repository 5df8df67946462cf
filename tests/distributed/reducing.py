"""Prints, as JSON, how many all-reduces each step that `resnet-cifar scale` compares contains; run by test_scaling."""

from __future__ import annotations

import json
import sys

from torch.profiler import ProfilerActivity, profile

from resnet_cifar.config.loading import read_recipe
from resnet_cifar.data import prepared_data
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.training import preflight, scaling_measurement
from resnet_cifar.training.plan import Plan


def main() -> None:
    recipe = read_recipe("debug", {"model.name": "test_resnet", "data.image_size": "32"})
    context = DistributedContext("no")
    recipe = preflight.resolve(recipe)
    data = prepared_data.load(prepared_data.prepare(recipe.data), recipe, context.device)
    _, steady = scaling_measurement._longest_phase(Plan(recipe, data.epoch_images, context.size))
    bench = scaling_measurement._Bench(steady, 16, context, data)
    counts = {}
    for name, step in {**bench.steps(), **bench.variants()}.items():
        for _ in range(11):  # DDP has its final buckets, and every tenth step reduces metrics, too
            step()
        with profile(activities=[ProfilerActivity.CPU]) as found:
            step()
        counts[name] = sum(event.count for event in found.key_averages() if event.key == "c10d::allreduce_")
    if context.is_main:
        print("reductions", json.dumps(counts), file=sys.stderr, flush=True)
    context.close()


if __name__ == "__main__":
    main()
