"""The arrows between modules, as DESIGN.md draws them: read from the source, so that nothing has to be imported."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "resnet_cifar"

# From the bottom up. A room may import from the layers below it, and modules within one room from each other.
# A module that is named takes precedence over the room it lies in. cli and commands read words and recipes and start
# nothing themselves (train.py and eval.py do), so they lie below what uses them.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("recipe", "data.draws"),
    ("target", "rmsprop_keras"),
    ("ghost_batchnorm_triton",),
    ("cli", "optim", "cifar_stem", "head", "ghost_batchnorm"),
    ("commands", "run_folder", "ranges"),
    ("data", "model", "reporting"),
    ("training", "exploring"),
    ("attempts", "following", "study"),
    ("training.loop", "training.score", "training.check", "training.label", "training.fetch"),
    ("report", "explore", "cache", "seeds", "tune", "notebook"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Absolute names of what is imported, with the module where a name may be either a module or a thing in it."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_module(name: str) -> str | None:
    """`resnet_cifar.rng.beta` -> `data.draws`; None for another package's."""
    if name.split(".", maxsplit=1)[0] != "resnet_cifar":
        return None
    parts = name.split(".")[1:]
    while ".".join(parts) not in FILES:
        parts.pop()
    return ".".join(parts)


def arrows(module: str, nodes: Iterable[ast.AST] | None = None) -> set[str]:
    """The project's modules that `module` imports, anywhere in it."""
    nodes = ast.walk(ast.parse(FILES[module].read_text())) if nodes is None else nodes
    return {own for name in imported(nodes) if (own := own_module(name)) is not None} - {module}


def room(module: str) -> str:
    return module if module in LEVEL else module.split(".", maxsplit=1)[0]


def test_every_module_lies_in_a_layer() -> None:
    assert len(FILES) > 20
    assert {room(module) for module in FILES if module} <= set(LEVEL)


@pytest.mark.parametrize("module", [module for module in FILES if module])
def test_no_arrow_points_up(module: str) -> None:
    ours = room(module)
    up = {
        other
        for other in arrows(module)
        if other and room(other) != ours and not (LEVEL[room(other)] < LEVEL[ours])  # "" is the package itself
    }
    assert not up, f"{module} imports {up}"


def test_the_package_itself_imports_what_joins_timms_registry_and_its_two_functions_when_they_are_asked_for() -> None:
    assert arrows("") == {"cifar_stem", "head", "notebook"}
    assert arrows("", ast.parse(FILES[""].read_text()).body) == set()
    script = "import sys, resnet_cifar; print(*sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv)))"
    heavy = ["IPython", "numpy", "pydantic", "resnet_cifar", "timm", "torch"]
    done = subprocess.run([sys.executable, "-c", script, *heavy], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "resnet_cifar\n"


def test_modules_are_loaded_in_no_circle() -> None:
    """Only what is imported while a module loads; functions may import later."""
    graph = {
        module: arrows(module, ast.parse(file.read_text()).body) - {""} for module, file in FILES.items() if module
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("recipe") < order.index("training.loop")


def test_only_world_imports_accelerate() -> None:
    users = {
        module
        for module, file in FILES.items()
        if any(name.split(".")[0] == "accelerate" for name in imported(ast.walk(ast.parse(file.read_text()))))
    }
    assert users == {"training.world"}


def test_reporting_never_imports_training() -> None:
    for module in FILES:
        if module.split(".")[0] == "reporting":
            assert not any(other.split(".")[0] == "training" for other in arrows(module)), module


def test_the_recipe_and_the_draws_import_nothing_of_ours() -> None:
    assert arrows("recipe") == arrows("data.draws") == set()


def test_no_module_is_a_drawer() -> None:
    names = {part for module in FILES for part in module.split(".")}
    assert not names & FORBIDDEN_NAMES


@pytest.mark.parametrize("entry", ["train.py", "eval.py"])
def test_entry_files_import_the_command_line_first_and_the_rest_inside_main(entry: str) -> None:
    body = ast.parse((ROOT / entry).read_text()).body
    assert {own_module(name) for name in imported(body)} - {None} == {"cli", "commands"}
