"""Mistakes as a user makes them: the real command in a fresh process, and everything that it leaves."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from hub_server import HubServer

ROOT = Path(__file__).parents[2]
CACHED = re.compile(r"cache(/[0-9a-f]{16}(/.*)?)?|hf(/.*)?")  # whole entries, and what `datasets` keeps for itself
HALF = re.compile(r"\.(writing|building|damaged|replaced)\b")


Prepare = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Remedy:
    """What the sentence of a mistake advises, done: `change` of the files, then `words` in place of the mistaken ones.

    `number`: a regular expression of the sentence, whose group fills the {} of the words. `then`: part of the other
    sentence that may follow; without it, the command must be taken.
    """

    words: str | Callable[..., object]
    change: Prepare | None = None
    number: str = ""
    then: str = ""


@dataclass(frozen=True)
class Case:
    """A command with a mistake in it, and what must come of it.

    `said`: parts of the one sentence: field, value, fix. `before`: what the answer comes before: `import` (of torch,
    and the hub is not even looked for), `download`, or `training`. `prepare(home, trained)` makes what the words name,
    in the folder where the command runs; `trained` is a finished run. `leaves`: what may change besides, a regular
    expression. `remedies`: each way to follow the sentence, for test_advice.
    """

    name: str
    words: str
    said: tuple[str, ...]
    before: str
    prepare: Callable[[Path, Path], None] = lambda home, trained: None
    script: str = "train.py"
    config: str = ""
    processes: int = 1
    leaves: str = r"(?!)"
    remedies: tuple[Remedy, ...] = ()
    env: tuple[tuple[str, str], ...] = ()

    @property
    def command(self) -> list[str]:
        """By itself, or behind the launcher where there is a configuration."""
        words = [*([str(ROOT / self.script)] if self.script else []), *shlex.split(self.words)]  # or -m MODULE
        if not self.config:
            return [sys.executable, *words]
        config = ["--config_file", str(ROOT / "accelerate_configs" / f"{self.config}.yaml")]
        count = ["--num_processes", str(self.processes)]
        return [sys.executable, "-m", "accelerate.commands.launch", *config, *count, *words]


@dataclass
class Outcome:
    """What came of a command."""

    code: int
    stdout: str
    stderr: str
    calls: int
    requests: list[str]
    changed: set[str]
    alive: list[psutil.Process] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """The sentences, whichever process said them."""
        return re.findall(r"^error: .*$", self.stderr, re.MULTILINE)


def make(case: Case, home: Path, hub_root: Path, env: dict[str, str] | None = None) -> Outcome:
    """Runs the command in `home`, which `case.prepare` has filled, beside a hub that writes down who asks."""
    mark = uuid.uuid4().hex
    elsewhere = home.with_name(f"{home.name}-tmp")  # torch, wandb and the launcher leave things there
    elsewhere.mkdir()
    with HubServer(hub_root) as hub:
        environment = {
            **os.environ,
            "MISTAKE": mark,
            "HOME": str(elsewhere),
            "TMPDIR": str(elsewhere),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home / "hf"),
            "RESNET_CIFAR_CACHE": str(home / "cache"),
            **(env or {}),
        }
        before = listing(home)
        done = subprocess.run(
            case.command, check=False, cwd=home, env=environment, capture_output=True, text=True, timeout=300
        )
        changed = {path for path, _ in before.items() ^ listing(home).items()}
        return Outcome(done.returncode, done.stdout, done.stderr, hub.connections, hub.requests, changed, marked(mark))


def check(case: Case, outcome: Outcome) -> None:
    """Fails where it is not one sentence, where it came too late, and where anything is left."""
    said = f"{outcome.stdout[-2000:]}\n{outcome.stderr[-6000:]}"
    assert len(outcome.errors) == 1, said
    for part in case.said:
        assert part in outcome.errors[0], outcome.errors[0]
    if case.config:  # what the launcher adds, and its exit code, are not ours
        assert outcome.code != 0
        assert not re.search(rf'File "{ROOT}/(resnet_cifar/|train\.py|eval\.py)', outcome.stderr), said
    else:
        assert outcome.code == 2, said
        assert outcome.stderr == outcome.errors[0] + "\n"
    if case.before == "import":
        assert outcome.calls == 0, outcome.requests
    if case.before == "download":
        assert set(outcome.requests) <= {"HEAD /"}, outcome.requests
    spared = case.leaves if case.before != "training" else f"{case.leaves}|{CACHED.pattern}"
    left = {path for path in outcome.changed if not re.fullmatch(spared, path)}
    assert not left, left
    assert not [path for path in outcome.changed if HALF.search(path) and not re.fullmatch(case.leaves, path)]
    assert outcome.alive == []


def listing(home: Path) -> dict[str, tuple[int, int]]:
    """Every file, with its size and time of change, and every folder."""
    found = {}
    for path in sorted(home.rglob("*")):
        facts = path.stat()
        found[path.relative_to(home).as_posix()] = (0, 0) if path.is_dir() else (facts.st_size, facts.st_mtime_ns)
    return found


def marked(mark: str) -> list[psutil.Process]:
    """Processes that a command has started and that still live, ten seconds after its end."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MISTAKE") == mark:
                found.append(process)
        except psutil.Error:  # it is gone, or somebody else's
            continue
    return psutil.wait_procs(found, timeout=10)[1]
