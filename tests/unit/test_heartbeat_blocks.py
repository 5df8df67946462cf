"""Blocks of ranks give rank 0 what it would read of every rank, also while the first rank of a block is gone."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch.distributed as dist

from resnet_cifar.distributed import watchdog
from resnet_cifar.distributed.collective_log import CollectiveLog
from resnet_cifar.distributed.heartbeats import Beat, Heartbeats, disagree, merge
from resnet_cifar.distributed.watchdog import Watchdog


def beat(rank: int, number: int, **more: object) -> Beat:
    quiet = {"numbers": [number], "begun": [number] * 3, "step": number, "calls": [[number, "gather", "", "", 0]]}
    quiet |= dict.fromkeys(("frozen", "stopped", "broken", "differs"), False)
    return {**quiet, "training": True, "request": None, "failed": None, "ended": [], **more}


class Counted:
    """Counts what one process reads."""

    def __init__(self, store: dist.Store) -> None:
        self._store, self.read = store, 0

    def __getattr__(self, name: str) -> Callable[..., object]:
        return getattr(self._store, name)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self.read += len(keys)
        return self._store.multi_get(keys)


class World:
    """All ranks' heartbeats in one thread; ranks of `gone` no longer post any."""

    def __init__(self, size: int) -> None:
        self.size, self.now, self.gone, self.number = size, 0.0, set(), 1
        store = dist.HashStore()
        self.stores = [Counted(store) for _ in range(size)]
        self.ranks = [Heartbeats(self.stores[rank], rank, size, beat(rank, 1)) for rank in range(size)]

    def pulse(self, **more: Callable[[int], object]) -> Beat:
        """Half a second passes and every rank posts a beat, rank 0 last; what it then reads."""
        self.now, self.number = self.now + 0.5, self.number + 1
        for rank in reversed(range(self.size)):
            if rank not in self.gone:
                self.ranks[rank].post(beat(rank, self.number, **{name: value(rank) for name, value in more.items()}))
        found = self.ranks[0].gather(self.now)
        assert found is not None
        return found


@pytest.mark.parametrize("size", [2, 3, 4, 5, 16, 17, 100, 1024])
def test_rank_0_reads_what_all_ranks_have_posted_and_few_keys(size: int) -> None:
    world = World(size)
    world.pulse()
    for store in world.stores:
        store.read = 0
    last = size - 1
    own = {
        "request": lambda rank: "SIGTERM" if rank == last else None,
        "failed": lambda rank: [rank, 3, "a sentence"] if rank in (last, last // 2) else None,
        "begun": lambda rank: [rank] * 3,
        "ended": lambda rank: [rank] * (rank == last),
        "training": lambda rank: rank == last,
    }
    found = world.pulse(**own)  # what ranks after the first of a block posted in this round is there
    assert found["numbers"] == [world.number] * size
    assert (found["request"], found["ended"]) == ("SIGTERM", [last])
    assert (found["failed"][0], found["training"]) == (last // 2, True)
    assert found["begun"] == [0, last, sum(range(size))]
    assert max(store.read for store in world.stores) <= 2 * math.isqrt(size) + 1


def test_beats_of_blocks_merge_like_those_of_ranks() -> None:
    seeded = random.Random("blocks")
    for _ in range(200):
        beats = [_anything(rank, seeded) for rank in range(seeded.randint(1, 9))]
        cuts = sorted({0, len(beats), *seeded.choices(range(len(beats)), k=2)})
        blocks = [merge(beats[begin:end]) for begin, end in itertools.pairwise(cuts)]
        assert merge(blocks) == merge(beats)
        numbers = Counter(number for number, _ in {(call[0], call[1]) for each in beats for call in each["calls"]})
        assert disagree(merge(blocks)) == (max(numbers.values()) > 1)


def _anything(rank: int, seeded: random.Random) -> Beat:
    flags = {name: seeded.random() < 0.5 for name in ("frozen", "training", "stopped", "broken", "differs")}
    call = [seeded.randint(1, 6), seeded.choice(["gather", "broadcast"]), "", "", 0]
    ended, request = [rank] * seeded.randint(0, 1), seeded.choice([None, f"signal to {rank}"])
    failed = seeded.choice([None, [rank, 1, "a sentence"]])
    return beat(rank, seeded.randint(1, 9), **flags, calls=[call], ended=ended, request=request, failed=failed)


@pytest.mark.parametrize(
    ("size", "gone"),
    [(2, {1}), (3, {1}), (3, {2}), (16, {4}), (16, {5}), (16, {4, 5, 6, 7}), (16, {8, 9}), (16, set(range(2, 16)))],
)
def test_the_silent_ranks_are_those_that_are_gone(size: int, gone: set[int]) -> None:
    """Neither the block of one that is the first of it, nor less than a machine that is gone."""
    world = World(size)
    for _ in range(4):
        world.pulse()
        assert world.ranks[0].silent(world.now, 3.0) == []
    world.gone, left = gone, world.now
    while world.now - left < 3.0:
        world.pulse()
        assert world.ranks[0].silent(world.now, 3.0) == []
    for _ in range(10):
        world.pulse()
        assert set(world.ranks[0].silent(world.now, 3.0)) == gone
    world.gone = set()  # stopped, and continued
    world.pulse()
    assert world.ranks[0].silent(world.now, 3.0) == []


def test_a_rank_that_never_posted_is_waited_for_and_a_first_one_that_posted_once_is_not() -> None:
    store = dist.HashStore()
    main, first = (Heartbeats(store, rank, 4, beat(rank, 1)) for rank in (0, 2))
    Heartbeats(store, 1, 4, beat(1, 1))
    first.post(beat(2, 2))  # its block is not complete
    assert main.gather(0.0) is None
    Heartbeats(store, 3, 4, beat(3, 1))
    assert main.gather(0.5)["numbers"] == [1, 1, 2, 1]


@pytest.mark.parametrize(
    ("asked", "begun", "fate", "leaves"),
    [
        ("SIGTERM", 0, "lost", True),
        ("SIGTERM", 1, "lost", False),  # it may have had something to save
        (None, 0, "lost", False),
        ("SIGTERM", 0, "failed", False),  # a mistake is told, whatever was asked
    ],
)
def test_ranks_that_end_at_a_signal_before_they_listen_lose_nothing(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, begun: int, fate: str, leaves: bool
) -> None:
    monkeypatch.setattr(Watchdog, "_failure", lambda self, world, now: (fate, "rank 2 died"))
    board = main_watchdog(None)._judge(beat(0, 5, request=asked, begun=[0, begun, begun]), now=1.0)
    assert board["leave"] == leaves
    assert board["failed"] == (None if leaves else (fate, "rank 2 died"))


@pytest.mark.parametrize(
    ("first_update", "begun", "seconds", "leaves"),
    [
        (None, 7, 1.0, False),  # a batch whose features a linear probe needs: it ends, and the start with it
        (None, 7, 2.0, True),  # the probe's fit, on rank 0
        (8, 8, 2.0, True),  # the first update compiles
        (8, 9, 2.0, False),  # the first update is done: it is worth saving
        (0, 1, 2.0, False),  # a resumed run that had only its last evaluation left
    ],
)
def test_nothing_waits_for_work_that_leaves_nothing_to_save(
    monkeypatch: pytest.MonkeyPatch, first_update: int | None, begun: int, seconds: float, leaves: bool
) -> None:
    monkeypatch.setattr(Watchdog, "_failure", lambda self, world, now: None)
    dog = main_watchdog(first_update)
    world = beat(0, 5, request="SIGTERM", begun=[begun] * 3, frozen=True)
    assert dog._judge(world, now=10.0)["stop"] == begun
    assert dog._judge(world, now=10.0 + seconds)["leave"] == leaves


def main_watchdog(first_update: int | None) -> Watchdog:
    dog = object.__new__(Watchdog)
    dog.size, dog._beats, dog._step, dog._decided, dog._first_update = 3, 5, 0, 0.0, first_update
    dog._world = SimpleNamespace(collectives=CollectiveLog())
    dog._board = {"asked": None, "stop": None, "leave": False, "failed": None, "over": False, "hang": None}
    return dog


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


class Pair:
    """Rank 0's watchdog, in steps of its thread, and the heartbeats of rank 1."""

    def __init__(self, clock: SimpleNamespace) -> None:
        store, self.clock = dist.HashStore(), clock
        context = SimpleNamespace(rank=0, size=2, collectives=CollectiveLog(), connect=lambda: store)
        context.run_on_main = lambda work: work()
        self.other = Heartbeats(store, 1, 2, beat(1, 1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watchdog, "HangInquiry", lambda *_: Mock(**{"neighbors_mismatch.return_value": False}))
            patch.setattr(watchdog.threading.Thread, "start", lambda self: None)
            self.dog = Watchdog(context, Mock(), 30.0, Path("run"))

    def exchange(self, seconds: float, step: int = 0) -> str | None:
        """`seconds` later; in `step`, rank 1 has begun it, too. Why the run hangs or has failed, if it does."""
        self.clock.now += seconds
        if step:
            self.other.post(beat(1, step, begun=[step] * 3, training=step > 1))
        self.dog._exchange()
        return self.dog._board["hang"] or self.dog._board["failed"]


def test_what_a_suspended_job_slept_through_is_no_silence(clock: SimpleNamespace) -> None:
    pair = Pair(clock)
    for step in range(1, 9):
        pair.dog.check_stop(step)
        assert not pair.exchange(0.5, step)
    assert not pair.exchange(1000.0), "rank 0 runs again, and rank 1 has not posted yet"
    assert not any(pair.exchange(0.5) for _ in range(59))
    assert any(pair.exchange(0.5) for _ in range(8)), "rank 1 does not come back"


@pytest.mark.parametrize(("updates", "hangs"), [(1, False), (2, True)])
def test_the_first_update_may_compile_for_any_time_whatever_was_evaluated(
    clock: SimpleNamespace, updates: int, hangs: bool
) -> None:
    pair = Pair(clock)
    for _ in range(5):
        pair.dog.check_stop()  # a probe's features
    for step in range(updates):
        pair.dog.check_stop(step)

    def beat_on() -> bool:
        pair.other.post(beat(1, next(numbers), begun=[5 + updates] * 3, training=pair.dog._training))
        return bool(pair.exchange(0.5))

    numbers = itertools.count(2)
    assert any(beat_on() for _ in range(100)) == hangs
