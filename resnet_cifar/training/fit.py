"""`micro_batch: auto`: the largest micro-batch that fits the device, found by trying.

RUN/micro_batch.json keeps what was found, so that a resumed run sums in the same order as before.
"""

from __future__ import annotations

import torch

from resnet_cifar.data.plan import Plan
from resnet_cifar.recipe import Mistake
from resnet_cifar.run_folder import RunFolder, read_json, write_json
from resnet_cifar.training.step import Learner
from resnet_cifar.training.world import World

_FILE = "micro_batch.json"


def fit(plan: Plan, learner: Learner, world: World, folder: RunFolder) -> Plan:
    """`plan` with the micro-batch that fits every rank, from what was found before or the whole share on.

    Raises Mistake where not even one norm group fits.
    """

    def known() -> str:
        found = read_json(folder.path / _FILE) or {}
        is_ours = found.items() >= {"share": plan.share, "device": world.describe()}.items()
        return str(found["micro_batch"] if is_ours else plan.share)

    plan = plan.with_micro_batch(int(world.main_first(known)))
    size = max(plan.image_size(end - 1) for end in plan.phase_ends)
    # Passes through groups that span processes would wait for ranks that have given up.
    while plan.recipe.model.norm_batch <= plan.share and not _all_fit(learner, world, plan.micro_batch, size):
        plan = smaller(plan)
    if world.is_main:
        note(plan, world, folder)
    return plan


def smaller(plan: Plan) -> Plan:
    """`plan` with the next smaller micro-batch. Raises Mistake where there is none."""
    rows = plan.smaller_micro_batch
    if rows is None:
        raise Mistake(
            f"micro_batch auto: not even {plan.micro_batch} images of {plan.recipe.data.image_size} pixels fit the "
            "device's memory: lower model.norm_batch or data.image_size, or take a smaller model"
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # in pieces of the wrong size
    return plan.with_micro_batch(rows)


def note(plan: Plan, world: World, folder: RunFolder) -> None:
    """Writes down what fits."""
    found = {"share": plan.share, "device": world.describe(), "micro_batch": plan.micro_batch}
    write_json(folder.path / _FILE, found)


def _all_fit(learner: Learner, world: World, rows: int, image_size: int) -> bool:
    fits = torch.tensor([learner.fits(rows, image_size)], dtype=torch.int64, device=world.device)
    return bool(world.smallest_(fits))
