"""The figures that README.md and docs/ quote: `python -m benchmarks.quotes` writes them from benchmarks/results.

tests/unit/test_quotes.py fails where a page and its file differ.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks.results import FOLDER
from resnet_cifar.atomic_io import read_json

ROOT = Path(__file__).parents[1]
_FIGURE = r"([\d.,]*\d(?:e-?\d+)?)"
_RECIPES = {  # as docs/recipes.md names the candidates of benchmarks/finetune.py
    "the former default": "the former default: SGD 0.02 with the head at ten times that, CutMix and Mixup, zero head, "
    "BatchNorm of batches",
    "SGD, rate 0.005": "SGD, rate 0.005, instead of AdamW",
    "finetune": "`finetune`",
}


class Quote(NamedTuple):
    """A sentence of a page, with {} for each figure, which may be wrapped over lines; and the figures."""

    page: str
    sentence: str
    figures: list[str]

    def put_into(self, text: str) -> str:
        """`text` with the figures. Raises ValueError unless it has the sentence once."""
        pattern = re.escape(self.sentence).replace(r"\{\}", _FIGURE).replace(r"\ ", r"\s+")
        found = list(re.finditer(rf"(?<![\d.,]){pattern}", text))
        if len(found) != 1:
            raise ValueError(f"{self.page} has {len(found)} times, not once: {self.sentence}")
        for number in range(len(self.figures), 0, -1):
            start, end = found[0].span(number)
            text = text[:start] + self.figures[number - 1] + text[end:]
        return text


def quotes() -> list[Quote]:
    """All of them."""
    return [*_whole_jobs(), *_steps_and_images(), *_accuracies(), *_serving(), *_proofs(), *_many_ranks()]


def _whole_jobs() -> Iterator[Quote]:
    jobs = _read("bench-cpu")["jobs"]
    ratios = [f"{jobs['ratios'][name]:.2f}" for name in ("seconds", "peak_bytes")]
    yield Quote("README.md", "{} times the time and {} times the memory of the best plain script", ratios)
    page = "docs/benchmarks.md"
    yield Quote(page, "{} times the faster script's wall time (the aim is 1.0) and {} times the smaller memory", ratios)
    rows = {
        "train.py": "`train.py`, with export and report",
        "accelerate_style": "plain Accelerate script",
        "timm_style": "plain timm script",
    }
    for name, label in rows.items():
        found = jobs["scripts"][name]
        wall, cpu, cold = found["seconds"], found["cpu_seconds"], found["cold"]["seconds"]
        cells = [f"{wall:.1f}", f"{cpu:.1f}", f"{found['peak_bytes'] / 1e9:.2f}", f"{cold:.1f}"]
        yield Quote(page, f"| {label} | {{}} | {{}} | {{}} | {{}} |", cells)


def _steps_and_images() -> Iterator[Quote]:
    bench, page = _read("bench-cpu"), "docs/benchmarks.md"
    checkpoint = _read("bench-checkpoints-cpu")["checkpoints"]["sgd"]
    step, pipeline = bench["training"]["configurations"][0], bench["pipeline"]
    speed = [f"{step['images_per_second']['whole']:.0f}", f"{100 * step['whole_over_stock']:.0f}"]
    yield Quote("README.md", "float32: {} images/s, {} % of stock timm", speed)
    alone = f"{100 * step['bare_over_stock']:.0f}"
    sentence = "{} images/s, {} % of stock timm in a plain loop; ghost BatchNorm alone {} %"
    yield Quote(page, sentence, [*speed, alone])
    small, large = pipeline["32 px"], pipeline["224 px"]
    times = [f"{small['resident_over_best']:.1f}", f"{large['resident_over_best']:.2f}"]
    sentence = "{} times the images/s of a `DataLoader` with its best number of workers at 32 pixels, {} times at 224"
    yield Quote("README.md", sentence, times)
    rates = [f"{size['images_per_second'][name]:,}" for size in (small, large) for name in ("resident", size["best"])]
    sentence = "at 32 px {} images/s resident against {} with the `DataLoader`'s best number of workers ({} times), "
    sentence += "at 224 px {} against {} ({} times)"
    yield Quote(page, sentence, [*rates[:2], times[0], *rates[2:], times[1]])
    waits = [f"{checkpoint['seconds_a_step_waits']:.2f}", f"{sum(checkpoint['bytes'].values()) / 1e6:.0f}"]
    yield Quote("README.md", "a step waits {} s for a checkpoint of {} MB", waits)


def _accuracies() -> Iterator[Quote]:
    page, settings = "docs/recipes.md", _read("bench-finetune-cpu")["finetune"]["settings"]
    settings = sorted(settings, key=lambda each: each["images"])
    scores = [{"the probe alone": each["probe"], **each["scores"]} for each in settings]
    quoted = next(each for each, setting in zip(scores, settings, strict=True) if setting["images"] == 2700)
    found = [f"{mean(quoted[name]):.2f}" for name in ("finetune", "the probe alone")]
    yield Quote("README.md", "127 updates: validation accuracy {}, linear probe {}", found)
    for name in dict.fromkeys(itertools.chain(*scores)):
        row = " | ".join("{}" if name in each else "-" for each in scores)
        cells = [f"{mean(each[name]):.3f}" for each in scores if name in each]
        yield Quote(page, f"\n| {_RECIPES.get(name, name)} | {row} |", cells)
    for optimizer, label in (("lamb", "LAMB, rate 0.01 (`scratch`)"), ("sgd", "SGD, rate 0.1")):
        runs = _read("scratch-runs-cpu")["runs"]
        found = [run["test/accuracy"] for run in runs if run["optimizer"] == optimizer]
        cells = [f"{value:.3f}" for value in (mean(found), min(found), max(found))]
        yield Quote(page, f"| {label} | {{}} | {{}} to {{}} |", cells)

    for optimizer, label in (("sgd", "SGD"), ("muon", "Muon")):
        runs = [run for run in _read("speedrun-runs-cpu")["runs"] if run["optimizer"] == optimizer]
        cells = [f"{run['lr']:g}" for run in runs] + [f"{run['val/accuracy']:.3f}" for run in runs]
        yield Quote(page, f"| {label} | {{}}, {{}}, {{}} | {{}}, {{}}, {{}} |", cells)


def _serving() -> Iterator[Quote]:
    page, found = "docs/deployment.md", _read("bench-serve-cpu")["serve"]
    torch, onnx = (f"{found[name]['requests_per_second']:.1f}" for name in ("torch", "onnx"))
    failed = max(found[name]["failed"] for name in ("torch", "onnx"))
    answered = [str(found["requests"] - failed), str(found["requests"])]
    sentence = "{} requests/s with onnxruntime, {} with torch, {} of {} answered"
    yield Quote("README.md", sentence, [onnx, torch, *answered])
    latency = [f"{found[name]['milliseconds'][share]:.0f}" for name in ("torch", "onnx") for share in ("p50", "p99")]
    sentence = "torch answered {} requests/s (median {} ms, 99 % within {} ms), onnxruntime {} ({} and {} ms)"
    yield Quote(page, sentence, [torch, *latency[:2], onnx, *latency[2:]])
    exports = _read("export-cpu")["exports"]
    stem, tuned = (next(found for name, found in exports.items() if part in name) for part in ("CIFAR", "lite0"))
    largest = [f"{stem['files'][name]['largest_difference']:.1e}" for name in ("model.onnx", "model.pt2")]
    yield Quote(page, "([figures](../benchmarks/results/export-cpu.json)) | {}, {} |", largest)
    small, whole = tuned["files"]["model-int8.onnx"], tuned["files"]["model.onnx"]
    sizes = [f"{file['bytes'] / 1e6:.1f}" for file in (small, whole)]
    accuracies = [f"{value:.4f}" for value in (small["accuracy"], tuned["accuracy"])]
    sentence = "has an accuracy of {}, the float model {}; {} classes are equal, in {} instead of {} MB"
    yield Quote(page, sentence, [*accuracies, f"{small['equal_classes']:,}", *sizes])


def _proofs() -> Iterator[Quote]:
    faults, report = _read("proof-faults-cpu"), _read("proof-report-cpu")
    (report,) = (found for name, found in report.items() if name.startswith("report of"))
    kills = [str(faults["kills"]["kills"])]
    yield Quote("README.md", "killed {} times at random moments", kills)
    yield Quote("docs/exactness.md", "`make proof` ({} kills,", kills)
    facts = [f"{report['bytes'] / 1e6:.1f}", f"{report['seconds']:.1f}"]
    yield Quote("docs/benchmarks.md", "({} MB) and its figures take {} s, imports included", facts)
    alert = faults["median step with an alert to a dead address, over one without"]["medians"]
    alert = [f"{alert[name]:.3f}" for name in ("refused", "silent", "none again")]
    took = "the median step took {} and {} times that of a run without alerts; a second run without took {} times"
    yield Quote("docs/tracking.md", took, alert)


def _many_ranks() -> Iterator[Quote]:
    page, faults = "docs/scaling.md", _read("proof-faults-cpu")
    few, many = (faults[f"beats of {ranks} ranks in one store"] for ranks in (512, 4096))
    reads = [
        f"{beats[f'{reader}_milliseconds']:.{digits}f}"
        for reader, digits in (("main", 1), ("first_of_block", 1), ("all_beats", 0))
        for beats in (few, many)
    ]
    sentence = "{} and {} ms for rank 0, {} and {} ms for the first rank of a block; all beats would take {} and {} ms"
    yield Quote(page, sentence, reads)
    few, many = (faults[f"heartbeats of {ranks} ranks"] for ranks in (64, 512))
    threads = [f"{each['main_milliseconds']:.1f}" for each in (few, many)]
    yield Quote(page, "{} and {} ms on rank 0 with 64 and 512 ranks", threads)
    stops = [f"{each['seconds_to_stop_all']:.1f}" for each in (few, many)]
    stopping = (
        "steps of 10 ms {} s from the request to the stop of the last one; with 512, all in one Python process, and "
    )
    yield Quote(page, stopping + "steps of 80 ms, {} s", stops)
    met = faults["rendezvous of 512 ranks"]
    met = [f"{met['look_milliseconds']:.2f}", f"{met['seconds_from_the_last_to_all']:.2f}"]
    yield Quote(page, "a look took {} ms with 512 ranks waiting as threads; {} s after the last one came", met)


def _read(name: str) -> dict[str, Any]:
    return read_json(FOLDER / f"{name}.json")


def main() -> None:
    """Rewrites the pages."""
    for quote in quotes():
        page = ROOT / quote.page
        before = page.read_text()
        if (after := quote.put_into(before)) != before:
            page.write_text(after)
            print(f"{quote.page}: {quote.sentence.strip().format(*quote.figures)}")


if __name__ == "__main__":
    main()
