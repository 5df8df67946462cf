"""The four floors of CONTRIBUTING.md: imports point down, lazy ones included. Read from the source."""

from __future__ import annotations

import ast
import configparser
import graphlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "resnet_cifar"
FLOORS = (
    {"config", "rng", "atomic_io", "cache_folder", "hub_access", "wandb_env", "wandb_artifacts"},
    {"data", "models", "optim", "distributed", "checkpoints", "evaluation", "tracking"},
    {"training", "reporting"},
    {"sweeps", "cli", "notebook", "__main__"},
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# On one floor a package imports only these neighbors.
NEIGHBORS = {
    "atomic_io": {"config"},  # its error
    "cache_folder": {"config"},
    "hub_access": {"config", "cache_folder"},
    "wandb_env": {"config"},
    "wandb_artifacts": {"config", "atomic_io", "cache_folder", "hub_access", "wandb_env"},
    "config": {"atomic_io"},  # writes recipe.yaml
    "optim": {"models"},  # which parameters are the head's
    "evaluation": {"data", "models", "distributed", "checkpoints"},
    "training": {"reporting"},
    "cli": {"sweeps"},
    "notebook": {"cli", "sweeps"},
    "__main__": {"cli"},
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(file: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for name in imported(ast.walk(ast.parse(file.read_text()))):
        parts = name.split(".")
        if parts[0] == "resnet_cifar":
            parts = parts[1:]
            while ".".join(parts) not in FILES:
                parts.pop()
            found.add(".".join(parts))
    return found


IMPORTS = {module: own_modules(file) - {module, ""} for module, file in FILES.items()}


def package(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def test_every_package_lies_on_a_floor() -> None:
    assert len(FILES) > 60
    assert {package(module) for module in FILES if module} == set(FLOOR)


@pytest.mark.parametrize("module", [module for module in FILES if module])
def test_imports_point_down(module: str) -> None:
    ours = package(module)
    allowed = {ours, *NEIGHBORS.get(ours, ())}
    wrong = {
        other for other in IMPORTS[module] if FLOOR[package(other)] >= FLOOR[ours] and package(other) not in allowed
    }
    assert not wrong, f"{module} imports {wrong}"


def test_there_is_no_circle_of_modules() -> None:
    """Imports inside functions included; a package's `__init__` may list its own modules."""
    graph = {module: imports for module, imports in IMPORTS.items() if module}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("config.schema") < order.index("training.trainer")


def test_only_context_imports_accelerate() -> None:
    users = {
        module
        for module, file in FILES.items()
        if any(name.split(".")[0] == "accelerate" for name in imported(ast.walk(ast.parse(file.read_text()))))
    }
    assert users == {"distributed.context"}


def test_an_installation_has_every_package_that_is_imported() -> None:
    """Without the extras for tests: `make test` has those packages, a cluster that follows the README has not."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    wanted = config["options"]["install_requires"] + "".join(extras[name] for name in extras.keys() - {"test", "dev"})
    declared = {re.split("[^a-z0-9-]", line.lower().replace("_", "-"))[0] for line in wanted.split()}
    names = {name.split(".")[0] for file in FILES.values() for name in imported(ast.walk(ast.parse(file.read_text())))}
    names -= {"resnet_cifar", *sys.stdlib_module_names}
    names -= {"IPython", "triton", "anyio", "starlette"}  # of a notebook, of PyTorch for GPUs, and two of FastAPI
    projects = importlib.metadata.packages_distributions()
    lacking = {name for name in names if not {p.lower().replace("_", "-") for p in projects[name]} & declared}
    assert not lacking


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, resnet_cifar; print(*sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv)))"
    heavy = ["IPython", "numpy", "pydantic", "resnet_cifar", "timm", "torch"]
    done = subprocess.run([sys.executable, "-c", script, *heavy], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "resnet_cifar\n"


def test_no_module_is_called_utils() -> None:
    assert not {part for module in FILES for part in module.split(".")} & FORBIDDEN_NAMES


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
)
def test_the_modules_and_tests_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert set(re.findall(r"\btest_\w+\.py\b", text)) <= tests
    own = re.findall(
        r"`((?:config|data|models|optim|distributed|checkpoints|evaluation|tracking|training|reporting|cli)/(?!test_)[\w/]+\.\w+)`",
        text,
    )
    assert {path for path in own if not (PACKAGE / path).exists()} == set()


PAGES = [page for place in ("*.md", "docs/*.md", "*/README.md") for page in ROOT.glob(place)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", page.read_text()):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)", target.read_text(), flags=re.MULTILINE)
            found = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}  # as GitHub does
            assert heading in found, link
