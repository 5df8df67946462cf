"""Wall-clock time of an attempt by part, for status.json."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator

import psutil


class Timings:
    """Sums the main thread's time by part, from the start of the process. Every second belongs to exactly one part.

    The time before construction is `imports`; time outside of any `part` is `other`. GPU work counts where the host
    waits for it.
    """

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()
        age = time.time() - psutil.Process().create_time()
        self._part, self._since = "imports", time.perf_counter() - age
        self._enter("other")

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A context whose time belongs to the part `name`, except for nested parts."""
        outer = self._enter(name)
        try:
            yield
        finally:
            self._enter(outer)

    def seconds(self) -> dict[str, float]:
        """Part -> seconds so far, in the order of first entry."""
        self._enter(self._part)
        return {name: round(seconds, 2) for name, seconds in self._seconds.items()}

    def _enter(self, name: str) -> str:
        now, left = time.perf_counter(), self._part
        self._seconds[left] += now - self._since
        self._part, self._since = name, now
        return left
