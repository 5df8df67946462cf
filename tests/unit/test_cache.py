"""`resnet-cifar cache`: what is there, and how it goes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from resnet_cifar.cli import cache
from resnet_cifar.cli.cache import parse_arguments
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data import prepared_data

DAY = 24 * 60 * 60


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    """Entries of three sources, used today, 10 days and 40 days ago."""
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(tmp_path / "cache"))
    made = []
    for name, days in (("a", 0), ("b", 10), ("c", 40)):
        images = np.random.default_rng(days).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(20) % 2)
        made.append(prepared_data.prepare(Data(source=str(tmp_path / f"{name}.npz"))))
        when = time.time() - days * DAY
        for path in (*made[-1].iterdir(), made[-1]):
            os.utime(path, (when, when))
    capsys.readouterr()
    return made


Say = Callable[..., list[str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def lines(*words: str) -> list[str]:
        cache.main(list(words))
        return capsys.readouterr().out.splitlines()

    return lines


def test_entries_are_listed_with_what_they_hold(entries: list[Path], say: Say) -> None:
    head, columns, *rows = say()
    assert head.startswith(f"{entries[0].parent}: 3 entries, ")
    assert columns.split() == ["entry", "source", "images", "size", "on", "disk", "created", "last", "used"]
    assert [row.split()[:4] for row in rows] == [
        [entry.name, str(entry.parents[1] / f"{name}.npz"), "20", "6x5"]
        for name, entry in zip("abc", entries, strict=True)
    ]
    assert rows[2].split()[-2] == time.strftime("%Y-%m-%d", time.localtime(time.time() - 40 * DAY))


def test_the_time_of_last_use_is_recorded(entries: list[Path], say: Say) -> None:
    prepared_data.prepare(Data(source=str(entries[2].parents[1] / "c.npz")))
    _, _, *rows = say()
    made, used = rows[0].split()[-4], rows[0].split()[-2]
    assert rows[0].startswith(entries[2].name)
    assert (made, used) == tuple(
        time.strftime("%Y-%m-%d", time.localtime(time.time() - days * DAY)) for days in (40, 0)
    )


def test_one_entry_is_cleared_and_reported(entries: list[Path], say: Say) -> None:
    said = say("--clear", entries[1].name)
    assert [entry.exists() for entry in entries] == [True, False, True]
    assert said[0].startswith(f"cleared {entries[1].name} ({entries[1].parents[1] / 'b.npz'}), ")
    assert said[1].startswith("1 of 3 entries cleared, ")


def test_an_entry_that_another_process_publishes_meanwhile_is_left_out(
    entries: list[Path], say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    building = entries[0].with_name("new.building-x")
    building.mkdir()
    original = Path.rglob

    def listed(folder: Path, pattern: str) -> Iterator[Path]:
        if folder == building:
            building.rmdir()
        return original(folder, pattern)

    monkeypatch.setattr(Path, "rglob", listed)
    assert say()[0].startswith(f"{entries[0].parent}: 3 entries, ")


@pytest.mark.parametrize(("days", "left"), [("30", [True, True, False]), ("5", [True, False, False])])
@pytest.mark.parametrize("name", ["--older-than", "--older_than"])
def test_what_was_not_used_for_days_is_cleared(
    days: str, left: list[bool], name: str, entries: list[Path], say: Say
) -> None:
    say(name, days)
    assert [entry.exists() for entry in entries] == left


def test_all_are_cleared_with_what_killed_processes_and_older_versions_left(entries: list[Path], say: Say) -> None:
    root = entries[0].parent
    for name, meta in (("new.building-x", None), ("0123456789abcdef", '{"format": 1}'), ("f" * 16, "[]")):
        (root / name).mkdir()
        (root / name / "train-images.npy").write_bytes(b"half")
        if meta:
            (root / name / "meta.json").write_text(meta)
    for name in ("model-a.b-v12-0123abcd", "model-a.b-v12-0123abcd.building-x", "run-20260101_120000-0123abcd"):
        (root / "wandb" / name).mkdir(parents=True)  # the last is a run that W&B's library keeps there
        (root / "wandb" / name / "model.safetensors").write_bytes(b"weights")
    (root / "photos").mkdir()  # the one that sets RESNET_CIFAR_CACHE to a folder of other things
    said = say()
    assert sum("unusable" in line for line in said) == 4
    (artifact,) = (line.split() for line in said if line.startswith("model-a.b-v12-0123abcd "))
    assert artifact[1:4] == ["wandb", "-", "-"]
    assert say("--clear", "all")[-1].startswith("8 of 8 entries cleared")
    assert sorted(path.name for path in root.iterdir()) == ["photos", "wandb"]
    assert [path.name for path in (root / "wandb").iterdir()] == ["run-20260101_120000-0123abcd"]
    assert say() == [f"{root}: 0 entries, 0.0 MB"]


def test_a_full_disk_can_be_cleared(
    entries: list[Path], say: Say, mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mounted("size=100k,nr_inodes=12")
    monkeypatch.setenv("RESNET_CIFAR_CACHE", str(disk))
    entry = prepared_data.prepare(Data(source=str(entries[0].parents[1] / "a.npz")))
    with pytest.raises(OSError, match="No space left"):
        for number in range(12):
            (disk / "x" / str(number)).mkdir(parents=True)
    assert say("--clear", entry.name)[-1].startswith("1 of 1 entries cleared")
    assert not entry.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--clear", "nothing"], "--clear cannot be 'nothing'"),
        (["--older-than", "0"], "--older-than cannot be '0': it should be a number above 0"),
        (["--older-than", "soon"], "--older-than cannot be 'soon'"),
        (["--older-than"], "--older-than needs a value, for example --older-than 10"),
        (["--clear", "all", "--older-than", "3"], "give one of them"),
        (["all"], "'all' belongs to no option: resnet-cifar cache"),
        (["--seed", "3"], "unknown option --seed"),
        (["--clea", "all"], "unknown option --clea; did you mean clear?"),
    ],
)
def test_an_error_is_one_sentence_and_clears_nothing(words: list[str], said: str, entries: list[Path]) -> None:
    with pytest.raises(UserError) as caught:
        cache.main(words)
    assert said in str(caught.value)
    assert all(entry.is_dir() for entry in entries)


def test_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--help"])
    assert not ended.value.code
    assert "--clear ENTRY|all" in capsys.readouterr().out
