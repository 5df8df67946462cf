"""`resnet-cifar compare RUN RUN ... [--out FILE] [--files DIR]`: results and differences of several runs or recipes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from resnet_cifar.checkpoints.run_dir import check_version
from resnet_cifar.cli.parser import check_page, is_written_by, parse
from resnet_cifar.config.errors import UserError

_STUDY_FILES = ("seeds.json", "journal.log")  # of seeds and of a search


@dataclass(frozen=True)
class CompareOptions:
    """Compare runs, in a table and on a page: their results, curves, and the fields in which their recipes differ.
    Runs of one recipe with several seeds are one row, and recipes are tested against the first one."""

    runs: tuple[str, ...]
    """Run directories, or directories that hold some (of seeds, of a search), which count for their finished runs."""
    out: str = "report-compare.html"
    """The page."""
    files: str = ""
    """A directory for the table as CSV, Markdown and LaTeX and the mean curves as PNG, SVG and PDF [default: none]."""


def parse_arguments(arguments: list[str]) -> tuple[CompareOptions, list[Path]]:
    """The options, and the run directories that they name. Exits after --help; raises UserError."""
    usage = "resnet-cifar compare RUN RUN ... [--out FILE] [--files DIR]"
    options, _ = parse(CompareOptions, usage, arguments)
    runs = [run for word in options.runs for run in runs_of(Path(word))]
    resolved: set[Path] = set()
    for run in runs:
        if run.resolve() in resolved:
            raise UserError(f"compare: {run} is named twice, and a run is not compared with itself: name it once")
        resolved.add(run.resolve())
    if len(runs) < 2:
        raise UserError(
            f"compare takes two runs or more, not {' '.join(map(str, runs)) or options.runs[0]} alone: its report is "
            "written by resnet-cifar report"
        )
    out, files = Path(options.out), Path(options.files)
    check_page(out, "compare")
    is_taken = bool(options.files) and files.exists() and (files.is_file() or any(files.iterdir()))
    if is_taken and not is_written_by(files / "table.tex", "compare"):
        raise UserError(f"--files {files} is not a directory of tables of this command: name a new or empty one")
    return options, runs


def main(arguments: list[str]) -> None:
    """Prints one row per run or recipe and writes the page. Raises UserError."""
    options, folders = parse_arguments(arguments)

    from resnet_cifar.reporting import comparison_files, comparison_report, recipe_comparison
    from resnet_cifar.reporting.comparison_table import compare, read_runs
    from resnet_cifar.reporting.recipe_groups import image_sentence

    runs = read_runs(folders)
    found = recipe_comparison.compare_recipes(runs)
    if found.has_seeds:
        recipe_comparison.print_recipes(found)
    else:
        compare(runs, found.seed_lines())
        for sentence in filter(None, (image_sentence(each.runs) for each in found.recipes)):
            print(sentence)
        if len(found.recipes) == 1 and len(found.recipes[0].runs) > 1:
            print("All runs are of one recipe. With runs of a second one, the two are compared over their seeds.")
    try:
        page = comparison_report.write_comparison(runs, Path(options.out))
    except OSError as error:
        raise UserError(f"{options.out} cannot be written ({error.strerror}): name another file with --out") from None
    print(f"written: {page}", flush=True)
    if options.files:
        try:
            comparison_files.write_files(found, Path(options.files))
        except OSError as error:
            raise UserError(
                f"--files {options.files} cannot be written ({error.strerror}): name another directory"
            ) from None
        print(f"written: {options.files}", flush=True)


def runs_of(path: Path) -> list[Path]:
    """The run directory itself, or the finished ones below; none for the other files of a study, as in STUDY/*."""
    check_version(path)
    if (path / "recipe.yaml").is_file():
        return [path]
    if path.is_dir():
        from resnet_cifar.reporting.run_listing import run_folders

        found = sorted(run_folders(path), key=_by_number)
        if finished := [run for run in found if (run / "result.json").is_file()]:
            if len(finished) < len(found):
                print(f"{path}: {len(found) - len(finished)} of {len(found)} runs have not finished and do not count")
            return finished
    if path.exists() and any((path.parent / name).is_file() for name in _STUDY_FILES):
        return []
    raise UserError(
        f"{path} is not a run directory (it has no recipe.yaml) and holds no finished run: name run "
        "directories, or a directory of seeds or of a search"
    )


def _by_number(path: Path) -> list[str | int]:
    """seed-10 after seed-9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]
