"""Small files of a run, written while training continues: a slow file system must not delay a step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Does what it is given in order, in a thread of its own; after the first error nothing that follows is done."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._last: Future[None] | None = None
        self._error: Exception | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Returns immediately. Raises the first error of what was given before, if it has occurred already."""
        self._check()
        self._last = self._pool.submit(self._attempt, work)

    def settle(self) -> None:
        """Returns when all that was given is done, or has failed."""
        if self._last is not None:
            self._last.result()

    def wait(self) -> None:
        """Returns when all that was given is done. Raises the first error, as often as it is called."""
        self.settle()
        self._check()

    def _attempt(self, work: Callable[[], None]) -> None:
        if self._error is None:
            try:
                work()
            except Exception as error:  # raised by the next call
                self._error = error

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
