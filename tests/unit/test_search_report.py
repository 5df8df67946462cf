"""search_report.py: what the page of a search says."""

from __future__ import annotations

import re
from pathlib import Path

from simulated_search import search

from resnet_cifar.reporting.search_report import render


def text(page: str) -> str:
    """The words of the page, without its drawings."""
    body = re.sub(r"<(style|svg|script).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_the_page_tells_the_best_recipe_and_what_it_cost(tmp_path: Path) -> None:
    page = render(search(tmp_path), tmp_path)
    said = text(page)
    assert "best accuracy 0.8990 validation, trial 0" in said
    assert "trials 6 3 finished, 1 ended early, 1 diverged, 1 failed" in said
    assert "cost of the search 12 GPU-hours" in said, "six trials of two half hours on two devices"
    assert "cost of the best trial 2 GPU-hours" in said
    assert f"resnet-cifar seeds {tmp_path}/best.yaml --seeds 1..5" in said
    assert "phases.0.lr 0.001 0.001 to 0.1, on a log scale" in said
    assert "&lt;b&gt;no memory&lt;/b&gt;" in page
    rows = re.findall(r'<tr[^>]*><td class="number">(\d)</td><td>', page)
    assert rows == ["0", "4", "1", "2", "3", "5"]
    assert page.count("<svg ") == 6, "history, importance, coordinates and three slices"


def test_without_gpus_the_cost_counts_processes(tmp_path: Path) -> None:
    assert "cost of the search 12 process-hours" in text(render(search(tmp_path, gpus=0), tmp_path))


def test_before_two_trials_have_finished_there_are_no_figures(tmp_path: Path) -> None:
    summary = search(tmp_path)
    for trial in summary["trials"][1:]:
        trial |= {"state": "running", "val/accuracy": None}
    summary |= {"importance": {}, "best": None, "ranking": [0, 1, 2, 3, 4, 5]}
    summary["trials"][0] |= {"state": "failed", "val/accuracy": None}
    page = render(summary, tmp_path)
    assert "<svg" not in page
    assert "No trial has finished." in text(page)
