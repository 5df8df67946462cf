"""`micro_batch: auto`: the largest micro-batch that fits the device, found by trial; on CPUs, which are no faster with
large ones, at most that of `Plan.cpu_micro_batch`.

RUN/micro_batch.json keeps the result, so that a resumed run sums gradients in the same order.
"""

from __future__ import annotations

import torch

from resnet_cifar.atomic_io import read_json, write_json
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.errors import UserError
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.train_state import TrainState

_FILE = "micro_batch.json"


def first_try(plan: Plan, device: torch.device) -> Plan:
    """`plan` with the micro-batch that `auto` tries first."""
    if plan.recipe.micro_batch == "auto" and device.type == "cpu":
        return plan.with_micro_batch(plan.cpu_micro_batch)
    return plan


def fit(plan: Plan, state: TrainState, context: DistributedContext, folder: RunDir) -> Plan:
    """`plan` with the largest micro-batch that fits every rank, starting from an earlier result or the first try.

    Raises UserError where not even one ghost batch fits.
    """

    def known() -> str:
        found = read_json(folder.path / _FILE) or {}
        is_ours = found.items() >= {"share": plan.per_rank_batch, "device": context.describe()}.items()
        return str(found["micro_batch"] if is_ours else plan.micro_batch)

    plan = largest(plan.with_micro_batch(int(context.run_on_main(known))), state, context)
    if context.is_main:
        save(plan, context, folder)
    return plan


def largest(plan: Plan, state: TrainState, context: DistributedContext) -> Plan:
    """`plan` with the largest micro-batch that fits every rank, at most its own. Raises UserError as `fit` does."""
    size = max(plan.image_size(end - 1) for end in plan.phase_ends)
    # With BatchNorm groups that span processes, a pass would wait for ranks that ran out of memory.
    while (plan.recipe.model.norm_rows or 0) <= plan.per_rank_batch and not _all_fit(
        state, context, plan.micro_batch, size
    ):
        plan = smaller(plan)
    return plan


def smaller(plan: Plan) -> Plan:
    """`plan` with the next smaller micro-batch. Raises UserError if there is none."""
    rows = plan.smaller_micro_batch
    if rows is None:
        raise UserError(
            f"micro_batch auto: not even {plan.micro_batch} images of {plan.recipe.data.image_size} pixels fit the "
            "device's memory: lower model.ghost_batch_size or data.image_size, or use a smaller model"
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # cached blocks have the wrong sizes
    return plan.with_micro_batch(rows)


def save(plan: Plan, context: DistributedContext, folder: RunDir) -> None:
    """Records the result in the run directory."""
    found = {"share": plan.per_rank_batch, "device": context.describe(), "micro_batch": plan.micro_batch}
    write_json(folder.path / _FILE, found)


def _all_fit(state: TrainState, context: DistributedContext, rows: int, image_size: int) -> bool:
    fits = torch.tensor([state.fits(rows, image_size)], dtype=torch.int64, device=context.device)
    return bool(context.all_reduce_min_(fits))
