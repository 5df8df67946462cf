"""Agreement between processes outside of training: where to stop together, and which rank holds up the others.

In each process a thread writes a heartbeat to rank 0's store (`heartbeats`) and reads rank 0's board there. It uses no
collective and never waits for the device, so it works while the main threads are blocked.

To stop, rank 0 puts the request on the board; every process then freezes (its main thread begins no further unit of
work: a step or an evaluation batch) and reports how many it has begun; all stop at the largest of these numbers.

When a rank hangs, rank 0 puts that on the board, too: every process then reports its stack and its latest collectives
(`hang_report`), and rank 0 names the rank and what it did not enter.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_cifar.config.rerun import how_to_resume
from resnet_cifar.distributed import hang_report, heartbeats, rendezvous
from resnet_cifar.distributed.collective_log import NO_CALL
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.distributed.hang_inquiry import HangInquiry
from resnet_cifar.distributed.heartbeats import Beat, Heartbeats
from resnet_cifar.distributed.signals import Interrupted, StopSignals, end_process, exit_code

_BEAT = 0.5  # seconds between heartbeats
_FIRST = 1.5  # seconds that the work before the end of the first update may take before it is abandoned
_SILENCE = 3.0  # seconds without a heartbeat after which a disconnected process counts as dead
_TOGETHER = 1.5  # seconds within which ranks are missed that died at one moment: three beats, of them and their blocks
_VERDICT = 10.0  # seconds to find out which process died
DIED = "died or lost the network"
_FINISHING = 15.0  # seconds for rank 0 to finish the trackers
RESUME_HINT = f"{how_to_resume()} to resume from the latest checkpoint, if there is one"


class Watchdog:
    """One process's part. The main thread calls `check_stop` before every unit of work, equally often on all ranks.

    `leaving(state, reason, **facts)` is called on rank 0, not in the main thread, before the process ends. `folder`:
    the run directory, where reports on a hang are written.
    """

    def __init__(self, context: DistributedContext, requests: StopSignals, timeout: float, folder: Path) -> None:
        self.rank, self.size, self.timeout = context.rank, context.size, timeout
        self.leaving: Callable[..., None] = lambda state, reason, **facts: None
        self._world = context
        self._store = context.connect()
        self._fast_beat = min(_BEAT, rendezvous.poll_interval(self.size))  # while an agreement is pending
        self._changed = threading.Condition()
        self._begun, self._step = 0, 0
        self._first_update: int | None = None  # which unit of work it is
        self._request: str | None = None
        self._reason: str | None = None
        self._stop: int | None = None
        self._frozen = self._stopped = self._broken = self._differs = self._ended = self._done = self._training = False
        self._decided = 0.0  # when rank 0 decided where to stop
        self._failed: str | None = None
        self._losing = threading.Lock()
        self._beats = 0
        self._board: dict[str, Any] = {"beats": 0, "step": 0, "asked": None, "stop": None, "leave": False}
        self._board |= {"failed": None, "over": False, "hang": None, "call": NO_CALL}
        now = time.monotonic()
        self._read_at = now  # when the board last changed
        self._exchanged_at = now
        self._progress: tuple[list[int], float] = ([], now)
        if self._store is not None:
            self._hang = HangInquiry(context, self._store, folder)
            self._pulse = Heartbeats(self._store, self.rank, self.size, self._beat())
            context.run_on_main(lambda: self._store.set("board", json.dumps(self._board)) or "")
        self._thread = threading.Thread(target=self._serve, name="watchdog", daemon=True)
        self._thread.start()
        requests.hand_over(self._request_stop)

    def check_stop(self, step: int | None = None) -> None:
        """Call before a unit of work (of update `step`). Raises Interrupted, on every rank before the same unit."""
        with self._changed:
            while self._frozen and self._stop is None:
                self._changed.wait()
            if self._stop is not None and self._begun >= self._stop:
                self._stopped = True
                raise Interrupted(self._reason)
            self._begun += 1
            self._world.collectives.begin("the evaluation" if step is None else f"step {step}")
            if step is not None:
                self._training = self._first_update is not None  # the first update may include a compilation
                self._step, self._first_update = step, self._first_update or self._begun

    def training_done(self) -> None:
        """Training is over: progress is no longer required, since rank 0 evaluates and exports alone."""
        self._training, self._first_update = False, self._first_update or 0

    def fail(self, sentence: str, everywhere: bool) -> None:
        """Reports that this process ends and why, so that the others end too; returns when they had time to do so.

        `everywhere`: all ranks have the same error, and rank 0 prints it.
        """
        if self._store is None:
            return
        if self._hang.neighbors_mismatch():  # whatever failed, it is a consequence: some values are nonsense
            with self._changed:
                self._differs = True
            self._thread.join(_VERDICT)
        if everywhere and self.rank != 0:
            time.sleep(_SILENCE)
        with self._changed:
            self._failed = sentence
            self._changed.notify_all()
        time.sleep(4 * _BEAT)
        with self._changed:
            self._done = True
            self._changed.notify_all()
        self._thread.join(_BEAT)  # Python aborts if it exits while a thread is inside torch

    def blame(self) -> None:
        """After a lost connection: ends this process once it is known which rank died; returns if none did in 10 s."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()
        self._thread.join(_VERDICT)

    def close(self) -> None:
        """This process is done; returns when all are, or when rank 0, which holds the store, has ended."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    # The thread

    def _serve(self) -> None:
        if self.rank != 0:
            threading.Thread(target=self._guard, name="guard", daemon=True).start()
        try:
            self._beat_until_over()
        finally:
            if self._store is not None:
                self._hang.stand_down()

    def _beat_until_over(self) -> None:
        while True:
            with self._changed:
                seeking = ((self._request or self._frozen) and self._stop is None) or self._broken or self._ended
                is_new = self._store is not None and not self._hang.is_ready
                self._changed.wait(self._fast_beat if seeking or is_new else _BEAT)
            if self._done:
                return
            try:
                over = self._exchange()
            except RuntimeError:  # includes torch's DistError: rank 0 and its store have ended
                if not self._ended:
                    self._lose_main()
                over = True
            except BaseException:  # no other thread could end the process
                traceback.print_exc()
                os._exit(1)
            if over:
                return

    def _exchange(self) -> bool:
        """Writes the heartbeat and acts on the board; returns whether all processes are done."""
        beat = self._beat()
        if self._store is None:
            board = self._judge(beat, time.monotonic())
        else:
            self._hang.stay_ready(self.timeout)
            self._pulse.post(beat)
            if self.rank == 0:
                now = time.monotonic()
                world = self._pulse.gather(now)
                paused, self._exchanged_at = now - self._exchanged_at, now
                if world is None:  # some process has not started yet
                    return False
                if paused > _SILENCE:  # with the whole job, perhaps: the others' silence during it says nothing
                    self._pulse.excuse(paused)
                    self._progress = (self._progress[0], self._progress[1] + paused)
                board = self._judge(world, now)
                self._store.set("board", json.dumps(board))
            else:
                board = json.loads(self._store.get("board"))
                if board["beats"] != self._board["beats"]:
                    self._read_at, self._board = time.monotonic(), board
        if not self._failed:
            self._act_on(board)
        return board["over"]

    def _beat(self) -> Beat:
        self._beats += 1
        with self._changed:
            return {
                "numbers": [self._beats],
                "begun": [self._begun] * 3,
                "step": self._step,
                "calls": [self._world.collectives.latest],
                "training": self._training,
                "request": self._request,
                "frozen": self._frozen,
                "stopped": self._stopped,
                "broken": self._broken,
                "differs": self._differs,
                "failed": self._failed and [self.rank, self._step, self._failed],
                "ended": [self.rank] * self._ended,
            }

    def _judge(self, world: Beat, now: float) -> dict[str, Any]:
        """Rank 0's decisions, from the latest heartbeats of all ranks."""
        board, (_, most, _) = self._board, world["begun"]
        board["beats"], board["step"], board["call"] = self._beats, self._step, self._world.collectives.latest
        board["over"] = len(world["ended"]) == self.size
        board["asked"] = board["asked"] or world["request"]
        if board["asked"] and board["stop"] is None and world["frozen"]:
            board["stop"], self._decided = most, now
        has_updated = self._first_update is not None and most > self._first_update
        if board["stop"] is not None and not has_updated and not world["stopped"]:
            # There is nothing to save yet, and a linear probe's fit or a compilation may take long.
            board["leave"] = board["stop"] == 0 or now - self._decided > _FIRST
        if self.size > 1 and not board["failed"]:
            board["failed"] = self._failure(world, now)
            if board["failed"] and board["failed"][0] == "lost" and board["asked"] and not most:
                # The signal also reached ranks that were not listening yet and ended at once: nothing is lost.
                board["failed"], board["leave"] = None, True
        return board

    def _failure(self, world: Beat, now: float) -> tuple[str, str] | None:
        """How the run ends, `failed` or `lost`, and the error message; None while all is well."""
        if self._board["hang"]:
            return self._explain()
        is_broken = world["broken"]
        patience = _SILENCE if is_broken else self.timeout
        silent = self._silent(world, now, patience + _TOGETHER) and self._silent(world, now, patience)
        differs = world["differs"] or heartbeats.disagree(world)
        if differs or (silent and (not is_broken or self._hang.neighbors_mismatch())):
            return self._inquire(world, now)
        if silent:
            return "lost", f"{self._named(silent)} {DIED}: {RESUME_HINT}"
        if world["failed"]:
            rank, step, sentence = world["failed"]
            return "failed", f"rank {rank} failed at step {step}: {sentence}"
        if world["begun"] != self._progress[0] or not world["training"]:
            self._progress = (world["begun"], now)
        elif now - self._progress[1] > self.timeout:
            return self._inquire(world, now)
        return None

    def _silent(self, world: Beat, now: float, patience: float) -> list[int]:
        """The ranks without a heartbeat for `patience` seconds."""
        return [rank for rank in self._pulse.silent(now, patience) if rank not in world["ended"]]

    def _inquire(self, world: Beat, now: float) -> None:
        """Asks all ranks for reports; the beats after this one explain the hang from them."""
        silent = self._silent(world, now, min(_SILENCE, self.timeout))
        self._board["hang"] = {"step": world["step"], "silent": silent}
        self._hang.begin()

    def _explain(self) -> tuple[str, str] | None:
        """Why the run hangs; None until the reports are there."""
        step, silent = self._board["hang"]["step"], self._board["hang"]["silent"]
        reports = self._hang.gather(self._pulse.read, silent)
        if reports is None:
            return None
        culprits, sentence = self._hang.explain(reports, step)
        silent = [rank for rank, report in reports.items() if not report.responds]
        if silent:
            fate = DIED if all(reports[rank].is_gone for rank in silent) else "no longer responds"
            sentence = f"{self._named(silent)} {fate}: {sentence}"
        elif not hang_report.find_mismatch(reports):
            stuck = f"made no progress for {self.timeout:g} s (rank_timeout)"
            sentence = f"{self._named(culprits)} {stuck}: {sentence}"
        return "lost", f"{sentence} (see {self._hang.folder(step)}): {RESUME_HINT}"

    def _guard(self) -> None:
        """Gives up on rank 0 when its board no longer changes: a call to a frozen store never returns."""
        now = time.monotonic()
        while self._thread.is_alive():
            time.sleep(_BEAT)
            paused, now = time.monotonic() - now, time.monotonic()
            if paused > _SILENCE:
                self._read_at += paused
            patience = _SILENCE if self._broken else self.timeout
            if now - self._read_at > patience + 2 * _FINISHING * bool(self._board["failed"]):
                self._lose_main(is_silent=not self._broken)

    def _lose_main(self, is_silent: bool = False) -> None:
        """`is_silent`: its store does not respond; otherwise the connection is lost."""
        if self._ended:  # this process is done
            end_process(0 if self._stop is None else exit_code())
        if not self._failed:  # a failed process prints its own error
            self._losing.acquire()  # for good: two threads may notice, and one of them explains it
            sentence = f"{self._fate_of_main(is_silent)}: {RESUME_HINT}"
            end_process(1, f"error: {sentence}" if self._world.speaks_without_main else "")

    def _fate_of_main(self, is_silent: bool) -> str:
        """What became of rank 0, without its help."""
        lost = f"rank 0 (last heard of at step {self._board['step']})"
        if not is_silent and not self._hang.neighbors_mismatch():
            return f"{lost} {DIED}"
        step = max(self._board["step"], self._step)
        main, why = self._hang.explain_without_main(step, self._board["call"])
        self._hang.finish()
        return f"{lost} {DIED if main.is_gone else 'no longer responds'}: {why} (see {self._hang.folder(step)})"

    def _act_on(self, board: dict[str, Any]) -> None:
        if board["hang"]:
            self._hang.report(**board["hang"])
        if board["failed"]:
            self._give_up(*board["failed"])
        if board["leave"]:
            self._leave(board["asked"])
        with self._changed:
            if board["asked"]:
                self._frozen, self._reason = True, board["asked"]
            if board["stop"] is not None:
                self._stop = board["stop"]
                self._changed.notify_all()

    def _request_stop(self, reason: str) -> None:
        with self._changed:
            self._request = reason
            self._changed.notify_all()

    def _give_up(self, state: str, sentence: str) -> None:
        """Ends this process, whose main thread may wait forever."""
        try:
            self._sign_off(state, sentence)
        finally:
            end_process(1, f"error: {sentence}" if self.rank == 0 else "")

    def _leave(self, reason: str) -> None:
        """Ends this process, which has nothing to save."""
        try:
            self._sign_off("interrupted", reason)
        finally:
            end_process(exit_code())

    def _sign_off(self, state: str, why: str) -> None:
        """Rank 0 writes the final state and gives the others time to read the board; they stay until it has ended.

        Its main thread may be in a collective with theirs, and their end would look like a failure to it.
        """
        hang = self._board["hang"]
        if hang:
            self._hang.finish()
        if self.rank == 0:
            facts = {"hang": self._hang.folder(hang["step"]).name} if hang else {}
            last = threading.Thread(target=self.leaving, args=(state, why), kwargs=facts, daemon=True)
            last.start()
            last.join(_FINISHING if hang else None)  # its file system may be what hangs
            time.sleep(2 * _BEAT * (self.size > 1))
            return
        end = time.monotonic() + _FINISHING
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < end:
                self._store.check(["board"])
                time.sleep(self._fast_beat)

    def _named(self, ranks: list[int]) -> str:
        """`rank 2 (last heard of at step 41)`, or several."""
        steps = [beat["step"] for beat in self._pulse.read(ranks)]
        return ", ".join(f"rank {rank} (last heard of at step {step})" for rank, step in zip(ranks, steps, strict=True))
