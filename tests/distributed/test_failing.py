"""A process fails before training, or never comes: the others say so and do not wait for an hour.

The processes are started by hand, as on two terminals: no launcher ends them when another one has ended.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from resnet_cifar.config.errors import NodeError, RankError, UserError
from resnet_cifar.distributed import rendezvous
from resnet_cifar.distributed.collective_log import CollectiveLog
from resnet_cifar.distributed.context import DistributedContext, _collective
from resnet_cifar.distributed.launcher_env import Place


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


FAILING = (str(Path(__file__).with_name("failing.py")),)
# What each machine prepares stays on it, and its processes share it.
PREPARING = """
import os, sys
from resnet_cifar.distributed.context import DistributedContext
context = DistributedContext("no")
mine = context.run_on_main(lambda: os.environ["MACHINE"], per_node=True)
print(context.node, context.nodes, context.node_size, mine)
context.close()
"""


def start(rank: int, port: int, *program: str, size: int = 2, **place: object) -> subprocess.Popen:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port, **place}
    env = {**os.environ, **{name: str(value) for name, value in place.items()}, "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, *(program or FAILING)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_machines_are_told_apart_without_a_launcher(port: int) -> None:
    """Rank 0 on the first, ranks 1 and 2 on the second."""
    places = [{"LOCAL_RANK": 0, "MACHINE": "a"}, {"LOCAL_RANK": 0, "MACHINE": "b"}, {"LOCAL_RANK": 1, "MACHINE": "b"}]
    started = [start(rank, port, "-c", PREPARING, size=3, **place) for rank, place in enumerate(places)]
    said = [process.communicate(timeout=100) for process in started]
    assert [out for out, _ in said] == ["0 2 1 a\n", "1 2 2 b\n", "1 2 2 b\n"], said


def test_a_process_says_whom_it_waits_for_and_who_failed(port: int) -> None:
    first = start(0, port)
    address = f"waiting for 1 of 2 processes at 127.0.0.1:{port} (WORLD_SIZE=2): "
    assert first.stderr.readline() == f"{address}rank 1\n"
    second = start(1, port)
    said = [process.communicate(timeout=60)[1].split("\n") for process in (first, second)]
    assert said[1][-2] == "error: rank 0 failed (RuntimeError: on purpose), and the other processes stop"
    assert "Traceback" not in "".join(said[1])
    assert next(line for line in said[0] if not line.startswith(address)).startswith("rank 0 on ")
    assert "RuntimeError: on purpose" in "".join(said[0])
    assert (first.returncode, second.returncode) == (1, 1)


def test_ctrl_c_ends_the_wait_for_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def hear(sentence: str, **_: object) -> None:
        said.append(sentence)
        if len(said) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(rendezvous, "_REPORT", 0.0)
    monkeypatch.setattr(rendezvous, "print", hear, raising=False)
    with pytest.raises(KeyboardInterrupt):
        rendezvous.await_server(Place(1, 2, "127.0.0.1", 9))  # nobody listens at the discard port
    sentence = "waiting for 1 of 2 processes at 127.0.0.1:9 (WORLD_SIZE=2): rank 0 (Connection refused)"
    assert said == [sentence, sentence]


def test_processes_that_have_met_and_do_not_connect_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    said, twice = [], threading.Event()

    def hear(sentence: str, **_: object) -> None:
        said.append(sentence)
        if len(said) == 2:
            twice.set()

    monkeypatch.setattr(rendezvous, "_REPORT", 0.01)
    monkeypatch.setattr(rendezvous, "print", hear, raising=False)
    with rendezvous.connecting(Place(1, 2, "head", 29500), "gloo"):
        assert twice.wait(20)
    assert set(said) == {
        "rank 1 is connecting to the others, which it has met at head:29500 (WORLD_SIZE=2): they must reach each other "
        "on any port, over one network (GLOO_SOCKET_IFNAME names its interface)"
    }


class TestTurns:
    """Two ranks in two threads, with the store and without Accelerate."""

    @pytest.fixture(autouse=True)
    def _ranks(self, port: int) -> Iterator[None]:
        self.stores = [dist.TCPStore("127.0.0.1", port, None, rank == 0, wait_for_workers=False) for rank in (0, 1)]
        self.ranks = [self.context(rank) for rank in (0, 1)]
        yield
        del self.ranks, self.stores

    def context(self, rank: int) -> DistributedContext:
        context = object.__new__(DistributedContext)
        context.rank, context.size, context.is_main, context.collectives = rank, 2, rank == 0, CollectiveLog()
        context._store, context._turns = self.stores[rank], 0
        context.node, context.nodes, context.node_size = 0, 1, 2
        context._accelerator = SimpleNamespace(is_local_main_process=rank == 0)
        return context

    def both(self, *works: Callable[[DistributedContext], str]) -> list[BaseException | None]:
        """What `works` of the two ranks raise, while both run."""
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(work, rank) for work, rank in zip(works, self.ranks, strict=True)]
            return [future.exception(timeout=20) for future in futures]

    @pytest.mark.parametrize(
        "error", [RuntimeError("a"), OSError(28, "No space left"), SystemExit(3), KeyboardInterrupt()]
    )
    @pytest.mark.parametrize("per_node", [False, True])
    def test_any_failure_in_the_turn_of_rank_0_ends_the_other(self, error: BaseException, per_node: bool) -> None:
        def fail() -> str:
            raise error

        turn = lambda rank: rank.run_on_main(fail, per_node)  # noqa: E731
        first, second = self.both(turn, turn)
        assert first is error
        assert isinstance(second, RankError) and second.is_told_here
        assert str(second).startswith(f"rank 0 failed ({type(error).__name__}")

    @pytest.mark.parametrize(("error", "is_told"), [(UserError("a field is wrong"), False), (OSError("torn"), True)])
    def test_a_mistake_of_rank_0_alone_is_one_sentence_of_a_machine(self, error: Exception, is_told: bool) -> None:
        def fail(rank: DistributedContext) -> None:
            with rank.sharing_failures():
                raise error

        first, second = self.both(fail, lambda rank: rank.run_on_main(lambda: "never"))
        assert first is error and isinstance(second, RankError)
        assert (second.is_told_here, second.code) == (is_told, 1 if is_told else 2)

    def test_a_failure_beside_the_turns_ends_the_other_at_its_next_turn(self) -> None:
        failed = threading.Event()

        def fail(rank: DistributedContext) -> None:
            with rank.sharing_failures():
                raise OSError("torn\nfile")

        def turn(rank: DistributedContext) -> str:
            failed.wait(20)
            return rank.run_on_main(lambda: "never")

        def fail_and_tell(rank: DistributedContext) -> None:
            try:
                fail(rank)
            finally:
                failed.set()

        first, second = self.both(turn, fail_and_tell)
        assert isinstance(second, OSError)
        assert isinstance(first, RankError) and first.is_told_here
        assert str(first) == "rank 1 failed (OSError: torn), and the other processes stop"
        assert first.code == 1

    @pytest.mark.parametrize(("per_node", "kind"), [(False, UserError), (True, NodeError)])
    def test_a_mistake_is_raised_by_both(self, per_node: bool, kind: type[UserError]) -> None:
        def mistake() -> str:
            raise UserError("data.source 'x' is empty")

        turn = lambda rank: rank.run_on_main(mistake, per_node)  # noqa: E731
        assert [(type(error), str(error)) for error in self.both(turn, turn)] == [
            (kind, "data.source 'x' is empty")
        ] * 2

    def test_a_node_that_fails_ends_the_others(self) -> None:
        """Two machines with one process each: only one of them cannot write its cache."""
        for rank in self.ranks:
            rank.node, rank.nodes, rank.node_size = rank.rank, 2, 1
            rank._accelerator.is_local_main_process = True

        def turn(rank: DistributedContext) -> str:
            def work() -> str:
                if rank.is_main:
                    return "prepared"
                raise UserError("the cache is full")

            return rank.run_on_main(work, per_node=True)

        first, second = self.both(turn, turn)
        assert isinstance(second, NodeError) and str(second) == "the cache is full"
        assert isinstance(first, RankError) and "rank 1 failed (the cache is full)" in str(first)
        assert first.code == 2, "a user's mistake, whichever process ends first"

    def test_a_method_that_waits_inside_another_leaves_it_waiting(self) -> None:
        """The watchdog blames the ranks that are not waiting; rank 0 does not wait while it works for the others."""
        seen = {}

        def work() -> str:
            seen["at work"] = self.ranks[0].waiting
            return "done"

        def twice(rank: DistributedContext) -> None:
            rank.run_on_main(work)
            seen[rank.rank] = rank.waiting

        waits = _collective("test")(twice)
        assert self.both(waits, waits) == [None, None]
        assert seen == {"at work": False, 0: True, 1: True}
        assert [rank.waiting for rank in self.ranks] == [False, False]

    def test_a_store_that_is_gone_names_rank_0(self) -> None:
        self.ranks[0]._store = self.stores[0] = None
        with pytest.raises(RankError, match=r"^rank 0 failed \(it died or lost the network\)"):
            self.ranks[1].run_on_main(lambda: "never")


def test_processes_that_disagree_about_their_number_are_told(port: int) -> None:
    """Each of them, and nobody waits for who never comes."""
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(rendezvous.meet, Place(0, 3, "127.0.0.1", port))
        rendezvous.await_server(Place(1, 3, "127.0.0.1", port))
        _server(port).wait(["rank 0"])
        second = pool.submit(rendezvous.meet, Place(1, 2, "127.0.0.1", port))
        for meeting in (first, second):
            with pytest.raises(NodeError, match=r"^rank 1 was started with WORLD_SIZE=2 and rank 0 with 3$"):
                meeting.result(timeout=20)


def test_a_process_that_waits_for_others_is_told_that_rank_0_has_ended(port: int) -> None:
    server = dist.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)
    with ThreadPoolExecutor(1) as pool:
        meeting = pool.submit(rendezvous.meet, Place(1, 3, "127.0.0.1", port))
        dist.PrefixStore("attempt 0", server).wait(["rank 1"])
        del server
        with pytest.raises(NodeError, match=rf"^rank 0 ended while rank 1 waited for others at 127.0.0.1:{port} \("):
            meeting.result(timeout=20)


def _server(port: int) -> dist.Store:
    """A connection of its own to the store at which processes meet."""
    return dist.PrefixStore("attempt 0", dist.TCPStore("127.0.0.1", port, None, False, wait_for_workers=False))


def test_a_wait_looks_at_one_key_whatever_the_number_of_processes(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but rank 9 come, rank 3 twice; every one of them names rank 9, which only one has looked for."""
    size, speakers, looked = 12, set(), []
    names = f"waiting for 1 of {size} processes at 127.0.0.1:{port} (WORLD_SIZE={size}): rank 9"
    everyone = threading.Event()

    def hear(sentence: str, **_: object) -> None:
        if sentence == names:
            speakers.add(threading.get_ident())
        if len(speakers) == size:
            everyone.set()

    class Counted:
        """The looks of one process, except for the first one's, at who is absent."""

        def __init__(self, rank: int) -> None:
            self._store, self._rank = _server(port), rank

        def __getattr__(self, name: str) -> Callable[..., object]:
            return getattr(self._store, name)

        def check(self, keys: list[str]) -> bool:
            looked.append((self._rank, *keys))
            return self._store.check(keys)

    monkeypatch.setattr(rendezvous, "_REPORT", 0.0)
    monkeypatch.setattr(rendezvous, "print", hear, raising=False)
    server = dist.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)
    with ThreadPoolExecutor(size + 1) as pool:
        early = [rank for rank in range(size) if rank != 9] + [3]
        places = [Place(rank, size, "127.0.0.1", port) for rank in range(size)]
        meetings = [pool.submit(rendezvous._announce, places[rank], Counted(rank)) for rank in early]
        assert everyone.wait(20)
        meetings.append(pool.submit(rendezvous._announce, places[9], Counted(9)))
        assert {meeting.result(timeout=20) for meeting in meetings} == {""}
    assert {len(keys) for _, *keys in looked} == {1}
    assert len({rank for rank, key in looked if key == "rank 9"}) == 1
    assert {key for _, key in looked} == {"met", "absent", *(f"rank {rank}" for rank in range(size))}
    del server
