"""`accelerate launch` and processes started by hand on two hosts: two network namespaces with a cable between them."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.78.0.1", "10.78.0.2")
SERVER = "10.78.0.3"  # on host 0
PORT = 29500
TINY = "--recipe debug --model.name test_resnet --data.image_size 32 --data.limit 300 --batch_size 48 --micro_batch 8"
TINY += " --track.trackers none --track.report False --precision fp64 --phases.0.epochs 12 --checkpoint.every_steps 0"
TINY += " --rank_timeout 10 --run run"

T = TypeVar("T")

pytestmark = pytest.mark.proof_only


class Hosts:
    """Two hosts, 0 and 1, that share the folder `home`."""

    def __init__(self, home: Path) -> None:
        self.home, self._names = home, [f"hosts-{os.getpid()}-{number}" for number in (0, 1)]
        self._started: list[subprocess.Popen] = []
        for name in self._names:
            self.ip("netns", "add", name)
        self.on(0, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self._names[1])
        for number, address in enumerate(ADDRESSES):
            self.on(number, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                self.on(number, "ip", "link", "set", device, "up")

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()
        for name in self._names:
            pids = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True).stdout
            for pid in map(int, pids.split()):  # ranks that outlived their launcher
                os.kill(pid, signal.SIGKILL)
            self.ip("netns", "del", name)

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def on(self, host: int, *words: str) -> None:
        """Runs a command to its end."""
        subprocess.run(["nsenter", f"--net=/run/netns/{self._names[host]}", *words], check=True, capture_output=True)

    def start(self, host: int, *words: object, **env: object) -> subprocess.Popen:
        """Starts Python; its output is in `log(host)`."""
        command = ["nsenter", f"--net=/run/netns/{self._names[host]}", sys.executable, *map(str, words)]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0"} | {name: str(value) for name, value in env.items()}
        with self._log(host).open("ab") as log:
            self._started.append(
                subprocess.Popen(command, cwd=self.home, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
        return self._started[-1]

    def inside(self, host: int, make: Callable[[], T]) -> T:
        """The result of `make`, called by a thread on one host: its sockets listen there."""

        def work() -> T:
            with Path(f"/run/netns/{self._names[host]}").open() as namespace:
                assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) == 0
            return make()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()

    def launch(self, host: int, words: str = TINY, **env: str) -> subprocess.Popen:
        """`accelerate launch` on one host, as accelerate_configs/multi_node.yaml says, on CPUs."""
        options = f"--num_machines 2 --num_processes 2 --machine_rank {host} --main_process_ip {ADDRESSES[0]} "
        options += f"--main_process_port {PORT} --rdzv_backend static"
        config = ROOT / "accelerate_configs/cpu_ddp.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", config, *options.split()]
        return self.start(host, *launcher, ROOT / "train.py", *words.split(), **env)

    def container(self, host: int) -> subprocess.Popen:
        """containers/train.sh with the variables that Kubeflow Trainer sets in a pod."""
        place = {"NNODES": 2, "NODE_RANK": host, "NPROC_PER_NODE": 1, "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT}
        env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ACCELERATE_USE_CPU": "true"}
        words = TINY.replace("--run run", f"--run {self.home / 'run'}").split()
        script = ("-c", "import os, sys; os.execvp('bash', ['bash', *sys.argv[1:]])", ROOT / "containers/train.sh")
        return self.start(host, *script, *words, **env, **{f"PET_{name}": value for name, value in place.items()})

    def by_hand(self, host: int, address: str = ADDRESSES[0]) -> subprocess.Popen:
        place = {"RANK": host, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "WORLD_SIZE": 2}
        place |= {"MASTER_ADDR": address, "MASTER_PORT": PORT, "ACCELERATE_USE_CPU": "true"}
        return self.start(host, ROOT / "train.py", *TINY.split(), **place)

    def _log(self, host: int) -> Path:
        return self.home / f"host-{host}.log"

    def log(self, host: int) -> str:
        return self._log(host).read_text() if self._log(host).exists() else ""

    def wait_until(self, happened: Callable[[], object], what: str) -> None:
        end = time.monotonic() + 120
        while not happened():
            assert time.monotonic() < end, f"waited for {what}\n{self.log(0)[-2000:]}\n{self.log(1)[-2000:]}"
            time.sleep(0.1)

    def listens(self, host: int) -> bool:
        """Whether a process has opened PORT."""
        words = ["nsenter", f"--net=/run/netns/{self._names[host]}", "cat", "/proc/net/tcp", "/proc/net/tcp6"]
        return f":{PORT:04X} " in subprocess.run(words, check=False, capture_output=True, text=True).stdout

    def wait_until_step(self, step: int) -> None:
        rows = self.home / "run/metrics.jsonl"
        self.wait_until(lambda: rows.exists() and len(rows.read_text().splitlines()) >= step, f"step {step}")

    @property
    def status(self) -> dict:
        return json.loads((self.home / "run/status.json").read_text())


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nsenter"))):
        pytest.skip("network namespaces need root and iproute2")
    if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces can be made here")
    made = Hosts(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("launcher", "to_hosts", "codes"),
    [("launch", (0, 1), [1, 1]), ("container", (1,), [75, 75])],
    ids=["accelerate launch", "containers/train.sh"],
)
def test_a_run_on_two_hosts_saves_at_sigterm_and_resumes(
    hosts: Hosts, tmp_path: Path, launcher: str, to_hosts: tuple[int, ...], codes: list[int]
) -> None:
    """The second host is late; the result is that of one host. A drained node of Kubernetes signals one pod only."""
    start = getattr(hosts, launcher)
    both = [start(0)]
    hosts.wait_until(lambda: hosts.listens(0), "the launcher of host 0")
    both.append(start(1))
    hosts.wait_until_step(5)
    for host in to_hosts:
        both[host].terminate()
    assert [process.wait(60) for process in both] == codes
    assert (hosts.status["state"], hosts.status["why"]) == ("interrupted", "SIGTERM")
    step = hosts.status["step"]
    assert [process.wait(120) for process in (start(0), start(1))] == [0, 0]
    assert f"resuming at step {step}" in hosts.log(0)
    assert hosts.status["state"] == "finished"
    one = [sys.executable, ROOT / "train.py", *TINY.replace("--run run", "--run one").split()]
    subprocess.run(list(map(str, one)), check=True, cwd=tmp_path, capture_output=True, timeout=120)
    ours, theirs = (load_file(tmp_path / run / "model/model.safetensors") for run in ("run", "one"))
    assert max(abs(ours[name].astype(float) - theirs[name].astype(float)).max() for name in theirs) <= 1e-6  # float32


def test_a_host_that_is_gone_is_named_by_the_other(hosts: Hosts) -> None:
    both = [hosts.by_hand(host) for host in (0, 1)]
    hosts.wait_until_step(5)
    hosts.on(1, "ip", "link", "set", "eth0", "down")
    assert [process.wait(60) for process in both] == [1, 1]
    for host, other in ((0, 1), (1, 0)):
        fate = rf"error: rank {other} \(last heard of at step \d+\) died or lost the network: (.*: )?rerun the same"
        assert re.search(fate, hosts.log(host)), hosts.log(host)[-2000:]
    assert hosts.status["state"] == "lost"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.78.0.9", r"(timed out|No route to host)"),
        ("no-such-host", r"[^)]*name resolution|Name or service not known"),
    ],
)
def test_a_wrong_address_is_in_the_sentence(hosts: Hosts, address: str, reason: str) -> None:
    hosts.by_hand(1, address)
    sentence = rf"waiting for 1 of 2 processes at {address}:{PORT} \(WORLD_SIZE=2\): rank 0 \(({reason})\)"
    hosts.wait_until(lambda: re.search(sentence, hosts.log(1)), sentence)


@pytest.mark.skipif(not shutil.which("iptables"), reason="needs iptables")
def test_blocked_ports_are_in_the_sentence(hosts: Hosts) -> None:
    """The meeting point, then all others: a host that drops what is new lets a process wait without an answer."""
    drop = ("iptables", "-A", "INPUT", "-i", "eth0", "-p", "tcp", "--syn", "-j", "DROP")
    hosts.on(0, *drop)
    hosts.by_hand(0)
    hosts.by_hand(1)
    late = rf"waiting for 1 of 2 processes at {ADDRESSES[0]}:{PORT} \(WORLD_SIZE=2\): rank"
    hosts.wait_until(lambda: re.search(rf"{late} 1$", hosts.log(0), re.MULTILINE), "host 0's sentence")
    hosts.wait_until(lambda: re.search(rf"{late} 0 \(timed out\)$", hosts.log(1), re.MULTILINE), "host 1's sentence")
    hosts.on(1, *drop)
    hosts.on(0, *(word if word != "-A" else "-I" for word in drop[:-1]), "ACCEPT", "--dport", str(PORT))
    sentence = r"rank \d is connecting to the others, which it has met at .*: they must reach each other on any port"
    hosts.wait_until(lambda: re.search(sentence, hosts.log(0)) or re.search(sentence, hosts.log(1)), sentence)


def test_one_wandb_run_has_the_curves_of_rank_0_and_the_system_metrics_of_both_hosts(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is interrupted and resumed; then the second host loses the W&B server, which changes nothing else."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "tracking")
    from wandb_server import WandbServer

    words = TINY.replace("--track.trackers none ", "").replace("epochs 12", "epochs 20")
    labels = {f"{host}-{socket.gethostname()}" for host in (0, 1)}
    hosts.on(0, "ip", "addr", "add", f"{SERVER}/32", "dev", "eth0")
    with hosts.inside(0, lambda: WandbServer(SERVER)) as server:
        env = {**server.account(), "WANDB_X_STATS_SAMPLING_INTERVAL": "0.2"}

        def run() -> Any:
            (run,) = server.runs.values()
            return run

        both = [hosts.launch(host, words, **env) for host in (0, 1)]
        hosts.wait_until(lambda: server.runs and run().labels() == labels, "both writers")
        hosts.wait_until_step(5)
        both[0].terminate()
        both[1].terminate()
        assert [process.wait(60) for process in both] == [1, 1]
        assert (run().state, run().exits) == ("preempted", [1])
        run().events.clear()
        both = [hosts.launch(host, words, **env) for host in (0, 1)]
        hosts.wait_until(lambda: run().labels() == labels, "both writers again")
        hosts.on(1, "ip", "route", "add", "blackhole", SERVER)
        assert [process.wait(600) for process in both] == [0, 0]
    for host in (0, 1):
        assert "warning: W&B" not in hosts.log(host), hosts.log(host)
    rows = [json.loads(line) for line in (hosts.home / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in run().history] == [row["step"] for row in rows]
    assert (run().state, run().modes) == ("finished", {"shared"})
