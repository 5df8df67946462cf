"""The watchdog's store under the heartbeats of many ranks: real watchdogs and a store, as threads of one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from resnet_cifar.distributed.signals import Interrupted
from resnet_cifar.distributed.watchdog import Watchdog

pytestmark = pytest.mark.proof_only
_TIMEOUT = 120.0  # seconds of silence after which a watchdog would end this process


class Rank:
    """In place of DistributedContext: a rank with a connection of its own to the store."""

    waiting = False

    def __init__(self, rank: int, size: int, port: int) -> None:
        self.rank, self.size, self._port = rank, size, port

    def connect(self) -> dist.TCPStore:
        return dist.TCPStore("localhost", self._port, None, False, timedelta(days=1), wait_for_workers=False)

    def run_on_main(self, work: Callable[[], str]) -> None:
        if self.rank == 0:
            work()


class Requests:
    """In place of StopSignals."""

    def hand_over(self, answer: Callable[[str], None]) -> None:
        self.ask = answer


class Timed(Watchdog):
    """Notes how long each exchange with the store takes."""

    def __init__(self, *arguments: object) -> None:
        self.seconds: list[float] = []
        super().__init__(*arguments)

    def _exchange(self) -> bool:
        began = time.perf_counter()
        over = super()._exchange()
        self.seconds.append(time.perf_counter() - began)
        return over


@pytest.mark.parametrize("size", [64, 512])
def test_the_store_carries_the_heartbeats_of_many_ranks(size: int, record) -> None:
    """Rank 0 reads all of them every half a second, and a stop requested of the last rank reaches every rank."""
    hosted = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)
    requests = [Requests() for _ in range(size)]
    dogs = [Timed(Rank(rank, size, hosted.port), requests[rank], _TIMEOUT) for rank in range(size)]
    for dog in dogs:
        for _ in range(3):
            dog.check_stop()
    while min(len(dog.seconds) for dog in dogs) < 6:
        time.sleep(0.1)
    for dog in dogs:
        dog.seconds.clear()
    cpu, began = time.process_time(), time.perf_counter()
    while min(len(dog.seconds) for dog in dogs) < 6:
        time.sleep(0.1)
    used = (time.process_time() - cpu) / (time.perf_counter() - began)
    main, others = dogs[0].seconds[:], [value for dog in dogs[1:] for value in dog.seconds]
    requests[-1].ask("the test")
    asked = time.perf_counter()

    def stopped(dog: Watchdog) -> float:
        with pytest.raises(Interrupted):
            while True:  # steps of 10 ms
                dog.check_stop()
                time.sleep(0.01)
        return time.perf_counter() - asked

    with ThreadPoolExecutor(size) as pool:
        agreed = max(pool.map(stopped, dogs))
        list(pool.map(Watchdog.close, dogs))
    assert statistics.median(main) < 0.5, "rank 0 falls behind the heartbeats"
    record(
        f"heartbeats of {size} ranks",
        main_milliseconds=round(1000 * statistics.median(main), 1),
        other_milliseconds=round(1000 * statistics.median(others), 2),
        cpu_of_all_ranks=round(used, 2),
        seconds_to_stop_all=round(agreed, 2),
    )
