"""`resnet-cifar seeds`: every seed is trained once, and what they reached is summed up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORDS = "debug --model.name test_resnet --data.image_size 32 --data.limit 200 --track.trackers none --run S"
WORDS += " --track.report False"
WORDS += " --phases.0.lr 0.01 --phases.0.warmup_epochs 0"


def seeds(cwd: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "resnet_cifar", "seeds", *WORDS.split(), *words]
    return subprocess.run(command, check=False, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """Two finished seeds, and what was said."""
    cwd = tmp_path_factory.mktemp("seeds")
    return cwd, seeds(cwd, "--seeds", "3..4")


def results(cwd: Path) -> list[float]:
    return [json.loads((cwd / f"S/seed-{seed}/result.json").read_text())["test/accuracy"] for seed in (3, 4)]


def test_every_seed_is_trained_and_summed_up(two: tuple[Path, subprocess.CompletedProcess]) -> None:
    cwd, done = two
    assert done.returncode == 0, done.stderr
    first, second = results(cwd)
    assert first != second, "or there is nothing to see"
    written = json.loads((cwd / "S/seeds.json").read_text())
    found = written["spread"]["test/accuracy"]
    assert found["mean"] == pytest.approx((first + second) / 2)
    assert found["standard_deviation"] == pytest.approx(abs(first - second) / 2**0.5)
    half = 12.706205 * abs(first - second) / 2  # Student's t for one degree of freedom
    assert found["interval"] == pytest.approx([found["mean"] - half, found["mean"] + half], abs=1e-6)
    assert written["seeds"]["3"]["test/accuracy"] == first
    assert written["recipe"] == "debug"
    assert "--data.limit=200" in written["changes"]
    recipes = [(cwd / f"S/seed-{seed}/recipe.yaml").read_text() for seed in (3, 4)]
    assert recipes[0].replace("seed: 3", "seed: 4") == recipes[1]
    assert [line.split()[:2] for line in done.stdout.splitlines()[-7:-4]] == [
        ["seed", "state"],
        ["3", "finished"],
        ["4", "finished"],
    ]
    assert done.stdout.splitlines()[-3].startswith(f"test/accuracy: mean {found['mean']:.4f}, standard deviation")


def test_different_test_images_are_said(two: tuple[Path, subprocess.CompletedProcess]) -> None:
    assert two[1].stdout.splitlines()[-2] == (
        "The seeds differ in their test images (data.limit 200 draws them from the seed), so the spread of test "
        "results includes that of the images."
    )


@pytest.mark.parametrize(
    ("words", "given", "group"),
    [
        (("seeds", "debug", "--seeds", "0,1"), {}, "S seeds"),
        (("tune", "debug", "--phases.0.lr", "0.1..1", "--trials", "2"), {"WANDB_RUN_GROUP": "mine"}, "mine tune"),
    ],
    ids=["seeds", "tune"],
)
def test_runs_share_a_group_and_a_tag_on_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple, given: dict[str, str], group: str
) -> None:
    script = "import os; print(os.environ['WANDB_RUN_GROUP'], os.environ['WANDB_TAGS'], file=open('seen', 'a'))"
    (tmp_path / "launcher.py").write_text(script)
    monkeypatch.delenv("WANDB_TAGS", raising=False)
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "resnet_cifar", *words, "--run", "S", "--launch", f"{sys.executable} launcher.py"]
    subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, timeout=300)
    assert (tmp_path / "seen").read_text().splitlines() == [group, group]


def test_finished_seeds_are_not_started_again(two: tuple[Path, subprocess.CompletedProcess]) -> None:
    cwd, _ = two
    before = {path: path.stat().st_mtime_ns for path in (cwd / "S").rglob("seed-*/**/*")}
    again = seeds(cwd, "--seeds", "4,3", "--launch", "there-is-no-such-launcher")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in (cwd / "S").rglob("seed-*/**/*")} == before
    assert "seed 3 is finished" in again.stdout


def test_a_seed_that_fails_is_named_and_the_others_go_on(two: tuple[Path, subprocess.CompletedProcess]) -> None:
    cwd, _ = two
    (cwd / "fails.py").write_text("import sys; sys.exit(3)")
    done = seeds(cwd, "--seeds", "2..5", "--launch", "python fails.py")
    assert done.returncode == 1
    assert done.stderr == "error: seed 2, 5 failed, see the error above\n"
    written = json.loads((cwd / "S/seeds.json").read_text())
    states = {seed: facts["state"] for seed, facts in written["seeds"].items()}
    assert states == {"2": "failed", "3": "finished", "4": "finished", "5": "failed"}
    assert written["spread"]["test/accuracy"]["mean"] == pytest.approx(sum(results(cwd)) / 2)
    assert sorted(path.name for path in (cwd / "S").iterdir()) == ["seed-3", "seed-4", "seeds.json"]


def test_a_folder_of_another_recipe_is_refused_before_any_seed(two: tuple[Path, subprocess.CompletedProcess]) -> None:
    cwd, _ = two
    done = seeds(cwd, "--seeds", "2..4", "--batch_size", "64")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --run S/seed-3 belongs to another recipe (batch_size: 64, not 32)")
    assert not (cwd / "S/seed-2").exists()
