"""`--profile N`: a trace of N steps, and what takes the time in them. Off, it costs nothing."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from resnet_cifar.data.batches import Batch

SKIPPED = 5  # the first steps of a start, which set kernels up or compile
_ROWS = 15  # operators in the table
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")

Steps = Iterator[tuple[int, Iterable[Batch]]]


def profiled(steps: Steps, count: int, folder: Path, say: Callable[[str], None]) -> Steps:
    """`steps` as they are; the time between `count` of them is traced, from the sixth on.

    Afterwards `folder` holds trace.json.gz (chrome://tracing and ui.perfetto.dev open it) and summary.txt, which is
    also said. In the trace a step is `ProfilerStep#K`, making its batches is `batch`, the update `Optimizer.step#...`.
    """
    return _traced(steps, count, folder, say) if count else steps


def _traced(steps: Steps, count: int, folder: Path, say: Callable[[str], None]) -> Steps:
    written: list[Path] = []

    def write(profiler: torch.profiler.profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        trace = folder / "trace.json.gz"
        profiler.export_chrome_trace(str(trace))
        summary = summarize(profiler, trace)
        (folder / "summary.txt").write_text(summary + "\n")
        written.append(trace)
        say(f"{summary}\n-> {folder}")

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    schedule = torch.profiler.schedule(wait=SKIPPED - 1, warmup=1, active=count, repeat=1)
    with torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write) as profiler:
        for step, micro_batches in itertools.islice(steps, SKIPPED + count):
            yield step, _annotated(micro_batches)
            profiler.step()
    if not written:
        say(f"no step was traced: training ended within the {SKIPPED} steps that are skipped")
    yield from steps


def _annotated(micro_batches: Iterable[Batch]) -> Iterator[Batch]:
    micro_batches = iter(micro_batches)
    while True:
        with torch.profiler.record_function("batch"):
            batch = next(micro_batches, None)
        if batch is None:
            return
        yield batch


def summarize(profiler: torch.profiler.profile, trace: Path) -> str:
    """The operators that take the most time, and the share of it in which the device waits for work."""
    operators = profiler.key_averages()
    waits = device_waits(json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"])
    on_device = waits is not None
    table = operators.table(sort_by=f"self_{'device' if on_device else 'cpu'}_time_total", row_limit=_ROWS)
    return f"{table}\nthe device waits {waits:.1%} of the time" if on_device else table


def device_waits(events: Iterable[dict]) -> float | None:
    """The share of the time, from a device's first work to its last, in which it has none; None without a device.

    events: those of a chrome trace, of one device, in microseconds.
    """
    work = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event.get("cat") in _ON_DEVICE)
    if not work:
        return None
    busy, until = 0.0, work[0][0]
    for start, end in work:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return 1 - busy / (until - work[0][0])
