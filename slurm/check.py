"""Looks a cluster over, from every process of a job: run by `sbatch slurm/check.sh`, after `accelerate launch`.

Who is where on which device, whether and how fast they reach each other, whether their clocks agree, room on the
disks, and the way to the hub and to W&B. Ends with 1 where something would stop training.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from resnet_cifar import hub_access, wandb_env
from resnet_cifar.cache_folder import cache_root
from resnet_cifar.cli.entry import run
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.distributed.signals import end_process

_PATIENCE = 90.0  # seconds for all processes to find each other, and for everything after that
_ROUNDS = 9
_BYTES = {"cpu": 2**24, "cuda": 2**28}  # of an all-reduce: ResNet-50's gradients are 2**26.6
_SKEW = 1.0  # seconds; from there on, times in logs of different nodes cannot be compared
_ROOM = 20 * 2**30  # bytes: for an environment, the images and some runs


def main(_: list[str]) -> None:
    """One process's part; rank 0 prints."""
    rank, host = int(os.environ.get("RANK", "0")), socket.gethostname()
    watchdog = _give_up_later(
        f"rank {rank} on {host} did not find the others within {_PATIENCE:g} s at {os.environ.get('MASTER_ADDR')}:"
        f"{os.environ.get('MASTER_PORT')}: the nodes must reach each other on any port over one network; name it in "
        "slurm/site.sh (INTERFACE)"
    )
    world = DistributedContext("auto")
    world.all_reduce_sum_(torch.zeros(1, device=world.device))
    watchdog.cancel()
    watchdog = _give_up_later(f"rank {rank} on {host} waited for {_PATIENCE:g} s in an all-reduce")
    facts = _facts(world, host)
    facts["ahead"] = _clock(world)
    facts["seconds"] = _all_reduce(world)
    everyone = _gather(world, facts)
    watchdog.cancel()
    wrong: list[str] = []
    if world.is_main:
        wrong = _report(everyone, world)
    world.close()
    if wrong:
        raise SystemExit(1)


def _facts(world: DistributedContext, host: str) -> dict[str, Any]:
    """What this process sees by itself; the first one on each node looks at disks and ways out."""
    facts: dict[str, Any] = {"rank": world.rank, "host": host, "torch": torch.__version__}
    if world.device.type == "cuda":
        properties = torch.cuda.get_device_properties(world.device)
        facts["device"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        facts["identity"] = str(properties.uuid)
    else:
        facts["device"] = world.describe()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        places = {"runs": Path(os.environ.get("RUNS", "runs")), "cache": cache_root()}
        places["this node"] = Path(os.environ.get("LOCAL_DISK", "/tmp"))
        facts["room"] = {name: _room(place) for name, place in places.items()}
        facts["reached"] = {
            address: hub_access.answers(address) for address in (hub_access.endpoint(), wandb_env.endpoint())
        }
    return facts


def _room(place: Path) -> int:
    """Free bytes where `place` is, or will be."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _clock(world: DistributedContext) -> float:
    """Seconds that this clock is ahead of rank 0's: the median of several looks right after a collective."""
    ahead = []
    for _ in range(_ROUNDS):
        world.all_reduce_sum_(torch.zeros(1, device=world.device)).item()
        clocks = world.gather(torch.tensor([time.time()], dtype=torch.float64, device=world.device))
        ahead.append(float(clocks[world.rank] - clocks[0]))
    return statistics.median(ahead)


def _all_reduce(world: DistributedContext) -> float:
    """Seconds of an all-reduce of `_BYTES`: the median."""
    value = torch.ones(_BYTES[world.device.type] // 4, device=world.device)
    took = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        world.all_reduce_sum_(value)[0].item()
        took.append(time.perf_counter() - began)
        value.fill_(1)
    return statistics.median(took)


def _gather(world: DistributedContext, facts: dict[str, Any]) -> list[dict[str, Any]]:
    if world.size == 1:
        return [facts]
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, facts)
    return everyone


def _report(everyone: list[dict[str, Any]], world: DistributedContext) -> list[str]:
    """Prints tables and warnings; returns what would stop training."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table("rank", "host", "device", "clock ahead of rank 0", box=None, pad_edge=False)
    for facts in everyone:
        table.add_row(str(facts["rank"]), facts["host"], facts["device"], f"{1000 * facts['ahead']:+.0f} ms")
    console.print(table)
    if world.size > 1:
        size, slowest = _BYTES[world.device.type], max(facts["seconds"] for facts in everyone)
        bandwidth = 2 * (world.size - 1) / world.size * size / slowest / 1e9  # as NCCL's tests count it
        took = f"{size / 2**20:.0f} MiB over {world.size} ranks in {1000 * slowest:.1f} ms"
        console.print(f"all-reduce   {took}: {bandwidth:.2f} GB/s")
    nodes = [facts for facts in everyone if "room" in facts]
    for node in nodes:
        room = ", ".join(f"{name} {free / 2**30:.0f} GiB" for name, free in node["room"].items())
        reached = ", ".join(f"{url} {'answers' if yes else 'is silent'}" for url, yes in node["reached"].items())
        console.print(f"{node['host']:<12} free: {room}; {reached}")
    warnings, wrong = _judge(everyone, nodes)
    for sentence in warnings:
        console.print(f"warning: {sentence}")
    for sentence in wrong:
        console.print(f"error: {sentence}")
    if not warnings and not wrong:
        console.print("all is well")
    return wrong


def _judge(everyone: list[dict[str, Any]], nodes: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """(what is worth knowing, what would stop training)."""
    warnings, wrong = [], []
    for facts in everyone:
        if abs(facts["ahead"]) > _SKEW:
            warnings.append(f"the clock of {facts['host']} is {facts['ahead']:+.1f} s off rank 0's: fix its NTP")
        others = [f for f in everyone if f["rank"] < facts["rank"] and f.get("identity") == facts.get("identity")]
        if others and "identity" in facts:
            wrong.append(f"ranks {others[0]['rank']} and {facts['rank']} share one GPU: ask with --gpus-per-node")
    for what in ("device", "torch"):
        found = sorted({facts[what] for facts in everyone})
        if len(found) > 1:
            warnings.append(f"nodes differ in {what} ({'; '.join(found)}): the slowest sets the pace")
    for node in nodes:
        for name, free in node["room"].items():
            if free < _ROOM:
                warnings.append(f"{node['host']} has {free / 2**30:.1f} GiB left for {name}")
    first = nodes[0]
    for url, answered in first["reached"].items():
        if not answered:
            fix = (
                "fetch on a login node (python train.py --download-only)"
                if url == hub_access.endpoint()
                else "runs stay offline"
            )
            warnings.append(f"{first['host']}, which fetches for all, does not reach {url}: {fix}")
    return warnings, wrong


def _give_up_later(sentence: str) -> threading.Timer:
    timer = threading.Timer(_PATIENCE, end_process, (1, f"error: {sentence}"))
    timer.daemon = True
    timer.start()
    return timer


if __name__ == "__main__":
    sys.exit(run(main))
