"""How several processes find each other: each says whom it waits for, and Ctrl-C ends the wait immediately."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta

import torch.distributed as dist

from resnet_cifar.config.errors import NodeError
from resnet_cifar.distributed import launcher_env
from resnet_cifar.distributed.launcher_env import Place

_REPORT = 10.0  # seconds between two sentences
_LIMIT = 3600.0  # seconds after which a process gives up
_POLL = 0.05
_LOOKS = 5000  # at rank 0's store in a second, by all processes together: a tenth of what it answers
_CONNECT = 3.0  # seconds that a connection may take
_HANDSHAKE = timedelta(seconds=30)  # another program may listen at the port


def meet(place: Place) -> dist.Store:
    """The store of a process group of `place.size` processes, once all of them have come. Raises NodeError.

    torch's elastic launcher keeps one store for all its restarts, and an early process would find the addresses of
    the previous attempt there (torch 2.15), so every attempt has a prefix.
    """
    is_launchers = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_host = place.rank == 0 and not is_launchers
    if not is_host:
        await_server(place)
    server = _connect(place, is_host)
    server.set_timeout(timedelta(seconds=_LIMIT))
    store = dist.PrefixStore(f"attempt {launcher_env.restart_count()}", server)
    try:
        disagreement = _announce(place, store)
    except RuntimeError:  # includes torch's DistError
        raise NodeError(f"rank 0 ended while rank {place.rank} waited for others at {place.address}") from None
    if disagreement:
        raise NodeError(disagreement)
    return store


def poll_interval(size: int) -> float:
    """Seconds between two looks of one of `size` processes at rank 0's store."""
    return max(_POLL, size / _LOOKS)


def _announce(place: Place, store: dist.Store) -> str:
    """Waits until all have announced themselves; which WORLD_SIZE differs, or "".

    Whatever their number, a look is at one key. The first one to come finds out who is absent, and tells the others.
    """
    ours = f"{place.rank} {place.size}"
    first = store.compare_set("first", "", ours).decode()
    rank, size = first.split()
    if int(size) != place.size:
        sentence = f"rank {place.rank} was started with WORLD_SIZE={place.size} and rank {rank} with {size}"
        store.compare_set("met", "", sentence)
        return sentence
    # A rank that was started twice counts once: another one is absent.
    if store.add(f"rank {place.rank}", 1) == 1 and store.add("ranks", 1) == place.size:
        store.compare_set("met", "", "all")

    def absent() -> list[int]:
        if first == ours:
            ranks = [rank for rank in range(place.size) if not store.check([f"rank {rank}"])]
            store.set("absent", json.dumps(ranks))
        return json.loads(store.get("absent")) if store.check(["absent"]) else []

    waiting = _Waiting(place)
    while not store.check(["met"]):
        waiting.pause(absent)
    return "" if (met := store.get("met").decode()) == "all" else met


def _connect(place: Place, is_host: bool) -> dist.TCPStore:
    """The store at `place`. In a thread, since torch waits for ever where another program listens. Raises NodeError."""
    host = "localhost" if is_host else place.host  # torch would look for an unknown name of its own for an hour
    answer: Future[dist.TCPStore] = Future()

    def connect() -> None:
        try:
            answer.set_result(dist.TCPStore(host, place.port, None, is_host, _HANDSHAKE, wait_for_workers=False))
        except RuntimeError as error:  # includes torch's DistError
            answer.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()
    waiting = _Waiting(place)
    while not answer.done():
        waiting.pause(lambda: [0], " (another program may listen there: set MASTER_PORT to a free port)")
    if error := answer.exception():
        reason = str(error).splitlines()[0]
        raise NodeError(f"the processes cannot connect at {place.address} ({reason}): set MASTER_PORT to a free port")
    return answer.result()


def await_server(place: Place) -> None:
    """Returns when rank 0 listens at `place`; torch's own client would be silent meanwhile. Raises NodeError."""
    waiting = _Waiting(place)
    while True:
        try:
            socket.create_connection((place.host, place.port), timeout=_CONNECT).close()
        except OSError as error:
            reason = f" ({error.strerror or error})"
            waiting.pause(lambda: [0], reason)
        else:
            return


@contextlib.contextmanager
def connecting(place: Place, backend: str) -> Iterator[None]:
    """Says every ten seconds, once per machine, that the processes, which have met, are still connecting to each other.

    torch is silent until its time limit where a firewall leaves only MASTER_PORT open, or hosts share no network.
    """
    done = threading.Event()
    sentence = (
        f"rank {place.rank} is connecting to the others, which it has met at {place.address}: they must reach each "
        f"other on any port, over one network ({backend.upper()}_SOCKET_IFNAME names its interface)"
    )

    def report() -> None:
        while not done.wait(_REPORT):
            print(sentence, file=sys.stderr, flush=True)

    if not launcher_env.is_reported_elsewhere("LOCAL_RANK"):
        threading.Thread(target=report, daemon=True).start()
    try:
        yield
    finally:
        done.set()


class _Waiting:
    """Says every ten seconds, once per machine, which ranks have not come."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._said = self._began = time.monotonic()
        self._is_speaker = not launcher_env.is_reported_elsewhere("LOCAL_RANK")

    def pause(self, absent: Callable[[], list[int]], reason: str = "") -> None:
        """Sleeps for a moment. `absent` tells which ranks have not come. Raises NodeError after an hour."""
        now = time.monotonic()
        if now - self._said >= _REPORT:
            self._said, ranks = now, absent()
            place = self._place
            who = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:8]))}{', ...' * (len(ranks) > 8)}"
            sentence = f"waiting for {len(ranks)} of {place.size} processes at {place.address}: {who}{reason}"
            if now - self._began > _LIMIT:
                raise NodeError(f"{sentence} did not come within an hour: start all of them with accelerate launch")
            if self._is_speaker and ranks:
                print(sentence, file=sys.stderr, flush=True)
        time.sleep(poll_interval(self._place.size))
