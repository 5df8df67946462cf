"""A SLURM cluster of several machines on this one: real slurmctld, slurmd and munge, each machine in its namespaces.

A machine has a network of its own (on a bridge that leads nowhere else), a host name, an /etc/hosts, and two GPUs that
are null devices, so that SLURM hands out CUDA_VISIBLE_DEVICES. Folders are shared, as on a cluster's file server.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

NODES = 3
_NETWORK = "10.77.0"
_DONE = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY"}
_FREEZER = Path("/sys/fs/cgroup/freezer")
_CONF = """\
ClusterName=lab
SlurmctldHost=localhost({network}.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={lab}/run/munge.sock,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool/%n
SlurmctldPidFile={lab}/run/slurmctld.pid
SlurmdPidFile={lab}/run/slurmd.%n.pid
SlurmctldLogFile={lab}/log/slurmctld.log
SlurmdLogFile={lab}/log/slurmd.%n.log
ProctrackType=proctrack/cgroup
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
InactiveLimit=0
MinJobAge=86400
KillWait=15
BatchStartTimeout=2
MessageTimeout=5
SlurmctldTimeout=10
SlurmdTimeout=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=DEFAULT CPUs=8 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000 Gres=gpu:2
NodeName=node[1-{nodes}] NodeAddr={network}.[11-{last}] State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here, or None."""
    if os.geteuid() != 0:
        return "a SLURM cluster in namespaces needs root"
    for command in ("slurmctld", "slurmd", "munged", "ip", "nsenter", "unshare"):
        if shutil.which(command) is None:
            return f"{command} is not installed: apt-get install slurm-wlm munge iproute2"
    if not os.access(_FREEZER, os.W_OK):
        return f"SLURM's proctrack/cgroup needs {_FREEZER}, which is not writable here"
    probe = subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], check=False, capture_output=True)
    return None if probe.returncode == 0 else "no network namespaces can be made here"


class Unavailable(Exception):
    """This machine does not allow what the cluster is made of."""


class Cluster:
    """`with Cluster() as cluster: ...`; commands run on its controller's machine."""

    def __init__(self) -> None:
        self.nodes = [f"node{number}" for number in range(1, NODES + 1)]
        self.lab = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: munge's socket has a longest name
        self.lab.chmod(0o755)
        self._tag = self.lab.name
        self.environment = {**os.environ, "SLURM_CONF": str(self.lab / "slurm.conf")}

    def __enter__(self) -> Cluster:
        try:
            try:
                self._write_files()
                self._plug_in()
            except (OSError, subprocess.CalledProcessError) as error:  # in a container, as a rule
                said = getattr(error, "stderr", None)
                raise Unavailable(f"no cluster can be made here ({said.decode() if said else error})") from None
            self._start_daemons()
            self.wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--user=root", check=False)
        for name in ("controller", *self.nodes):
            self._kill_all(name)
            subprocess.run(["ip", "netns", "del", self._space(name)], check=False, capture_output=True)
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            munged = psutil.Process(int((self.lab / "run/munged.pid").read_text()))
            munged.terminate()
            munged.wait(10)  # it writes a file when it ends
        for group in _FREEZER.glob("slurm_node*"):
            for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()
        shutil.rmtree(self.lab, ignore_errors=True)

    # What users do

    def run(self, *command: object, check: bool = True, cwd: Path | None = None, **env: str) -> str:
        """What a command prints, on the controller's machine."""
        done = self.attempt(*command, cwd=cwd, **env)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def attempt(self, *command: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """A command on the controller's machine, which may fail."""
        words = [*self._inside("controller"), *map(str, command)]
        return subprocess.run(
            words, check=False, cwd=cwd, env=self.environment | env, capture_output=True, text=True, timeout=60
        )

    def submit(self, project: Path, *words: object, **env: str) -> str:
        """The number of the job of `sbatch WORDS`."""
        return self.run("sbatch", "--parsable", *words, cwd=project, **env)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ..."""
        return self.fact(job, "JobState")

    def fact(self, job: str, name: str) -> str:
        """A value of `scontrol show job`."""
        return re.search(rf"\b{name}=(\S*)", self.run("scontrol", "show", "job", job)).group(1)

    def wait(self, job: str, seconds: float = 240) -> str:
        """The state in which a job has ended for good."""
        self.wait_until(lambda: self.state(job) in _DONE, f"the end of job {job}", seconds)
        return self.state(job)

    def wait_until_idle(self) -> None:
        """Returns when no node is busy, down or completing."""
        self.wait_until(lambda: set(self.run("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"}, "idle nodes", 60)

    @staticmethod
    def wait_until(happened: Callable[[], bool], what: str, seconds: float = 120) -> None:
        """Polls; fails after `seconds`."""
        end = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < end, f"waited {seconds} s for {what}"
            time.sleep(0.1)

    # What happens to machines

    def crash(self, node: str) -> None:
        """The machine dies, and everything on it."""
        self._kill_all(node)

    def boot(self, node: str) -> None:
        """Starts a machine's slurmd."""
        inner = (
            f"mount --make-rprivate / && mount --bind {self.lab}/hosts /etc/hosts && hostname {node} && "
            f"exec slurmd -c -f {self.lab}/slurm.conf"
        )
        # Not `ip netns exec`, which mounts a /sys of its own, without the cgroups that slurmd wants.
        words = [*self._inside(node), "unshare", "--mount", "--uts", "sh", "-c", inner]
        subprocess.run(words, check=True, env=self.environment, capture_output=True, timeout=30)

    def cut_off(self, node: str) -> None:
        """Pulls the machine's network cable."""
        self._ip("-n", self._space("controller"), "link", "set", node, "down")

    def heal(self, node: str) -> None:
        """Plugs it in again."""
        self._ip("-n", self._space("controller"), "link", "set", node, "up")

    def popen(self, node: str, *command: object, **more: Any) -> subprocess.Popen:
        """Starts a process on a machine's network."""
        return subprocess.Popen([*self._inside(node), *map(str, command)], **more)

    def log(self) -> str:
        """What the controller has written, for a failing test."""
        return (self.lab / "log/slurmctld.log").read_text()[-4000:]

    # Making it

    def _space(self, machine: str) -> str:
        return f"{self._tag}-{machine}"

    def _inside(self, machine: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self._space(machine)}"]

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def _kill_all(self, machine: str) -> None:
        listed = subprocess.run(
            ["ip", "netns", "pids", self._space(machine)], check=False, capture_output=True, text=True
        )
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _write_files(self) -> None:
        for name in ("log", "spool", "state", "run", "munge", "dev"):
            (self.lab / name).mkdir(mode=0o755)
        (self.lab / "munge").chmod(0o700)
        key = self.lab / "munge/key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for number in range(2):
            os.mknod(self.lab / f"dev/nvidia{number}", 0o666 | 0o020000, os.makedev(1, 3))
        values = {"lab": self.lab, "network": _NETWORK, "nodes": NODES, "last": 10 + NODES}
        hosts = ["127.0.0.1 localhost", f"{_NETWORK}.1 controller"]
        hosts += [f"{_NETWORK}.{11 + index} {node}" for index, node in enumerate(self.nodes)]
        for name, content in (
            ("hosts", "\n".join(hosts) + "\n"),
            ("slurm.conf", _CONF),
            ("gres.conf", "AutoDetect=off\nNodeName=node[1-{nodes}] Name=gpu File={lab}/dev/nvidia[0-1]\n"),
            ("cgroup.conf", "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\n"),
        ):
            (self.lab / name).write_text(content.format(**values))

    def _plug_in(self) -> None:
        """The bridge lives on the controller's machine; every node has a cable to it."""
        controller = self._space("controller")
        self._ip("netns", "add", controller)
        self._ip("-n", controller, "link", "set", "lo", "up")
        self._ip("-n", controller, "link", "add", "bridge", "type", "bridge")
        self._ip("-n", controller, "addr", "add", f"{_NETWORK}.1/24", "dev", "bridge")
        self._ip("-n", controller, "link", "set", "bridge", "up")
        for index, node in enumerate(self.nodes):
            space = self._space(node)
            self._ip("netns", "add", space)
            self._ip("-n", controller, "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", space)
            self._ip("-n", controller, "link", "set", node, "master", "bridge", "up")
            self._ip("-n", space, "link", "set", "lo", "up")
            self._ip("-n", space, "addr", "add", f"{_NETWORK}.{11 + index}/24", "dev", "eth0")
            self._ip("-n", space, "link", "set", "eth0", "up")

    def _start_daemons(self) -> None:
        run, log = self.lab / "run", self.lab / "log"
        options = {
            "key-file": self.lab / "munge/key",
            "socket": run / "munge.sock",
            "pid-file": run / "munged.pid",
            "log-file": log / "munged.log",
            "seed-file": self.lab / "munge/seed",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        subprocess.run(["munged", *words], check=True, capture_output=True, timeout=30)
        self.run("slurmctld", "-c", "-f", self.lab / "slurm.conf")
        for node in self.nodes:
            self.boot(node)
