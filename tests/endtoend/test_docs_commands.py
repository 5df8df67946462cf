"""Every shell command in README.md and docs/ works: it is parsed from the page, then run at small size or checked.

Commands of this project are parsed with the parser of their command; of each page, the first of each kind is also run,
in a process forked from a server that has already imported PyTorch. Other commands are checked for the files and
targets they name. A command of an unknown kind fails, so that a new one is covered deliberately.
"""

from __future__ import annotations

import configparser
import importlib
import itertools
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from resnet_cifar.cli import tune
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.validation import parse
from resnet_cifar.sweeps import search_space

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md")))]
COMMANDS = (
    *("train", "evaluate", "predict", "export", "push", "serve"),
    *("report", "dashboard", "runs", "compare", "explore", "reproduce", "seeds", "tune", "scale", "cache"),
)

# Appended to a command that trains, so that it takes seconds and downloads nothing.
SMALL = {
    "data.source": "synthetic",
    "data.limit": "100",
    "data.image_size": "32",
    "model.name": "test_resnet",
    "model.pretrained": "False",
    "model.head.pool": "model",
    "model.ghost_batch_size": "8",
    "batch_size": "16",
    "micro_batch": "0",
    "precision": "no",
    "phases.0.epochs": "1",
    "track.trackers": "none",
    "track.report": "False",
}
# Not run: compiling takes minutes, and tests/training does it; tests/endtoend/test_export.py exports, test_serve.py
# serves and test_reproduce.py reproduces, tests/unit/test_dashboard.py serves a dashboard, tests/hub/test_push.py
# pushes, tests/distributed/test_scaling.py measures scaling and plans with it.
PARSED_ONLY = {"--compile", "--to", "reproduce", "push", "serve", "dashboard", "--processes", "--scaling"}
# Values of the pages that take long, and what replaces them.
SHORTER = {"--seeds": "0", "--trials": "1", "--max-minutes": "1", "--profile-steps": "2"}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def split_command(words: list[str]) -> tuple[str, list[str]] | None:
    """(command of this project, its arguments), or None for another program's."""
    if words[:2] == ["accelerate", "launch"]:
        return "train", words[words.index("train.py") + 1 :]
    if words[0] == "containers/train.sh":
        return "train", words[1:]
    if words[0] == "resnet-cifar":
        return words[1], words[2:]
    entry = {"train.py": "train", "eval.py": "evaluate"}
    if words[0] == "python" and words[1] in entry:
        return entry[words[1]], words[2:]
    return None


def shape(command: str, arguments: list[str]) -> tuple[str, ...]:
    """The command and its options that choose what it does; commands of one shape run the same code."""
    options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    return command, *sorted(option for option in options - {"--recipe", "--run", "--out"} if "." not in option)


def check_launch(words: list[str]) -> None:
    """Accelerate accepts its own options, and the configuration file exists."""
    from accelerate.commands.launch import launch_command_parser

    asked = launch_command_parser().parse_args(words[2:])
    assert asked.training_script == "train.py"
    assert asked.config_file is None or (ROOT / asked.config_file).is_file(), words


def check_other(words: list[str]) -> None:
    """A command of another program: the files, targets and extras that it names exist."""
    program, *rest = words
    files: list[str] = []
    if program == "sbatch":
        (script,) = [word for word in rest if word.startswith("slurm/")]
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
        if "tune" in rest:
            options, overrides = tune.parse_arguments(rest[rest.index("tune") + 1 :])
            assert search_space.read(options.recipe, overrides).ranges
    elif program == "make":
        target = next(word for word in rest if "=" not in word)
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), words
    elif program == "pip" and rest[0] == "install":
        files = [after for word, after in itertools.pairwise(rest) if word == "-c"]
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        extras = [extra for word in rest for extra in re.findall(r"\[(.*)\]", word)]
        assert set(",".join(extras).split(",")) - {""} <= set(setup["options.extras_require"]), words
    elif words[:3] == ["python", "-m", "benchmarks"] or "benchmarks.gpu" in words:
        files = ["benchmarks/__main__.py", "benchmarks/gpu.py"]
    elif program == "bash":
        files = rest[:1]
    elif words[:2] == ["docker", "build"]:
        files = [after for word, after in itertools.pairwise(rest) if word == "-f"]
    elif words[:2] == ["docker", "run"]:
        inside = rest[rest.index(next(word for word in rest if word.startswith("resnet-cifar:"))) + 1 :]
        assert not inside or split_command(inside), words
    elif program not in ("wandb", "curl", "mkdir") and words[:2] != ["git", "clone"] and "pip" not in words:
        pytest.fail(f"a command of an unknown kind: {shlex.join(words)}")
    for file in files:
        assert (ROOT / file).is_file(), f"{file} of {shlex.join(words)} does not exist"


def _run(words: list[str], log: str, environment: dict[str, str]) -> None:
    """In the forked process: runs the command as its program does, with its output in `log`."""
    with open(log, "wb") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    command, *arguments = words
    script = {"train": "train.py", "evaluate": "eval.py"}.get(command)
    sys.argv = [str(ROOT / script), *arguments] if script else ["resnet-cifar", *words]
    if script:
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module("resnet_cifar", run_name="__main__")


class Workplace:
    """A directory in which a page's commands run, and a finished run that stands in for those a page does not train."""

    def __init__(self, folder: Path, seen: set[tuple[str, ...]]) -> None:
        self.folder, self.seen = folder, seen
        self.server = multiprocessing.get_context("forkserver")
        self.server.set_forkserver_preload(["resnet_cifar.training.trainer", "resnet_cifar.reporting.run_report"])
        self.finished: Path | None = None

    def run(self, words: list[str], folder: Path) -> None:
        log = self.folder / "output.txt"
        environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        previous = Path.cwd()
        os.chdir(folder)
        try:
            process = self.server.Process(target=_run, args=(words, str(log), environment))
            process.start()
            process.join(120)
        finally:
            os.chdir(previous)
        assert process.exitcode == 0, f"{shlex.join(words)} exits with {process.exitcode}:\n{log.read_text()[-2000:]}"

    def stand_ins(self, command: str, arguments: list[str], folder: Path) -> list[str]:
        """The arguments, with the files and runs that they name in place."""
        if command == "runs":
            (folder / "runs").mkdir(exist_ok=True)
        for number, word in enumerate(arguments):
            if word.startswith("runs/") and arguments[number - 1] != "--run" and not word.endswith(".yaml"):
                run = folder / "/".join(Path(word).parts[:2])
                if not run.exists():
                    shutil.copytree(self.finished, run)
                if word.endswith("/export"):
                    (run / "export").mkdir(exist_ok=True)
                    (run / "export" / "model.onnx").touch()
                if "checkpoints" in word and not (folder / word).exists():
                    arguments[number] = str(sorted((run / "checkpoints").iterdir())[-1].relative_to(folder))
            elif command == "train" and word.startswith("runs/") and "extend_epochs" in " ".join(arguments):
                shutil.copytree(self.finished, folder / word, dirs_exist_ok=True)
            elif command in ("predict", "evaluate") and (word.endswith("/") or Path(word).suffix in (".png", ".jpg")):
                file = folder / word / "image.png" if word.endswith("/") else folder / word
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (200, 30, 30)).save(file)
            elif command == "predict" and word.endswith(".zip"):
                with zipfile.ZipFile(folder / word, "w") as archive:
                    archive.write(folder / "folder" / "image.png", "image.png")
            elif arguments[number - 1] in SHORTER:
                arguments[number] = SHORTER[arguments[number - 1]]
        recipe = folder / "runs" / "mine" / "recipe.yaml"
        if any("recipe.yaml" in word for word in arguments) and not recipe.exists():
            shutil.copytree(self.finished, recipe.parent)
        best = folder / "runs" / "search" / "best.yaml"
        if str(best.relative_to(folder)) in arguments and not best.exists():
            best.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.finished / "recipe.yaml", best)
        return arguments

    def check(self, command: str, arguments: list[str], folder: Path) -> None:
        """The command's parser accepts it; if it is the first of its shape, it is run, too."""
        assert command in COMMANDS, f"resnet-cifar {command} does not exist"
        arguments = self.stand_ins(command, arguments, folder)
        previous = Path.cwd()
        os.chdir(folder)
        try:
            importlib.import_module(f"resnet_cifar.cli.{command}").parse_arguments(list(arguments))
        except SystemExit as done:  # --help, --recipe list
            assert done.code == 0
        finally:
            os.chdir(previous)
        if (kind := shape(command, arguments)) in self.seen or not PARSED_ONLY.isdisjoint(kind):
            return
        self.seen.add(kind)
        if command in ("train", "seeds", "tune") and "--help" not in arguments and "list" not in arguments:
            searched = [name for name, word in itertools.pairwise(arguments) if command == "tune" and "," in word]
            arguments += [f"--{name}={value}" for name, value in SMALL.items() if f"--{name}" not in searched]
        elif command == "explore":
            arguments = ["synthetic", *arguments[1:], "--data.limit", "100"]
        self.run([command, *arguments], folder)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("pages"), set())
    place.finished = place.folder / "finished"
    small = [f"--{name}={value}" for name, value in SMALL.items()]
    place.run(["train", "--recipe", "debug", "--run", str(place.finished), *small], place.folder)
    place.seen.add(("train",))
    return place


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_every_command_of_a_page_works(page: str, workplace: Workplace, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)  # an account, which the commands that need one only look for
    for words in commands(page):
        if words[0] in (".", "cd"):
            continue
        if words[:2] == ["accelerate", "launch"]:
            check_launch(words)
        if found := split_command(words):
            workplace.check(*found, tmp_path)
        else:
            check_other(words)


def test_every_command_of_the_project_is_on_a_page() -> None:
    found = {split[0] for page in PAGES for words in commands(page) if (split := split_command(words))}
    assert found == set(COMMANDS)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_every_recipe_of_a_page_is_valid(page: str) -> None:
    for text in blocks(page, "yaml"):
        recipe = parse(yaml.safe_load(text))
        assert recipe != read_recipe("finetune")


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_every_link_of_a_page_leads_to_a_file(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) < 1500
