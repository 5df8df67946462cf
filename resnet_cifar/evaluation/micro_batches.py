"""Classifies what several threads or tasks submit, in batches of what has arrived."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any


class MicroBatches:
    """One thread that runs `classify` on up to `largest` submitted images at a time.

    It takes what is queued and never waits for more: a lone image is classified at once, and while a batch is computed
    the next one gathers. `classify`: images -> one result each; `observe` is given the size of every batch. Ends with
    the context, after what was submitted before.
    """

    def __init__(
        self, classify: Callable[[Sequence[Any]], Sequence[Any]], largest: int, observe: Callable[[int], object]
    ) -> None:
        self._classify, self._largest, self._observe = classify, largest, observe
        self._queue: queue.SimpleQueue[tuple[Any, Future] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="classify")

    def __enter__(self) -> MicroBatches:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def submit(self, image: Any) -> Future:
        """The result of an image, later; or the exception that `classify` has raised for its batch."""
        future: Future = Future()
        self._queue.put((image, future))
        return future

    @property
    def waiting(self) -> int:
        """How many images are queued and not yet in a batch."""
        return self._queue.qsize()

    def _work(self) -> None:
        is_last = False
        while not is_last:
            batch = [self._queue.get()]
            while len(batch) < self._largest and not self._queue.empty():  # only this thread takes from it
                batch.append(self._queue.get())
            is_last = None in batch
            wanted = [each for each in batch if each is not None and each[1].set_running_or_notify_cancel()]
            if wanted:
                self._run(*zip(*wanted, strict=True))

    def _run(self, images: Sequence[Any], futures: Sequence[Future]) -> None:
        self._observe(len(images))
        try:
            results = self._classify(images)
        except Exception as error:
            for future in futures:
                future.set_exception(error)
            return
        for future, result in zip(futures, results, strict=True):
            future.set_result(result)
