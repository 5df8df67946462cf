"""The run folder: what lies where, who may write, and files that are whole or not there.

recipe.yaml  environment.json  owner.json  status.json  metrics.jsonl  result.json
checkpoints/  model/  wandb/  eval-SPLIT.json  predictions-SPLIT.parquet
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from resnet_cifar import cli
from resnet_cifar.recipe import Mistake, Recipe, differences, fingerprint


def default_path(recipe_name: str, recipe: Recipe) -> Path:
    """runs/RECIPE-<8 hex of what decides the result>: the same command finds its run again."""
    return Path("runs") / f"{Path(recipe_name).stem}-{fingerprint(recipe)}"


class RunFolder:
    """One run's folder. Only rank 0 writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = 0

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.path / "model"

    def check(self, recipe: Recipe) -> None:
        """Raises Mistake where the folder holds another recipe's run, or something that is no run."""
        for place in (self.path, *self.path.parents):
            if place.exists() and not place.is_dir():
                raise Mistake(f"--run {self.path}: {place} is a file; name a folder")
        if not (self.path / "recipe.yaml").is_file():
            if self.path.is_dir() and any(self.path.iterdir()):
                raise Mistake(f"--run {self.path} holds files that are no run: name a new or empty folder")
            return
        differing = differences(cli.read_recipe(str(self.path / "recipe.yaml")), recipe)
        if differing:
            raise Mistake(
                f"--run {self.path} belongs to another recipe ({'; '.join(differing[:6])}): name another folder, or "
                "start over there with --fresh"
            )

    def result(self) -> dict[str, Any] | None:
        """What the finished run reached, or None."""
        return read_json(self.path / "result.json")

    def move_aside(self) -> Path | None:
        """Renames an existing folder to NAME.before-N, so that starting over loses nothing; where it is now."""
        if not self.path.exists():
            return None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.before-{number}")).exists():
            number += 1
        return self.path.rename(aside)

    def claim(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        """Makes the folder this process's: the next start number, the recipe and the environment. Raises Mistake."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._start = (read_json(self.path / "owner.json") or {}).get("start", 0) + 1
            owner = {"start": self._start, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
            write_json(self.path / "owner.json", owner)
            aside = self.path / "recipe.yaml.writing"
            cli.write_recipe(recipe, aside)
            aside.replace(self.path / "recipe.yaml")
            write_json(self.path / "environment.json", environment)
        except OSError as error:
            raise Mistake(f"--run {self.path} cannot be written ({error.strerror}): name another folder") from None

    def keep_owning(self) -> None:
        """Raises Mistake where a later start has taken the folder over."""
        now = (read_json(self.path / "owner.json") or {}).get("start", 0)
        if now != self._start:
            raise Mistake(f"--run {self.path} was taken over by start {now} (this is {self._start}): stopping")

    def status(self, state: str, **facts: Any) -> None:
        """Writes status.json: `running`, `finished`, `interrupted` or `failed`, and facts."""
        self.keep_owning()
        write_json(self.path / "status.json", {"state": state, "time": time.time(), **facts})

    def append_row(self, row: dict[str, Any]) -> None:
        """Adds a row to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def cut_rows(self, step: int) -> None:
        """Drops rows of metrics.jsonl after update `step`, which a resumed run writes again."""
        file = self.path / "metrics.jsonl"
        if file.is_file():
            # A row that a kill cut short has no end of line.
            lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
            write_text(file, "".join(line for line in lines if json.loads(line)["step"] <= step))


def read_json(file: Path) -> dict[str, Any] | None:
    """The file's object, or None where there is no such file."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Writes aside and renames, so that a reader sees the old or the new file."""
    write_text(file, json.dumps(values, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes aside, flushes and renames."""
    aside = file.with_name(file.name + ".writing")
    with aside.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(file)
