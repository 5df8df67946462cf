"""Advice is followed: what a sentence says to raise, lower, remove, name, use or set leads to a run, or to another one.

Every sentence of the source that advises something is found by its words in the syntax tree, and must be said by one of
the mistakes, of test_one_sentence or of `advised`, whose remedies do what it says.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from advised import ADVISED, ELSEWHERE
from making import ROOT, Case
from test_one_sentence import CASES, EMBEDDED

from resnet_cifar.cli import train as cli_train
from resnet_cifar.config.errors import UserError
from resnet_cifar.reporting import optional_outputs
from resnet_cifar.training import plan_summary, trainer

SOURCE = ROOT / "resnet_cifar"
VERBS = """add bring check choose clear convert correct create delete download export fix free give install keep leave
    let lower make move name pack pass pip put raise remove rename rerun restore retry run save set start take train try
    unpack unset update use write"""
ADVICE = re.compile(rf"(?:^|[:;,(] |\b(?:or|and|then) )(?:{'|'.join(VERBS.split())}) \S")
SAID: dict[Case, str] = {}


class NoStop:
    """In place of StopSignals, which would handle the signals of this process."""

    def hand_over(self, answer: Callable[[str], None]) -> None:
        """Nobody asks."""


class Opened(trainer.Trainer):
    """Opens the run, restores its checkpoint and stops before the first step."""

    def run(self) -> None:
        try:
            tensors, values = self.writer.open()
            if values is not None:
                self.state.restore(tensors, values)
        finally:
            self.writer.end("interrupted", "the test")
            self.watchdog.close()


def follow(case: Case, words: str) -> None:
    """The command of the case with these words, in this process; training ends before its first step."""
    AcceleratorState._reset_state(True)
    arguments = shlex.split(words)
    if case.script == "train.py":
        options, recipe = cli_train.parse_arguments(arguments)
        trainer.train(recipe, options, NoStop())
        return
    command = {"eval.py": "evaluate"}.get(case.script) or arguments.pop(0)
    with contextlib.suppress(SystemExit):
        importlib.import_module(f"resnet_cifar.cli.{command}").main(arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options, recipe = cli_train.parse_arguments([*EMBEDDED.split(), "--run", "RUN", "--track.report", "False"])
        AcceleratorState._reset_state(True)
        trainer.train(recipe, options, NoStop())
    return folder / "RUN"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> Path:
    """The folder in which a case is made; nothing is measured, trained or asked of a hub."""
    monkeypatch.setattr(plan_summary, "estimate", lambda state, data: [])
    monkeypatch.setattr(trainer, "Trainer", Opened)
    monkeypatch.setattr(optional_outputs, "write_report", lambda folder, name, warn: None)
    monkeypatch.setattr("accelerate.utils.memory.gc.collect", lambda: 0)  # most of the time of so short a command

    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def advised(case: Case, home: Path, trained: Path) -> str:
    """The sentence that the mistake is answered with."""
    case.prepare(home, trained)
    with pytest.raises(UserError) as caught, environment(dict(case.env)):
        case.words(home) if callable(case.words) else follow(case, case.words.removeprefix("-m resnet_cifar "))
    return str(caught.value)


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


FOLLOWED = [case for case in [*CASES, *ADVISED] if case.remedies]


@pytest.mark.parametrize("case", FOLLOWED, ids=lambda case: case.name)
def test_advice_works_when_it_is_followed(case: Case, workplace: Path, trained: Path) -> None:
    said = SAID[case] = advised(case, workplace, trained)
    for part in case.said:
        assert part in said
    for place, remedy in enumerate(case.remedies):
        home = workplace.with_name(f"remedy-{place}")
        home.mkdir()
        os.chdir(home)
        case.prepare(home, trained)
        change, words, then = remedy.change, remedy.words, remedy.then
        if change is not None:
            change(home, trained)
        if remedy.number:
            number = re.search(remedy.number, said)[1]
            words = functools.partial(words, number=number) if callable(words) else words.format(number)
        try:
            words(home) if callable(words) else follow(case, words.removeprefix("-m resnet_cifar "))
        except UserError as error:
            assert then and then in str(error) and str(error) != said, f"{said}\n-> {words}\n-> {error}"
        else:
            assert not then
        shutil.rmtree(home, ignore_errors=True)


def sentences() -> dict[str, re.Pattern]:
    """Every string of the source that advises something: its place, and a pattern for what is said."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        name = file.relative_to(SOURCE).as_posix()
        found |= {f"{name}: {text}": pattern for text, pattern in _advice(ast.parse(file.read_text()))}
    return found


def _advice(node: ast.AST) -> Iterator[tuple[str, re.Pattern]]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
        return
    if (parts := _parts(node)) is not None:
        text = "".join(part if isinstance(part, str) else "{}" for part in parts)
        inner = " ".join(each.value for each in ast.walk(node) if _is_text(each))
        if ADVICE.search(text) or ADVICE.search(inner):
            yield text, re.compile("".join(re.escape(part) if isinstance(part, str) else ".*" for part in parts), re.S)
        return
    for child in ast.iter_child_nodes(node):
        yield from _advice(child)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _parts(node: ast.AST) -> list[str | None] | None:
    """The constant parts of a string, with None for what is filled in; None for what is no string."""
    if _is_text(node):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [part.value if _is_text(part) else None for part in node.values]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = _parts(node.left), _parts(node.right)
        return None if sides == (None, None) else [part for side in sides for part in (side or [None])]
    return None


def test_every_sentence_that_advises_something_is_followed(request: pytest.FixtureRequest) -> None:
    if len(SAID) < len(FOLLOWED):
        pytest.skip("the mistakes before were not made")
    missing = [place for place, pattern in sentences().items() if not any(map(pattern.search, SAID.values()))]
    missing = [place for place in missing if not any(part in place for part in ELSEWHERE)]
    assert not missing, f"{len(missing)} without a mistake whose remedies follow them:\n" + "\n".join(missing)
