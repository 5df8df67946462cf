"""Requests to end a run: SIGTERM, SIGUSR1, SIGINT, SIGHUP, a launcher or notebook that is gone, --max-minutes.

Python runs signal handlers in the main thread, between bytecodes, and that may sit in a collective for minutes. So the
interpreter's own handler writes the signal's number into a pipe, and a thread reads it. Nothing heavy is imported here:
a run listens before torch is loaded.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from resnet_cifar.distributed import launcher_env

EXIT_RESUBMIT = 75  # EX_TEMPFAIL of sysexits.h
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_ECHO = 2.0  # seconds in which the same request arrives twice: launchers pass on what the whole job got
_LOOK = 0.5  # seconds between looks at the launcher and the clock


class Interrupted(Exception):
    """The run was asked to end, and every process stops at this point. The message says by what."""


class StopSignals:
    """Listens from its making on. A second signal ends the process at once, whatever it is doing."""

    def __init__(self, max_minutes: float = 0.0) -> None:
        self.reason: str | None = None
        self._answer: Callable[[str], None] = _leave
        self._lock = threading.Lock()
        self._first_signal: float | None = None
        self._end = time.monotonic() + 60 * max_minutes if max_minutes else None
        self._limit = f"--max-minutes {max_minutes:g}"
        # Most signals end a launcher without its processes, and its end should end them.
        self._launcher = os.getppid() if launcher_env.by_accelerate() or launcher_env.by_elastic() else None
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, lambda *_: None)
        threading.Thread(target=self._listen, name="interrupts", daemon=True).start()

    def hand_over(self, answer: Callable[[str], None]) -> None:
        """From now on a request is `answer(reason)`, once, in the listening thread; until then it ends the process."""
        with self._lock:
            self._answer = answer

    def _listen(self) -> None:
        while True:
            if select.select([self._reader], [], [], _LOOK)[0]:
                for number in os.read(self._reader, 64):
                    if number in SIGNALS:
                        self._signalled(signal.Signals(number))
            if self._launcher and os.getppid() != self._launcher:
                self._ask("the end of the launcher")
            if launcher_env.follower_is_gone():
                self._ask("the end of what started it")
            if self._end and time.monotonic() > self._end:
                self._ask(self._limit)

    def _signalled(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
            self._ask(number.name)
        elif now - self._first_signal > _ECHO:
            end_process(128 + number, f"{number.name} again: ending at once")

    def _ask(self, reason: str) -> None:
        with self._lock:
            if self.reason is None:
                self.reason = reason
                self._answer(reason)


def end_process(code: int, sentence: str = "") -> NoReturn:
    """Ends the process from any thread, whatever its main thread waits for and whether or not anybody reads."""
    try:
        if sentence:
            print(sentence, file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:
        os._exit(code)


def exit_code() -> int:
    """What an interrupted run ends with: 75, or 0 behind torch's elastic launcher, which would start 75 over."""
    return 0 if launcher_env.by_elastic() else EXIT_RESUBMIT


def _leave(reason: str) -> None:
    """Before training has begun there is nothing to save. The code is no success: other processes wait for this one."""
    sentence = f"stopped by {reason} before training began: the same command starts again"
    end_process(EXIT_RESUBMIT, sentence if os.environ.get("RANK", "0") == "0" else "")
