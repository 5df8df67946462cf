"""Requests to stop a run: SIGTERM, SIGUSR1, SIGINT, SIGHUP, the end of the launcher or notebook, --max-minutes.

Python runs signal handlers in the main thread, between bytecodes, and that thread may sit in a collective for minutes.
So the interpreter's own handler writes the signal number to a pipe, which a thread reads. Nothing heavy is imported
here: signals are handled before torch is loaded.
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

from resnet_cifar.config.rerun import how_to_start_again
from resnet_cifar.distributed import launcher_env

EXIT_RESUBMIT = 75  # EX_TEMPFAIL of sysexits.h
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_ECHO = 2.0  # seconds within which a repeated signal is the same request: launchers forward the job's signals
_POLL = 0.5  # seconds between checks of the launcher and the clock


class Interrupted(Exception):
    """The run was asked to stop, and every process stops at this point. The message names the reason."""


class StopSignals:
    """Starts listening on construction. A second signal ends the process immediately."""

    def __init__(self, max_minutes: float = 0.0) -> None:
        self.reason: str | None = None
        self._answer: Callable[[str], None] = _leave
        self._lock = threading.Lock()
        self._first_signal: float | None = None
        self._end = time.monotonic() + 60 * max_minutes if max_minutes else None
        self._limit = f"--max-minutes {max_minutes:g}"
        # Most signals end a launcher without its processes, which should then stop too.
        self._launcher = os.getppid() if launcher_env.by_accelerate() or launcher_env.by_elastic() else None
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, lambda *_: None)
        threading.Thread(target=self._listen, name="interrupts", daemon=True).start()

    def hand_over(self, answer: Callable[[str], None]) -> None:
        """From now on a request calls `answer(reason)`, once, in the listening thread; before, it ends the process."""
        with self._lock:
            self._answer = answer

    def _listen(self) -> None:
        while True:
            if select.select([self._reader], [], [], _POLL)[0]:
                for number in os.read(self._reader, 64):
                    if number in SIGNALS:
                        self._signalled(signal.Signals(number))
            if self._launcher and os.getppid() != self._launcher:
                self._ask("the end of the launcher")
            if launcher_env.follower_is_gone():
                self._ask("the end of the process that monitors it")
            if self._end and time.monotonic() > self._end:
                self._ask(self._limit)

    def _signalled(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
            self._ask(number.name)
        elif now - self._first_signal > _ECHO:
            end_process(128 + number, f"{number.name} again: exiting immediately")

    def _ask(self, reason: str) -> None:
        with self._lock:
            if self.reason is None:
                self.reason = reason
                self._answer(reason)


def end_process(code: int, sentence: str = "") -> NoReturn:
    """Ends the process from any thread, whatever its main thread waits for, even where its output is closed."""
    try:
        if sentence:
            print(sentence, file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:
        os._exit(code)


def exit_code() -> int:
    """The exit code of an interrupted run: 75, or 0 under torch's elastic launcher, which would restart after 75."""
    return 0 if launcher_env.by_elastic() else EXIT_RESUBMIT


def leave(sentence: str) -> NoReturn:
    """Ends a process with nothing to save; rank 0 says why. The code is not 0: other processes wait for this one."""
    end_process(EXIT_RESUBMIT, "" if launcher_env.is_reported_elsewhere() else sentence)


def _leave(reason: str) -> None:
    leave(f"stopped by {reason} before training began: {how_to_start_again()} to start again")
