"""Whether two runs of a recipe have the same result, from which step on they differ, and what explains it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.reporting.reproducibility import read_attempts

# Of a row, by the machine's clock and counters.
_MEASURED = ("images_per_second", "mfu", "memory_gib", "gpu_utilization", "wait_share")
_SUMS = ("train/loss", "train/accuracy")  # of a row that a save has cut in two: added up in another order, in float64
_SUM_ERROR = 1e-12  # relative
_SHOWN = 3  # scores that a sentence names


def compare(run: Path, again: Path) -> dict[str, Any]:
    """Compares two finished runs; the values of `again` come first in each pair.

    equal; rows, tensors, scores: their numbers; first_difference: None, or {step, field, values} of metrics.jsonl;
    tensors_differ and their largest_difference; scores_differ {name: values}; recorded {fact: values}: differences of
    environment.json that change the last bits, or more. If `run` has no weights, tensors is 0, and digests are the
    recorded SHA-256 of both files.
    """
    tolerance = _SUM_ERROR if max(len(read_attempts(run)), len(read_attempts(again))) > 1 else 0.0
    rows = [_rows(folder) for folder in (again, run)]
    has_weights = (run / "model" / "model.safetensors").is_file()
    weights = [load_file(folder / "model" / "model.safetensors") if has_weights else {} for folder in (again, run)]
    results = [read_json(folder / "result.json") or {} for folder in (again, run)]
    digests = [None if has_weights else result.get("weights_sha256") for result in results]
    scores = [_scores(result) for result in results]
    first = _first_difference(*rows, tolerance)
    changed = [name for name, tensor in weights[1].items() if not _same_bits(tensor, weights[0].get(name))]
    comparable = [name for name in changed if name in weights[0] and weights[0][name].shape == weights[1][name].shape]
    distances = [float((weights[0][name].double() - weights[1][name].double()).abs().max()) for name in comparable]
    differ = {
        name: [found.get(name) for found in scores]
        for name in scores[1]
        if not _is_same(scores[0].get(name), scores[1][name])
    }
    return {
        "equal": first is None and not changed and not differ and not _digest_differs(digests),
        "rows": len(rows[1]),
        "tensors": len(weights[1]),
        "scores": len(scores[1]),
        "first_difference": first,
        "tensors_differ": len(changed),
        "largest_difference": max(distances, default=0.0),
        "digests": digests,
        "scores_differ": differ,
        "recorded": _recorded(run, again),
    }


def _digest_differs(digests: list[str | None]) -> bool:
    """Whether the weights differ, as far as their digests are recorded."""
    return None not in digests and digests[0] != digests[1]


def sentences(run: Path, again: Path, compared: dict[str, Any], name: str) -> list[str]:
    """What `compare` has found, for the screen. `name`: what the user calls `run`."""
    recorded = [f"{fact} {ours}, not {theirs}" for fact, (ours, theirs) in compared["recorded"].items()]
    if "threads" in compared["recorded"]:
        recorded[0] += f" (OMP_NUM_THREADS={compared['recorded']['threads'][1]} repeats the run's)"
    if compared["equal"]:
        digest = "no weights (none are recorded)" if None in compared["digests"] else "the SHA-256 of the weights"
        weights = f"{compared['tensors']} tensors" if compared["tensors"] else digest
        what = f"{compared['rows']} rows of metrics, {weights} and {compared['scores']} scores"
        return [
            f"{again} is equal to {name}, bit for bit: {what}",
            *([f"in spite of {'; '.join(recorded)}"] if recorded else []),
        ]
    lines = [f"{again} differs from {name}"]
    if first := compared["first_difference"]:
        ours, theirs = first["values"]
        where = "no step is equal" if first["after"] is None else f"equal until step {first['after']:,}"
        lines.append(f"  metrics: {where}; at step {first['step']:,} {first['field']} is {ours}, not {theirs}")
    if compared["tensors_differ"]:
        share = f"{compared['tensors_differ']} of {compared['tensors']} tensors"
        lines.append(f"  weights: {share}, by up to {compared['largest_difference']:.1e}")
    if _digest_differs(compared["digests"]):
        lines.append("  weights: another SHA-256")
    if found := compared["scores_differ"]:
        named = [f"{name} {ours}, not {theirs}" for name, (ours, theirs) in list(found.items())[:_SHOWN]]
        lines.append(f"  scores: {'; '.join(named)}{' and others' if len(found) > _SHOWN else ''}")
    if recorded:
        return [*lines, f"recorded differences, any of which can be the cause: {'; '.join(recorded)}"]
    recipe, environment = read_recipe(str(run / "recipe.yaml")), read_json(again / "environment.json") or {}
    if environment.get("gpus") and not recipe.deterministic:
        return [*lines, "deterministic is False: GPUs add in the order in which threads finish"]
    return [*lines, "no recorded difference explains it: please report this, with both directories' environment.json"]


def _rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what was measured."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in _MEASURED} for row in rows]


def _scores(result: dict[str, Any]) -> dict[str, Any]:
    """The scores of a result.json and the step that was selected."""
    return {name: value for name, value in result.items() if name.startswith(("val/", "test/")) or name == "step"}


def _first_difference(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tolerance: float
) -> dict[str, Any] | None:
    after = None
    for number in range(max(len(ours), len(theirs))):
        a, b = (rows[number] if number < len(rows) else {} for rows in (ours, theirs))
        for field in {**b, **a}:
            if not _is_same(a.get(field), b.get(field), tolerance if field in _SUMS else 0.0):
                step = b.get("step", a.get("step"))
                return {"after": after, "step": step, "field": field, "values": [a.get(field), b.get(field)]}
        after = b["step"]
    return None


def _is_same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=0.0) or (math.isnan(a) and math.isnan(b))
    return a == b


def _same_bits(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    return b is not None and a.dtype == b.dtype and torch.equal(a, b)


def _recorded(run: Path, again: Path) -> dict[str, list[Any]]:
    """What environment.json records differently, the likeliest causes first."""
    facts = [_facts(folder) for folder in (again, run)]
    names = dict.fromkeys([*facts[1], *facts[0]])
    return {name: [found.get(name) for found in facts] for name in names if facts[0].get(name) != facts[1].get(name)}


def _facts(run: Path) -> dict[str, Any]:
    found = read_json(run / "environment.json") or {}
    facts = {name: found.get(name) for name in ("threads", "gpus", "cpu", "cuda")}
    facts["processes"] = found.get("world_size")
    micro_batch = read_recipe(str(run / "recipe.yaml")).micro_batch
    if micro_batch == "auto":
        micro_batch = (read_json(run / "micro_batch.json") or {}).get("micro_batch")
    code = run / "code.diff"
    digest = hashlib.sha256(code.read_bytes()).hexdigest()[:8] if code.is_file() else None
    code_facts = {"commit": found.get("commit"), "code.diff": digest}
    return {**facts, "micro_batch": micro_batch, **(found.get("packages") or {}), **code_facts}
