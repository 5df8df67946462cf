"""A search whose trials ended in every way, and what their run directories say they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RATES = (1e-3, 1e-2, 3e-2, 0.1, 5e-3, 2e-3)
STATES = ("finished", "finished", "ended early", "diverged", "finished", "failed")
REASONS = ("", "", "below the median at evaluation 1", "the loss of step 9 is not finite", "", "<b>no memory</b>")


def search(home: Path, gpus: int = 2) -> dict[str, Any]:
    """The content of its study.json; every trial took two attempts of half an hour, each on two devices."""
    attempts = [{"began": 0.0, "ended": 1800.0}, {"began": 4000.0}]
    for number in range(len(RATES)):
        run = home / f"trial-{number:03d}"
        run.mkdir()
        facts = {"gpus": gpus} if gpus else {}
        (run / "attempts.json").write_text(json.dumps({"attempts": [attempt | facts for attempt in attempts]}))
        (run / "status.json").write_text(json.dumps({"time": 5800.0}))
        (run / "environment.json").write_text(json.dumps({"world_size": 2}))
    trials = [
        {
            "state": state,
            "val/accuracy": 0.9 - rate if state == "finished" else None,
            "why": why,
            "values": {"phases.0.lr": rate, "optimizer.name": "sgd" if rate > 4e-3 else "adamw", "batch_size": 32},
        }
        for rate, state, why in zip(RATES, STATES, REASONS, strict=True)
    ]
    return {
        "recipe": "debug",
        "ranges": {
            "phases.0.lr": "0.001 to 0.1, on a log scale",
            "optimizer.name": "one of lamb; sgd; adamw",
            "batch_size": "16 to 64, whole numbers",
        },
        "prune": 1,
        "parallel": 2,
        "metric": "val/accuracy",
        "best": 0,
        "ranking": [0, 4, 1, 2, 3, 5],
        "importance": {"phases.0.lr": 0.75, "optimizer.name": 0.25},
        "trials": trials,
    }
