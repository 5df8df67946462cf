"""The run folder: what lies where, who may write, and files that are whole or not there.

recipe.yaml  environment.json  owner.json  status.json  starts.json  metrics.jsonl  result.json  (micro_batch.json)
checkpoints/  model/  wandb/  eval-NAME.json  predictions-NAME.parquet  report/
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
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

from resnet_cifar import cli
from resnet_cifar.recipe import Mistake, Recipe, differences, fingerprint

_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # what file systems answer that cannot


def default_path(recipe_name: str, recipe: Recipe) -> Path:
    """runs/RECIPE-<8 hex of what decides the result>: the same command finds its run again."""
    return Path("runs") / f"{Path(recipe_name).stem}-{fingerprint(recipe)}"


class RunFolder:
    """One run's folder. Only rank 0 writes, and only while no later start has claimed the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner: dict[str, Any] = {}
        self._starts: list[dict[str, Any]] = []
        self._rows: BinaryIO | None = None

    @property
    def is_claimed(self) -> bool:
        """Whether this process has claimed the folder."""
        return bool(self._owner)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.path / "model"

    def check(self, recipe: Recipe, extends: bool = False) -> None:
        """Raises Mistake where the folder holds another recipe's run, or something that is no run.

        With `extends` the folder's run may lack the recipe's last phases.
        """
        for place in (self.path, *self.path.parents):
            if place.exists() and not place.is_dir():
                raise Mistake(f"--run {self.path}: {place} is a file; name a folder")
        ours = self._recipe()
        if ours is None:
            claim = ("owner.json", "recipe.yaml.writing-")  # of a start that has not come, or never came, to its recipe
            if self.path.is_dir() and not all(path.name.startswith(claim) for path in self.path.iterdir()):
                raise Mistake(f"--run {self.path} holds files that are no run: name a new or empty folder")
            return
        missing = len(recipe.phases) - len(ours.phases)
        wanted = recipe
        if extends and missing > 0:
            wanted = dataclasses.replace(recipe, phases=recipe.phases[: len(ours.phases)])
            if (self.result() or {}).get("stopped_early"):
                raise Mistake(f"--extend: the run in {self.path} stopped early, and would stop again at once")
        differing = differences(ours, wanted)
        if differing:
            extended = missing < 0 and not differences(
                dataclasses.replace(ours, phases=ours.phases[: len(recipe.phases)]), recipe
            )
            mend = "give the same --extend again" if extended else "name another folder, or start over with --fresh"
            raise Mistake(f"--run {self.path} belongs to another recipe ({'; '.join(differing[:6])}): {mend}")

    def check_writable(self) -> None:
        """Raises Mistake where a start could not write, as far as permissions and mounts tell."""
        place = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not os.access(place, os.W_OK):
            raise Mistake(f"--run {self.path} cannot be written ({place} is read-only): name another folder")

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

    def claim(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        """Makes the folder this process's: the next start number, the recipe and the environment. Raises Mistake.

        Of two starts at the same moment the later to write owner.json has it: the token tells equal numbers apart.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            start = (read_json(self.path / "owner.json") or {}).get("start", 0) + 1
            self._owner = {
                "start": start,
                "token": secrets.token_hex(8),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "time": time.time(),
            }
            write_json(self.path / "owner.json", self._owner)
            if result := self.result():  # of the run that is extended
                with contextlib.suppress(FileNotFoundError):  # another start has just done it
                    (self.path / "result.json").rename(self.path / f"result-step-{result['steps']}.json")
            aside = self.path / f"recipe.yaml.writing-{self._owner['token']}"
            cli.write_recipe(recipe, aside)
            aside.replace(self.path / "recipe.yaml")
            write_json(self.path / "environment.json", environment)
        except OSError as error:
            raise Mistake(f"--run {self.path} cannot be written ({error.strerror}): name another folder") from None

    def keep_owning(self) -> None:
        """Raises Mistake where another start has taken the folder over."""
        now = read_json(self.path / "owner.json")
        if now is None:
            raise Mistake(f"--run {self.path} has been moved or removed: stopping")
        if now.get("token") != self._owner["token"]:
            where = f"start {now.get('start')} (pid {now.get('pid')} on {now.get('host')})"
            raise Mistake(
                f"--run {self.path} was taken over by {where}; this is start {self._owner['start']}: stopping"
            )

    def status(self, state: str, **facts: Any) -> None:
        """Writes status.json: `running`, `finished`, `interrupted`, `failed` or `lost` (a rank), and facts."""
        self.keep_owning()
        word = {"state": state, "time": time.time(), **_job(), **facts}
        self._note_start(word)
        write_json(self.path / "status.json", word)

    def _note_start(self, word: dict[str, Any]) -> None:
        """Keeps in starts.json where each start went on and how it ended; who was killed, by its last word."""
        file, step = self.path / "starts.json", word.get("step", 0)
        is_first = not self._starts
        if is_first:
            earlier = (read_json(file) or {}).get("starts", [])
            last = read_json(self.path / "status.json")
            if earlier and last and "state" not in earlier[-1]:
                earlier[-1] |= {"state": "killed", "ended": last["time"], "step": last.get("step", 0)}
            claim = {name: self._owner[name] for name in ("start", "host", "pid")}
            claim |= {"gpus": word["gpus"]} if "gpus" in word else {}
            self._starts = [*earlier, {**claim, "began": word["time"], "from_step": step}]
        if word["state"] != "running":
            more = {name: word[name] for name in ("why", "energy_kwh") if word.get(name)}
            self._starts[-1] |= {"state": word["state"], "ended": word["time"], "step": step, **more}
        elif not is_first:
            return
        write_json(file, {"starts": self._starts})

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The run's starts as starts.json has them, this one last; known after its first status."""
        return self._starts

    def continue_rows(self, step: int) -> None:
        """Begins to append to metrics.jsonl, without the rows after update `step`: a resumed run writes them again.

        Into a new file with the old name: what an owner of before still appends goes to its own, which nobody sees.
        """
        file = self.path / "metrics.jsonl"
        aside = file.with_name(f"{file.name}.writing-{self._owner['token']}")
        self.keep_owning()
        if file.is_file():
            shutil.copyfile(file, aside)
            os.truncate(aside, _end_of_rows(aside, step))
        self._rows = aside.open("ab")
        os.fsync(self._rows.fileno())
        self.keep_owning()
        aside.replace(file)
        flush(self.path)

    def append_row(self, row: dict[str, Any]) -> None:
        """Adds a row to metrics.jsonl."""
        self.keep_owning()
        self._rows.write(json.dumps(row).encode() + b"\n")
        self._rows.flush()

    def sync(self) -> None:
        """Puts every row on disk, if the folder is still this start's: a checkpoint must not outlive its rows."""
        self.keep_owning()
        os.fsync(self._rows.fileno())

    def _recipe(self) -> Recipe | None:
        file = self.path / "recipe.yaml"
        return cli.read_recipe(str(file)) if file.is_file() else None


def _job() -> dict[str, str]:
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


def read_json(file: Path) -> dict[str, Any] | None:
    """The file's object, or None where there is no such file. Raises Mistake where it holds something else."""
    try:
        values = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise Mistake(f"{file} is damaged, it is not the JSON that was written: remove it, or start over with --fresh")
    return values


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Writes aside and renames, so that a reader sees the old or the new file."""
    aside = file.with_name(f"{file.name}.writing-{secrets.token_hex(4)}")  # two starts may write at the same moment
    try:
        with aside.open("w") as stream:
            stream.write(json.dumps(values, indent=1) + "\n")
            stream.flush()
            flush(aside)
        aside.replace(file)
        flush(file.parent)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Puts a file, or the names in a folder, on disk.

    Of a folder as far as its file system can: many that are mounted over a network (FUSE, SMB) refuse to flush one.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sha256(file: Path) -> str:
    """The file's digest, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
