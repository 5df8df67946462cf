"""A file system on which every call takes 200 ms more: the training thread makes none while it trains."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from metric_rows import computed


@pytest.mark.proof_only
def test_a_slow_file_system_delays_no_step(hurt_run, record) -> None:
    run, normal = hurt_run(2), hurt_run(2)
    options = ("--checkpoint.every_steps", 13, "--evaluate.every_epochs", 3.5)
    normal.finish(options=options)
    journal = run.home / "calls.jsonl"
    slow = {"folder": str(run.folder), "journal": str(journal), "seconds": 0.2}
    run.finish(options=options, env={"SLOW_FILES": json.dumps(slow)})
    calls = {told["rank"]: told["calls"] for told in map(json.loads, journal.read_text().splitlines())}
    steps = max(step for *_, step in calls[0])
    during = {rank: [call for call in calls[rank] if 0 < call[-1] < steps] for rank in (0, 1)}
    assert [call for call in during[0] + during[1] if call[3] == "MainThread"] == []
    written = {file.split(".writing-")[0] for _, file, *_ in during[0]}
    assert {"metrics.jsonl", "status.json", "lease.json", "checkpoints/step-00000013"} <= written
    assert (run.folder / "model/model.safetensors").read_bytes() == (
        normal.folder / "model/model.safetensors"
    ).read_bytes()
    assert list(map(computed, run.rows)) == list(map(computed, normal.rows))
    by_thread = {name: [call for call in during[0] if call[3].startswith(name)] for name in ("run", "checkpoint")}
    renamed = Counter(file.split("/")[0].split(".writing")[0] for kind, file, *_ in during[0] if kind == "rename")
    record(
        "file calls of a run of 2 ranks",
        steps=steps - 1,
        rows=sum(kind == "flush" and file.startswith("metrics.jsonl") for kind, file, *_ in during[0]),
        renamed=renamed,
        calls_of_rank_1=len(during[1]),
        calls={name: Counter(kind for kind, *_ in calls) for name, calls in by_thread.items()},
        bytes={name: sum(size for _, _, size, *_ in calls) for name, calls in by_thread.items()},
    )
