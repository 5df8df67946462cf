"""The disk fills up while a checkpoint is written: one sentence, and after making room the same command goes on."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

ROOM = 64 << 20


def resize(disk: Path, size: int) -> None:
    """Gives a mounted file system this many bytes."""
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True, capture_output=True)


def sizes(number: int, proof: bool) -> list[int]:
    """Bytes that the disk has for one start after the other; a checkpoint of the run takes 4.5 million."""
    if not proof:
        return [11 << 20]
    seeded = random.Random(f"disks, round {number}")
    return sorted(seeded.randint(1 << 18, 12 << 20) for _ in range(3))


@pytest.mark.rounds(1, 4)
def test_a_full_disk_ends_a_start_with_one_sentence(hurt_run, undisturbed, record, mounted, proof, number):
    disk = mounted(f"size={ROOM}")
    run = hurt_run(run=disk / "RUN")
    for size in sizes(number, proof):
        resize(disk, size)
        start = run.start()
        assert start.wait() == 2, start.said
        assert len(start.errors) == 1
        assert start.stderr.count("\n") == 1, start.stderr
        assert "No space left on device" in start.errors[0]
        assert "rerun the same command to resume from step" in start.errors[0]
        run.check_whole()
    resize(disk, ROOM)
    run.finish()
    undisturbed().check_equal(run)
    assert max(run.lost(), default=0) <= 8
    record(f"full disk, round {number}", bytes=sizes(number, proof), steps_lost=run.lost())
