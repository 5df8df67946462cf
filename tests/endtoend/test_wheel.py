"""The wheel contains everything it needs: it trains and reports outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = "--model.name test_resnet --data.image_size 32 --data.limit 100 --batch_size 48 --micro_batch 8"


def run(cwd: Path, *words: str | Path, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(
        [*map(str, words)], check=False, cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a directory, without its dependencies, which the running interpreter has."""
    home = tmp_path_factory.mktemp("wheel")
    source = home / "source"  # `build/` and `*.egg-info` must not appear in the checkout
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() and name.startswith(
            ("resnet_cifar/", "setup.cfg", "pyproject.toml", "README", "LIC")
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(home, *pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", home, source)
    (wheel,) = home.glob("*.whl")
    run(home, *pip, "install", "--no-deps", "--no-index", "--target", home / "site", wheel)
    return home / "site"


@pytest.mark.proof_only
def test_the_wheel_trains_and_reports_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    command, site = installed / "bin" / "resnet-cifar", {"PYTHONPATH": str(installed)}
    names = subprocess.run(["git", "ls-files", "resnet_cifar"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert [name for name in names.stdout.split() if not (installed / name).is_file()] == []
    where = run(tmp_path, sys.executable, "-c", "import resnet_cifar; print(resnet_cifar.__file__)", **site)
    assert Path(where.strip()).is_relative_to(installed)
    words = ["--recipe", "debug", "--track.trackers", "none", "--run", "RUN", *TINY.split()]
    run(tmp_path, sys.executable, command, "train", *words, **site)
    page = tmp_path / "RUN" / "report" / "index.html"
    page.unlink(missing_ok=True)
    run(tmp_path, sys.executable, command, "report", "RUN", **site)
    assert page.is_file()
    assert (tmp_path / "RUN" / "model" / "README.md").is_file(), "the model card"
    seeds = [word for word in words if word not in ("--recipe", "debug", "--run", "RUN")]
    run(tmp_path, sys.executable, command, "seeds", "debug", *seeds, "--seeds", "1", "--run", "SEEDS", **site)
    assert (tmp_path / "SEEDS" / "seed-1" / "result.json").is_file()


def test_help_needs_no_package_and_a_missing_one_is_named(installed: Path, tmp_path: Path) -> None:
    """As with the wrong interpreter: -S hides the installed packages."""
    command, site = installed / "bin" / "resnet-cifar", {"PYTHONPATH": str(installed)}
    assert "usage: resnet-cifar COMMAND" in run(tmp_path, sys.executable, "-S", command, "--help", **site)
    programs = [[command, "train"], [ROOT / "train.py"], [ROOT / "eval.py", "RUN"]]
    for program in programs:
        words = [sys.executable, "-S", *map(str, program)]
        env = {**os.environ, **site}
        done = subprocess.run(words, check=False, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {sys.executable} does not have the package ")
        assert done.stderr.count("\n") == 1
        assert ". .venv/bin/activate" in done.stderr or "pip install" in done.stderr or "bin/activate`" in done.stderr
