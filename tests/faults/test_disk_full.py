"""The disk fills up while a checkpoint is written: one sentence, and after making room the same command goes on."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOM = 64 << 20


class Disk:
    """A file system in memory, of so many bytes."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount(f"size={size}")

    def resize(self, size: int) -> None:
        self._mount(f"remount,size={size}")

    def close(self) -> None:
        subprocess.run(["umount", self.folder], check=True, capture_output=True)

    def _mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder]
        subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """One with room for nothing but a few small files."""
    try:
        made = Disk(tmp_path / "disk", 1 << 20)
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"a file system cannot be mounted here ({getattr(error, 'stderr', error)!r})")
    yield made
    made.close()


def sizes(number: int, proof: bool) -> list[int]:
    """Bytes that the disk has for one start after the other; a checkpoint of the run takes 4.5 million."""
    if not proof:
        return [11 << 20]
    seeded = random.Random(f"disks, round {number}")
    return sorted(seeded.randint(1 << 18, 12 << 20) for _ in range(3))


@pytest.mark.rounds(1, 4)
def test_a_full_disk_ends_a_start_with_one_sentence(hurt_run, undisturbed, record, disk, proof, number):
    run = hurt_run(run=disk.folder / "RUN")
    for size in sizes(number, proof):
        disk.resize(size)
        start = run.start()
        assert start.wait() == 2, start.said
        assert len(start.errors) == 1
        assert start.stderr.count("\n") == 1, start.stderr
        assert "No space left on device" in start.errors[0]
        assert "the same command goes on from step" in start.errors[0]
        run.check_whole()
    disk.resize(ROOM)
    run.finish()
    undisturbed().check_equal(run)
    assert max(run.lost(), default=0) <= 8
    record(f"full disk, round {number}", bytes=sizes(number, proof), steps_lost=run.lost())
