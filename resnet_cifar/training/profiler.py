"""`--profile-steps N`: a trace of N steps and a table of what takes the time in them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity

from resnet_cifar.data.loader import Batch

SKIPPED = 5  # the first steps of an attempt, which initialize kernels or compile
_ROWS = 15  # operators in the table
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


class StepProfiler:
    """A context that traces `count` steps, from the sixth on; nothing at all where `count` is 0.

    Afterwards `folder` holds trace.json.gz (chrome://tracing and ui.perfetto.dev open it) and summary.txt, which is
    also printed with `say`. In the trace a step is `ProfilerStep#K`, making its batches is `batch`, the update is
    `Optimizer.step#...`.
    """

    def __init__(self, count: int, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._left = SKIPPED + count if count else 0
        self._written = False
        self._profiler: torch.profiler.profile | None = None
        if count:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            schedule = torch.profiler.schedule(wait=SKIPPED - 1, warmup=1, active=count, repeat=1)
            self._profiler = torch.profiler.profile(
                activities=activities, schedule=schedule, on_trace_ready=self._write
            )

    def __enter__(self) -> StepProfiler:
        if self._profiler is not None:
            self._profiler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._profiler is None:
            return
        if self._left:
            self._profiler.stop()
        if not self._written and kind is None:
            self._say(f"no step was traced: training ended within the {SKIPPED} steps that are skipped")

    def annotate(self, batch: Iterator[Batch]) -> Iterable[Batch]:
        """`batch`, with the time that its micro-batches take marked in the trace."""
        return _annotated(batch) if self._left else batch

    def step(self) -> None:
        """Call it after every step."""
        if self._left:
            self._profiler.step()
            self._left -= 1
            if not self._left:
                self._profiler.stop()

    def _write(self, profiler: torch.profiler.profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / "trace.json.gz"
        profiler.export_chrome_trace(str(trace))
        summary = summarize(profiler, trace)
        (self._folder / "summary.txt").write_text(summary + "\n")
        self._written = True
        self._say(f"{summary}\n-> {self._folder}")


def _annotated(batch: Iterator[Batch]) -> Iterator[Batch]:
    while True:
        with torch.profiler.record_function("batch"):
            part = next(batch, None)
        if part is None:
            return
        yield part


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
