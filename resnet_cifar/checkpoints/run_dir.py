"""The run folder: what lies where, who may write, and files that are whole or not there.

recipe.yaml  environment.json  lease.json  status.json  attempts.json  metrics.jsonl  result.json  (micro_batch.json)
checkpoints/  model/  wandb/  eval-NAME.json  predictions-NAME.parquet  report/
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from resnet_cifar.atomic_io import fsync_path, read_json, write_json
from resnet_cifar.config.diff import differences, fingerprint
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, write_recipe
from resnet_cifar.config.schema import Recipe


def default_run_path(recipe_name: str, recipe: Recipe) -> Path:
    """runs/RECIPE-<8 hex of what decides the result>: the same command finds its run again."""
    return Path("runs") / f"{Path(recipe_name).stem}-{fingerprint(recipe)}"


class RunDir:
    """One run's folder. Only rank 0 writes, and only while no later start has claimed the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lease: dict[str, Any] = {}
        self._attempts: list[dict[str, Any]] = []
        self._rows: BinaryIO | None = None

    @property
    def is_acquired(self) -> bool:
        """Whether this process has claimed the folder."""
        return bool(self._lease)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.path / "model"

    def check(self, recipe: Recipe, extends: bool = False) -> None:
        """Raises UserError where the folder holds another recipe's run, or something that is no run.

        With `extends` the folder's run may lack the recipe's last phases.
        """
        for place in (self.path, *self.path.parents):
            if place.exists() and not place.is_dir():
                raise UserError(f"--run {self.path}: {place} is a file; name a folder")
        ours = self._recipe()
        if ours is None:
            claim = ("lease.json", "recipe.yaml.writing-")  # of a start that has not come, or never came, to its recipe
            if self.path.is_dir() and not all(path.name.startswith(claim) for path in self.path.iterdir()):
                raise UserError(f"--run {self.path} holds files that are no run: name a new or empty folder")
            return
        missing = len(recipe.phases) - len(ours.phases)
        wanted = recipe
        if extends and missing > 0:
            wanted = dataclasses.replace(recipe, phases=recipe.phases[: len(ours.phases)])
            if (self.result() or {}).get("stopped_early"):
                raise UserError(f"--extend-epochs: the run in {self.path} stopped early, and would stop again at once")
        differing = differences(ours, wanted)
        if differing:
            extended = missing < 0 and not differences(
                dataclasses.replace(ours, phases=ours.phases[: len(recipe.phases)]), recipe
            )
            mend = (
                "give the same --extend-epochs again"
                if extended
                else "name another folder, or start over with --restart"
            )
            raise UserError(f"--run {self.path} belongs to another recipe ({'; '.join(differing[:6])}): {mend}")

    def check_writable(self) -> None:
        """Raises UserError where a start could not write, as far as permissions and mounts tell."""
        place = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not os.access(place, os.W_OK):
            raise UserError(f"--run {self.path} cannot be written ({place} is read-only): name another folder")

    def finished(self, recipe: Recipe) -> dict[str, Any] | None:
        """The result of the finished run of all of the recipe's phases, or None."""
        ours = self._recipe()
        return self.result() if ours is not None and len(ours.phases) == len(recipe.phases) else None

    def result(self) -> dict[str, Any] | None:
        """What the finished run reached, or None."""
        return read_json(self.path / "result.json")

    def mark_finished(self, result: dict[str, Any]) -> None:
        """Makes status.json say what result.json says, where a kill came between the two."""
        if (read_json(self.path / "status.json") or {}).get("state") != "finished":
            facts = {"time": time.time(), "step": result["steps"], "steps": result["steps"]}
            with contextlib.suppress(OSError):  # a finished run may lie on a disk that is read only
                write_json(self.path / "status.json", {"state": "finished", **facts})

    def move_aside(self) -> Path | None:
        """Renames an existing folder to NAME.before-N, so that starting over loses nothing; where it is now."""
        if not self.path.exists():
            return None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.before-{number}")).exists():
            number += 1
        return self.path.rename(aside)

    def acquire(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        """Makes the folder this process's: the next start number, the recipe and the environment. Raises UserError.

        Of two starts at the same moment the later to write lease.json has it: the token tells equal numbers apart.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            start = (read_json(self.path / "lease.json") or {}).get("attempt", 0) + 1
            self._lease = {
                "attempt": start,
                "token": secrets.token_hex(8),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "time": time.time(),
            }
            write_json(self.path / "lease.json", self._lease)
            if result := self.result():  # of the run that is extended
                with contextlib.suppress(FileNotFoundError):  # another start has just done it
                    (self.path / "result.json").rename(self.path / f"result-step-{result['steps']}.json")
            aside = self.path / f"recipe.yaml.writing-{self._lease['token']}"
            write_recipe(recipe, aside)
            aside.replace(self.path / "recipe.yaml")
            write_json(self.path / "environment.json", environment)
        except OSError as error:
            raise UserError(f"--run {self.path} cannot be written ({error.strerror}): name another folder") from None

    def check_lease(self) -> None:
        """Raises UserError where another start has taken the folder over."""
        now = read_json(self.path / "lease.json")
        if now is None:
            raise UserError(f"--run {self.path} has been moved or removed: stopping")
        if now.get("token") != self._lease["token"]:
            where = f"attempt {now.get('attempt')} (pid {now.get('pid')} on {now.get('host')})"
            raise UserError(
                f"--run {self.path} was taken over by {where}; this is attempt {self._lease['attempt']}: stopping"
            )

    def status(self, state: str, **facts: Any) -> None:
        """Writes status.json: `running`, `finished`, `interrupted`, `failed` or `lost` (a rank), and facts."""
        self.check_lease()
        word = {"state": state, "time": time.time(), **_slurm_job(), **facts}
        self._record_attempt(word)
        write_json(self.path / "status.json", word)

    def _record_attempt(self, word: dict[str, Any]) -> None:
        """Keeps in attempts.json where each start went on and how it ended; who was killed, by its last word."""
        file, step = self.path / "attempts.json", word.get("step", 0)
        is_first = not self._attempts
        if is_first:
            earlier = (read_json(file) or {}).get("attempts", [])
            last = read_json(self.path / "status.json")
            if earlier and last and "state" not in earlier[-1]:
                earlier[-1] |= {"state": "killed", "ended": last["time"], "step": last.get("step", 0)}
            claim = {name: self._lease[name] for name in ("attempt", "host", "pid")}
            claim |= {"gpus": word["gpus"]} if "gpus" in word else {}
            self._attempts = [*earlier, {**claim, "began": word["time"], "from_step": step}]
        if word["state"] != "running":
            more = {name: word[name] for name in ("why", "energy_kwh") if word.get(name)}
            self._attempts[-1] |= {"state": word["state"], "ended": word["time"], "step": step, **more}
        elif not is_first:
            return
        write_json(file, {"attempts": self._attempts})

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """The run's starts as attempts.json has them, this one last; known after its first status."""
        return self._attempts

    def resume_metrics(self, step: int) -> None:
        """Begins to append to metrics.jsonl, without the rows after update `step`: a resumed run writes them again.

        Into a new file with the old name: what an owner of before still appends goes to its own, which nobody sees.
        """
        file = self.path / "metrics.jsonl"
        aside = file.with_name(f"{file.name}.writing-{self._lease['token']}")
        self.check_lease()
        if file.is_file():
            shutil.copyfile(file, aside)
            os.truncate(aside, _end_of_rows(aside, step))
        self._rows = aside.open("ab")
        os.fsync(self._rows.fileno())
        self.check_lease()
        aside.replace(file)
        fsync_path(self.path)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds a row to metrics.jsonl."""
        self.check_lease()
        self._rows.write(json.dumps(row).encode() + b"\n")
        self._rows.flush()

    def sync(self) -> None:
        """Puts every row on disk, if the folder is still this start's: a checkpoint must not outlive its rows."""
        self.check_lease()
        os.fsync(self._rows.fileno())

    def _recipe(self) -> Recipe | None:
        file = self.path / "recipe.yaml"
        return read_recipe(str(file)) if file.is_file() else None


def _slurm_job() -> dict[str, str]:
    """Which start of which SLURM job this is: its batch script asks how its own start has ended."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"job": f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"} if job else {}


def _end_of_rows(file: Path, step: int) -> int:
    """Bytes of the rows up to update `step`, looked for from the end: a long run resumes as fast as a short one."""
    if not file.stat().st_size:
        return 0
    with file.open("rb") as stream, _content(stream) as content:
        end = content.rfind(b"\n") + 1  # a row that a kill cut short has no end of line
        while end:
            begin = content.rfind(b"\n", 0, end - 1) + 1
            with contextlib.suppress(ValueError, TypeError, KeyError):  # what a power cut garbled is cut too
                if json.loads(content[begin:end])["step"] <= step:
                    break
            end = begin
        return end


@contextlib.contextmanager
def _content(stream: BinaryIO) -> Iterator[mmap.mmap | bytes]:
    """The file's bytes, mapped; read as a whole where a mounted drive does not map files."""
    try:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        yield stream.read()
        return
    with content:
        yield content
