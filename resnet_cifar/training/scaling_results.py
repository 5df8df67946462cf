"""scaling.json: measurements of several numbers of processes, what follows from them, and predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.diff import flatten, to_dict
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import parse, row_unit
from resnet_cifar.reporting.console import duration, speed
from resnet_cifar.training import scaling_model
from resnet_cifar.training.plan import Plan, check_batch_size
from resnet_cifar.training.scaling_model import ScalingModel, Step, Transfer

FILE = "scaling.json"
TARGET = 0.9  # efficiency that a batch size should keep
_STEADY = 0.25  # spread of a step's rounds, up to which a machine counts as undisturbed
_FURTHEST = 64  # times the largest measured number of devices that is predicted
# What the time of a step depends on, besides the batch, its micro-batches, the precision and the phase.
_FIELDS = ("deterministic", "augment.", "model.", "optimizer.name", "optimizer.clip_grad_norm")
_ONLY_AT_START = ("model.pretrained", "model.init_from", "model.head.init")


def step_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields that the time of a step depends on, of a recipe that `preflight.resolve` has completed."""
    found = flatten(recipe)
    return {name: found[name] for name in found if name.startswith(_FIELDS) and name not in _ONLY_AT_START}


def read(file: Path) -> dict[str, Any]:
    """The content of a scaling.json, or of the one in the folder `file`. Raises UserError if it is not one."""
    if file.is_dir():
        file /= FILE
    found = read_json(file)
    if found is None:
        raise UserError(f"{file}: there is no such file; write it with resnet-cifar scale --out {file.parent}")
    if "worlds" not in found or "model" not in found:
        raise UserError(f"{file} was not written by resnet-cifar scale: name the scaling.json of its --out")
    if not all("step" in world["plan"] for world in found["worlds"].values()):
        raise UserError(f"{file} was written by an earlier version: measure again, into another folder")
    return found


def read_kept(out: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The results in the directory `out`, if there are some. Raises UserError where they are another recipe's."""
    file = out / FILE
    if not file.exists():
        return None
    kept = read(file)
    before = flatten(parse(kept["recipe"]))
    for name, value in flatten(recipe).items():
        if before.get(name) != value:
            raise UserError(
                f"{file} was measured with {name} {before.get(name)}, not {value}: name another folder with --out"
            )
    return kept


def check_alike(kept: dict[str, Any] | None, device: str, precision: str) -> None:
    """Raises UserError where what is kept was measured on other devices, or in another precision."""
    for world in (kept or {}).get("worlds", {}).values():
        if world["device"] != device:
            raise UserError(f"--out holds measurements on {world['device']}, not {device}: name another folder")
        if world["precision"] != precision:
            raise UserError(
                f"--out holds measurements in precision {world['precision']}, not {precision}, which this launch uses: "
                "name another folder, and give all launches the same --precision"
            )


def add(kept: dict[str, Any] | None, world: dict[str, Any], recipe: Recipe, price: float) -> dict[str, Any]:
    """scaling.json with one more measured world, instead of an earlier one of as many processes.

    `kept`: what the file holds, if anything. `price`: of a device for an hour; 0: that of `kept`, or unknown. Raises
    UserError where `kept` was measured on other devices or in another precision.
    """
    check_alike(kept, world["device"], world["precision"])
    price = price or (kept or {}).get("price", 0.0)
    worlds = {**(kept or {}).get("worlds", {}), str(world["processes"]): world}
    worlds = dict(sorted(worlds.items(), key=lambda each: int(each[0])))
    strong, weak = (list(_measured(worlds, recipe, price, kind)) for kind in ("strong", "weak"))
    model, held_back, assumptions = _fitted(worlds)
    return {
        "recipe": to_dict(recipe),
        "batch_size": recipe.batch_size,
        "price": price,
        "efficiency": {str(row["processes"]): row["efficiency"] for row in strong},
        "strong": strong,
        "weak": weak,
        "model": {**asdict(model), "held_back": held_back, "assumptions": assumptions},
        "predictions": list(_predictions(model, worlds, recipe.batch_size, price)),
        "worlds": worlds,
        "environment": world["environment"],
    }


def _measured(worlds: dict[str, Any], recipe: Recipe, price: float, kind: str) -> Iterator[dict[str, Any]]:
    """One row per world: the batch divided over its devices (`strong`), or the whole batch on each (`weak`).

    The efficiency is the throughput per device, over that of the smallest world with the recipe's batch.
    """
    base = 0.0
    for world in worlds.values():
        processes = world["processes"]
        images = recipe.batch_size // processes if kind == "strong" else recipe.batch_size
        point = next(each for each in world["points"] if each["images_per_device"] == images)
        rate = processes * images / point["seconds"]
        if not base:
            first = next(
                each for each in world["points"] if each["images_per_device"] == recipe.batch_size // processes
            )
            base = recipe.batch_size / processes / first["seconds"]
        yield {
            **_row(processes, images, rate, rate / processes / base, world["plan"], price),
            "seconds": point["seconds"],
            "communication_share": point["communication_share"],
            "spread": point["spread"],
            "shares_cores": world["shares_cores"],
        }


def _row(
    processes: int, images: int, rate: float, efficiency: float, plan: dict[str, Any], price: float
) -> dict[str, Any]:
    """A world's speed and cost. Both count training steps alone, each as long as those of the longest phase."""
    hours = processes * plan["images_per_epoch"] / rate / 3600
    epochs = plan["steps"] * plan["batch_size"] / plan["images_per_epoch"]
    return {
        "processes": processes,
        "images_per_device": images,
        "batch_size": processes * images,
        "images_per_second": rate,
        "efficiency": efficiency,
        "seconds_per_epoch": plan["images_per_epoch"] / rate,
        "device_hours_per_epoch": hours,
        "device_hours": hours * epochs,
        "cost": hours * epochs * price if price else None,
    }


def _fitted(worlds: dict[str, Any]) -> tuple[ScalingModel, dict[str, Any], list[str]]:
    """(the model, its errors on held-back steps, what it assumes). Worlds that share cores are left out, if others
    remain."""
    used = [world for world in worlds.values() if not world["shares_cores"]] or list(worlds.values())
    left_out = [str(world["processes"]) for world in worlds.values() if world not in used]
    steps = [
        Step(
            world["processes"],
            point["images_per_device"],
            point["seconds"],
            point["local_seconds"],
            point["host_seconds"],
            point["images_per_device"] // point["micro_batch"],
        )
        for world in used
        for point in world["points"]
        if point["images_per_device"] % world["plan"]["unit"] == 0  # or else SyncBatchNorm, which is not in the model
    ]
    transfers = [
        Transfer(world["processes"], each["bytes"], each["seconds"]) for world in used for each in world["all_reduce"]
    ]
    gradients = used[-1]["plan"]["gradient_bytes"]
    several = [world["devices_per_machine"] for world in used if world["machines"] > 1]
    devices = several[0] if several else used[-1]["devices_per_machine"]
    model = scaling_model.fit(steps, transfers, gradients, devices)
    held_back = scaling_model.held_back_errors(steps, transfers, gradients, devices)
    spread = max(point["spread"] for world in used for point in world["points"])
    disturbed = [
        f"The rounds of a step differ by up to {spread:.0%} of their median: the machine was doing something else, or "
        "--seconds is too short; measure again before you rely on these numbers."
    ] * (spread > _STEADY)
    return model, held_back, disturbed + _versions(used) + list(_assumptions(model, steps, transfers, left_out))


def _versions(worlds: list[dict[str, Any]]) -> list[str]:
    """A sentence if not all worlds were measured with the same code."""
    found: dict[str, list[str]] = {}
    for world in worlds:
        facts = world["environment"]
        code = " ".join(filter(None, (facts["commit"], *map("{0[0]} {0[1]}".format, facts["packages"].items()))))
        found.setdefault(code, []).append(str(world["processes"]))
    if len(found) == 1:
        return []
    groups = " and ".join(", ".join(each) for each in found.values())
    return [f"{groups} processes were measured with different versions of the code or its packages: measure again."]


def _assumptions(
    model: ScalingModel, steps: list[Step], transfers: list[Transfer], left_out: list[str]
) -> Iterator[str]:
    """What the measurements leave open, in sentences."""
    if left_out:
        yield f"{', '.join(left_out)} processes share cores, so the model does not use them."
    if not transfers:
        yield "Communication was not measured: measure two processes or more."
        return
    if model.network is None:
        yield (
            f"Communication beyond one machine ({model.devices_per_machine} devices) was not measured: it is predicted "
            "as if machines were connected as their devices are; sbatch slurm/scale.sh measures it."
        )
    if len({each.processes for each in transfers}) == 1:
        yield "One number of processes cannot tell how latency grows with their number: as its logarithm is assumed."
    waiting = [
        each
        for each in steps
        if each.processes > 1
        and model.exposed_seconds(each.processes, each.local_seconds, each.passes)
        > 1.02 * replace(model, overlap=1e9).exposed_seconds(each.processes, each.local_seconds, each.passes)
    ]
    if not waiting and model.buckets > 1:
        yield "No measured step waited for more than its last bucket, so how much communication can be hidden is open."


def _predictions(
    model: ScalingModel, worlds: dict[str, Any], batch_size: int, price: float
) -> Iterator[dict[str, Any]]:
    """Powers of two up to 64 times the measured devices, and the measured numbers, relative to one device."""
    plan = next(iter(worlds.values()))["plan"]
    most = _FURTHEST * max(map(int, worlds))
    for processes in sorted({*(2**power for power in range(most.bit_length())), *map(int, worlds)}):
        yield predict(model, plan, batch_size, processes, price)


def predict(model: ScalingModel, plan: dict[str, Any], batch_size: int, processes: int, price: float) -> dict[str, Any]:
    """{"processes", "strong": a row, or None where the batch does not divide, "weak": a row, "batch_for_90"}.

    `batch_for_90`: the smallest global batch that keeps 90 % efficiency, or None.
    """
    base = model.images_per_second(1, batch_size)

    def row(images: int) -> dict[str, Any]:
        rate = model.images_per_second(processes, images)
        return _row(processes, images, rate, rate / processes / base, plan, price)

    divides = batch_size % (processes * plan["unit"]) == 0
    return {
        "processes": processes,
        "strong": row(batch_size // processes) if divides else None,
        "weak": row(batch_size),
        "batch_for_90": model.smallest_batch(processes, plan["unit"], base, TARGET),
    }


def model_of(scaling: dict[str, Any]) -> ScalingModel:
    """The model of a scaling.json."""
    values = {name: scaling["model"][name] for name in ScalingModel.__dataclass_fields__}
    links = {name: values[name] and scaling_model.Link(**values[name]) for name in ("machine", "network")}
    return ScalingModel(**{**values, **links})


def describe(
    scaling: dict[str, Any], file: Path, plan: Plan, processes: int, compiled: str = ""
) -> list[tuple[str, str]]:
    """Lines of the plan: what `processes` devices bring for its recipe, and which batch keeps 90 % efficiency.

    `compiled`: how the plan's model is compiled. Raises UserError where the file was measured with another step, where
    `processes` is far beyond the measured ones, and where the batch does not divide.
    """
    recipe, world, start = plan.recipe, next(iter(scaling["worlds"].values())), plan.longest_phase_start
    before, now = world["plan"]["step"], step_fields(recipe)
    compared = {name: (before.get(name), value) for name, value in now.items()} | {
        "compile": (world["compiled"] or "none", compiled or "none"),
        "precision": (world["precision"], recipe.precision),
        "image size": (world["plan"]["image_size"], plan.image_size(start)),
        "trainable": (world["plan"]["trainable"], plan.phase_at(start).trainable),
    }
    for name, (measured, ours) in compared.items():
        if measured != ours:
            raise UserError(
                f"--scaling {file} was measured with {name} {measured}, not {ours}: measure this recipe with "
                "resnet-cifar scale"
            )
    check_batch_size(recipe, processes)
    if processes > (most := _FURTHEST * max(map(int, scaling["worlds"]))):
        raise UserError(
            f"--scaling-devices {processes} is more than {_FURTHEST} times the devices that {file} was measured on: "
            f"lower it to {most}, or measure more devices"
        )
    size = {
        "images_per_epoch": plan.images,
        "batch_size": recipe.batch_size,
        "steps": plan.steps,
        "unit": row_unit(recipe),
    }
    found = predict(model_of(scaling), size, recipe.batch_size, processes, scaling["price"])
    row, devices = found["strong"], f"{processes} device{'s' * (processes > 1)}"
    batch = found["batch_for_90"]
    keeps = f"batch_size {batch} is the smallest that keeps" if batch else "no batch size keeps"
    keeps += f" {TARGET:.0%} efficiency on {devices}; another batch is another recipe"
    if row is None:
        spans = f"{devices}: each of BatchNorm's groups would span several of them, which the model does not know"
        return [("scaling", spans), ("", keeps)]
    error = scaling["model"]["held_back"]["points"]["largest"]
    trust = "" if error is None else f"; off by up to {error:.0%} for steps that the model had not seen"
    open_points = len(scaling["model"]["assumptions"])
    trust += f"; {open_points} reservation{'s' * (open_points > 1)} on the page beside {file.name}" * (open_points > 0)
    cost = "" if row["cost"] is None else f", which cost {row['cost']:.2f}"
    brings = (
        f"{devices}: about {speed(row['images_per_second'])}, {row['efficiency']:.0%} efficiency, "
        f"{duration(row['seconds_per_epoch'])} per epoch, {row['device_hours']:.3g} device-hours{cost} "
        f"(predicted from measurements on {world['device']}{trust})"
    )
    return [("scaling", brings), ("", keeps)]
