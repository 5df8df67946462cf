"""The processes of one launch of `resnet-cifar scale`: they measure, add to scaling.json and write the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import write_json
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.reporting import environment, scaling_report
from resnet_cifar.reporting.console import Screen, speed
from resnet_cifar.training import scaling_measurement, scaling_results


def measure_launched(recipe: Recipe, out: Path, seconds: float, price: float) -> None:
    """Measures the processes that the launcher has started, and adds them to the results in `out`. Raises UserError."""
    context = DistributedContext(recipe.precision, recipe.deterministic)
    screen = Screen(shown=context.is_main)
    with context.sharing_failures():
        device, precision = context.describe(), context.precision
        context.run_on_main(
            lambda: scaling_results.check_alike(scaling_results.read_kept(out, recipe), device, precision) or ""
        )
        world = scaling_measurement.measure(recipe, context, seconds)
        context.run_on_main(lambda: _write(recipe, world, out, price))
    screen.say(_line(world))
    if world["shares_cores"]:
        screen.warn(f"{context.size} processes share the cores of this machine, so they say little about scaling")
    context.close()


def _write(recipe: Recipe, world: dict[str, Any], out: Path, price: float) -> str:
    try:
        out.mkdir(parents=True, exist_ok=True)
        world = {**world, "environment": environment.describe()}
        found = scaling_results.add(scaling_results.read_kept(out, recipe), world, recipe, price)
        write_json(out / scaling_results.FILE, found)
        scaling_report.write(found, out / "index.html")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): name another folder") from None
    return ""


def _line(world: dict[str, Any]) -> str:
    """`2 processes: 16 images each 512 images/s, 12 % communication; ...`."""
    n = world["processes"]
    parts = [
        f"{point['images_per_device']} images each, {speed(n * point['images_per_device'] / point['seconds'])}"
        + f", {point['communication_share']:.0%} communication" * (n > 1)
        for point in world["points"]
    ]
    return f"{n} process{'es' * (n > 1)}: {'; '.join(parts)}"
