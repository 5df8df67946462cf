"""Rank 0's store under many ranks: real watchdogs and a real rendezvous, as threads of one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from resnet_cifar.distributed import rendezvous
from resnet_cifar.distributed.collective_log import CollectiveLog
from resnet_cifar.distributed.heartbeats import Beat, Heartbeats
from resnet_cifar.distributed.launcher_env import Place
from resnet_cifar.distributed.signals import Interrupted
from resnet_cifar.distributed.watchdog import Watchdog

pytestmark = pytest.mark.proof_only
_TIMEOUT = 120.0  # seconds of silence after which a watchdog would end this process


class Rank:
    """In place of DistributedContext: a rank with a connection of its own to the store."""

    def __init__(self, rank: int, size: int, port: int) -> None:
        self.rank, self.size, self._port, self.collectives = rank, size, port, CollectiveLog()

    def connect(self) -> dist.TCPStore:
        return connected(self._port)

    def run_on_main(self, work: Callable[[], str]) -> None:
        if self.rank == 0:
            work()


def connected(port: int) -> dist.TCPStore:
    return dist.TCPStore("localhost", port, None, False, timedelta(days=1), wait_for_workers=False)


@pytest.fixture
def hosted() -> dist.TCPStore:
    return dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)


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
def test_the_store_carries_the_heartbeats_of_many_ranks(size: int, hosted, record, tmp_path, monkeypatch) -> None:
    """Rank 0 reads them every half a second, and a stop requested of the last rank reaches every rank."""
    monkeypatch.setenv("LOCAL_RANK", "0")  # each is alone on its machine: the others' memory is not mapped
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    requests = [Requests() for _ in range(size)]

    def watch(rank: int) -> Timed:
        return Timed(Rank(rank, size, hosted.port), requests[rank], _TIMEOUT, tmp_path)

    with ThreadPoolExecutor(size) as pool:
        dogs = list(pool.map(watch, range(size)))
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
    side = len(dogs[0]._pulse._block)
    main, firsts = dogs[0].seconds[:], [value for dog in dogs[side::side] for value in dog.seconds]
    others = [value for rank, dog in enumerate(dogs) if rank % side for value in dog.seconds]
    requests[-1].ask("the test")
    asked = time.perf_counter()

    def stopped(dog: Watchdog) -> float:
        with pytest.raises(Interrupted):
            while True:  # steps of 10 ms for 64 ranks: more of one interpreter, which they share, would delay them
                dog.check_stop()
                time.sleep(0.01 * size / 64)
        return time.perf_counter() - asked

    with ThreadPoolExecutor(size) as pool:
        agreed = max(pool.map(stopped, dogs))
        list(pool.map(Watchdog.close, dogs))
    assert statistics.median(main) < 0.5, "rank 0 falls behind the heartbeats"
    record(
        f"heartbeats of {size} ranks",
        main_milliseconds=round(1000 * statistics.median(main), 1),
        first_of_block_milliseconds=round(1000 * statistics.median(firsts), 2),
        other_milliseconds=round(1000 * statistics.median(others), 2),
        cpu_of_all_ranks=round(used, 2),
        seconds_to_stop_all=round(agreed, 2),
    )


@pytest.mark.parametrize("size", [512, 4096])
def test_rank_0_and_the_first_of_a_block_read_few_beats_of_many(size: int, hosted, record) -> None:
    """What a round costs them, besides what all ranks do: read by one client from a store that holds all beats."""
    call = [100, "all-reduce", "step 100", "training/metric_accumulator.py:100", 100]
    quiet = {"begun": [100] * 3, "step": 100, "calls": [call], "training": True, "request": None, "failed": None}
    quiet |= {"frozen": False, "stopped": False, "broken": False, "differs": False, "ended": []}

    def beat(number: int) -> Beat:
        return {**quiet, "numbers": [number]}

    store = connected(hosted.port)
    ranks = [Heartbeats(store, rank, size, beat(0)) for rank in range(size)]
    side, main, first = len(ranks[0]._block), [], []
    for round_ in range(20):
        for rank in ranks[side::side]:
            began = time.perf_counter()
            rank.post(beat(round_))
            first.append(time.perf_counter() - began)
        began = time.perf_counter()
        ranks[0].gather(round_ / 2)
        main.append(time.perf_counter() - began)
    began = time.perf_counter()
    ranks[0].read(range(size))
    record(
        f"beats of {size} ranks in one store",
        main_milliseconds=round(1000 * statistics.median(main), 2),
        first_of_block_milliseconds=round(1000 * statistics.median(first), 2),
        all_beats_milliseconds=round(1000 * (time.perf_counter() - began), 1),
    )


@pytest.mark.parametrize("size", [64, 512])
def test_many_ranks_meet(size: int, hosted, record) -> None:
    """All but the last are there and wait; then it comes."""
    with ThreadPoolExecutor(size) as pool:
        stores = list(pool.map(connected, [hosted.port] * size))
        places = [Place(rank, size, "localhost", hosted.port) for rank in range(size)]
        waiting = [pool.submit(rendezvous._announce, places[rank], stores[rank]) for rank in range(size - 1)]
        while hosted.add("ranks", 0) < size - 1:
            time.sleep(0.01)
        cpu, began = time.process_time(), time.perf_counter()
        time.sleep(2)
        used = (time.process_time() - cpu) / (time.perf_counter() - began)
        looks = []
        for _ in range(50):
            began = time.perf_counter()
            stores[-1].check(["met"])
            looks.append(time.perf_counter() - began)
        came = time.perf_counter()
        assert rendezvous._announce(places[-1], stores[-1]) == ""
        assert {each.result(timeout=60) for each in waiting} == {""}
    record(
        f"rendezvous of {size} ranks",
        cpu_of_all_that_wait=round(used, 2),
        look_milliseconds=round(1000 * statistics.median(looks), 2),
        seconds_from_the_last_to_all=round(time.perf_counter() - came, 2),
    )
