"""How the processes of a run find out together why it hangs: used by the watchdog's thread, and by nothing else.

Every process reports on itself and on the others of its machine, which may be stopped, through rank 0's store; it
writes what it knows into RUN/hang-STEP/ in another thread, since the file system may be what hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from resnet_cifar.distributed import hang_report, process_snapshot
from resnet_cifar.distributed.collective_log import Call, NeighborLog, anonymous_file
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.distributed.hang_report import RankReport
from resnet_cifar.distributed.heartbeats import Beat
from resnet_cifar.distributed.process_snapshot import OwnReport, write

REPORT, ALL_REPORTS = "report.txt", "reports.json"  # in RUN/hang-STEP/: the sentence, and what it follows from
_REPORTING = 5.0  # seconds for the ranks to report, and again for them to write their reports
_STARVED = 0.7  # the share of `rank_timeout` without a heartbeat after which a C thread writes this process's stacks


@dataclass(frozen=True)
class _Neighbor:
    """Another process of this machine."""

    pid: int
    log: NeighborLog | None
    stacks: Path  # what faulthandler has written there, if anything

    def observe(self) -> RankReport:
        return process_snapshot.observe(self.pid, self.log.read() if self.log else None, self.stacks)


class HangInquiry:
    """One process's part. `run` is the run directory."""

    def __init__(self, context: DistributedContext, store: dist.TCPStore, run: Path) -> None:
        self.rank, self._size, self._run = context.rank, context.size, run
        self._context, self._store = context, store
        self._neighbors: dict[int, _Neighbor] | None = None
        self._stacks = anonymous_file("stacks")
        self._writers: list[threading.Thread] = []
        self._end = 0.0  # when to stop waiting for reports; on rank 0
        self._is_reported = False
        place = [socket.gethostname(), os.getpid(), context.collectives.share(), self._stacks]
        store.set(f"place {self.rank}", json.dumps(place))

    def stay_ready(self, timeout: float) -> None:
        """At every heartbeat. If this thread is not scheduled again in time, faulthandler's writes all stacks.

        Something may hold the interpreter's lock: then no Python code can tell where.
        """
        os.ftruncate(self._stacks, 0)
        os.lseek(self._stacks, 0, os.SEEK_SET)
        faulthandler.dump_traceback_later(_STARVED * timeout, file=self._stacks)
        if self._neighbors is None:
            self._meet_neighbors()

    @property
    def is_ready(self) -> bool:
        """Whether the machine's other processes have been met: until then, one that dies leaves nothing behind."""
        return self._neighbors is not None

    def stand_down(self) -> None:
        """No heartbeat follows."""
        faulthandler.cancel_dump_traceback_later()

    def _meet_neighbors(self) -> None:
        """Maps the memory of the machine's other processes while they live; they may still have to start."""
        first = self.rank - int(os.environ.get("LOCAL_RANK", self.rank))
        last = first + int(os.environ.get("LOCAL_WORLD_SIZE", self._size))
        others = [rank for rank in range(first, min(last, self._size)) if rank != self.rank]
        keys = [f"place {rank}" for rank in others]
        if keys and not self._store.check(keys):
            return
        self._neighbors = {}
        for rank, answer in zip(others, self._store.multi_get(keys) if keys else [], strict=True):
            host, pid, log, stacks = json.loads(answer)
            if host == socket.gethostname():
                memory = None
                with contextlib.suppress(OSError):
                    memory = NeighborLog(pid, log)
                self._neighbors[rank] = _Neighbor(pid, memory, Path(f"/proc/{pid}/fd/{stacks}"))

    def folder(self, step: int) -> Path:
        """Where the reports on a hang at this step are written."""
        return self._run / f"hang-{step}"

    def begin(self) -> None:
        """Rank 0 has asked for reports."""
        self._end = time.monotonic() + _REPORTING

    def report(self, step: int, silent: list[int]) -> None:
        """Tells rank 0 what this process knows, once, and starts writing it; also about neighbors that are `silent`."""
        if self._is_reported:
            return
        self._is_reported = True
        own, seen = self._look()
        told = {"own": own.report.to_json(), "seen": {rank: report.to_json() for rank, report in seen.items()}}
        self._store.set(f"hang {self.rank}", json.dumps(told))
        self._write(own, seen, self.folder(step), silent)

    def _look(self) -> tuple[OwnReport, dict[int, RankReport]]:
        log = self._context.collectives
        own = OwnReport(self.rank, log.recent, log.waiting, self._context.device)
        return own, {rank: neighbor.observe() for rank, neighbor in (self._neighbors or {}).items()}

    def _write(self, own: OwnReport, seen: dict[int, RankReport], folder: Path, silent: list[int]) -> None:
        speaks = self.rank == min({self.rank, *seen} - set(silent))
        self._in_background(lambda: own.write(folder))
        for rank in [rank for rank in silent if rank in seen and speaks]:
            neighbor = self._neighbors[rank]
            text = process_snapshot.describe_neighbor(rank, neighbor.pid, seen[rank], neighbor.stacks)
            self._in_background(lambda name=f"rank-{rank}.txt", text=text: write(folder, name, text))

    def _in_background(self, work: Callable[[], None]) -> None:
        def attempt() -> None:
            with contextlib.suppress(OSError, RuntimeError):  # no shared directory, a full disk, a broken device
                work()

        self._writers.append(threading.Thread(target=attempt, name="hang report", daemon=True))
        self._writers[-1].start()

    def gather(self, beats: Callable[[list[int]], list[Beat]], silent: list[int]) -> dict[int, RankReport] | None:
        """All ranks' reports, on rank 0; None while some may still come. `beats`: reads those of ranks."""
        keys = [f"hang {rank}" for rank in range(self._size) if rank not in silent]
        if time.monotonic() < self._end and not self._store.check(keys):
            return None
        told = {}
        for rank in range(self._size):
            if self._store.check([f"hang {rank}"]):
                told[rank] = json.loads(self._store.get(f"hang {rank}"))
        seen = {int(rank): report for answer in told.values() for rank, report in answer["seen"].items()}
        missing = [rank for rank in range(self._size) if rank not in told]
        found = {rank: RankReport.from_json(report["own"]) for rank, report in told.items()}
        for rank, beat in zip(missing, beats(missing), strict=True):
            found[rank] = self._completed(RankReport.from_json(seen[rank]) if rank in seen else None, beat["calls"][0])
        return dict(sorted(found.items()))

    def _completed(self, seen: RankReport | None, call: list[Any]) -> RankReport:
        """What is known of a silent rank: what others saw of it, or its last heartbeat."""
        if seen and seen.is_current:
            return seen
        state, place = (seen.state, seen.place) if seen else ("", "")
        return RankReport([Call(*call)], False, place, state, responds=False, is_current=False)

    def neighbors_mismatch(self) -> bool:
        """Whether this process and its neighbors, dead ones included, have entered different collectives."""
        own, seen = self._look()
        return hang_report.find_mismatch({self.rank: own.report, **seen}) is not None

    def explain(self, reports: dict[int, RankReport], step: int) -> tuple[list[int], str]:
        """(the ranks that hold up the others, the sentence on them), which is also written into the folder."""
        culprits, sentence = hang_report.explain(reports)
        ranks = "\n".join(f"rank {rank}: {_summary(report)}" for rank, report in sorted(reports.items()))
        text = f"{sentence}\n\n{ranks}\n"
        self._in_background(lambda: write(self.folder(step), REPORT, text))
        recorded = json.dumps({rank: report.to_json() for rank, report in sorted(reports.items())})
        self._in_background(lambda: write(self.folder(step), ALL_REPORTS, recorded))
        return culprits, sentence

    def explain_without_main(self, step: int, call: list[Any]) -> tuple[RankReport, str]:
        """(what is known of rank 0, the sentence), where rank 0 and its store do not respond; written by all others."""
        own, seen = self._look()
        main = self._completed(seen.get(0), call)
        self._write(own, seen, self.folder(step), [0])
        others = {rank: replace(report, responds=True) for rank, report in seen.items()}  # they speak as this one does
        reports = dict(sorted({**others, 0: main, self.rank: own.report}.items()))
        if self._context.speaks_without_main:
            return main, self.explain(reports, step)[1]
        return main, hang_report.explain(reports)[1]

    def finish(self) -> None:
        """Waits for the writing, within limits."""
        end = time.monotonic() + _REPORTING
        for writer in self._writers:
            writer.join(max(0.0, end - time.monotonic()))


def _summary(report: RankReport) -> str:
    latest = f"{'in' if report.waiting else 'after'} {report.latest} (number {report.latest.number})"
    return ", ".join(filter(None, [latest, report.place, report.state, "" if report.responds else "does not respond"]))
