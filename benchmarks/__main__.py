"""Runs the named benchmarks, or all, and writes one JSON file each."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path

from resnet_cifar.reporting import environment

NAMES = ("pipeline", "training", "startup", "checkpoints")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Each benchmark is a module with `measure(source) -> dict`; what it prints is what it returns."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--source", default="synthetic", help="the images, as in data.source")
    arguments = parser.parse_args()
    for name in arguments.names or NAMES:
        measured = import_module(f"benchmarks.{name}").measure(arguments.source)
        facts = environment.describe()
        facts.pop("command")  # it names folders of the machine
        kind = "gpu" if facts["gpus"] else "cpu"
        file = RESULTS / f"{name}-{kind}.json"
        file.write_text(
            json.dumps({**measured, "source": Path(arguments.source).name, "environment": facts}, indent=1) + "\n"
        )
        print(f"{name}: {json.dumps(measured, indent=1)}\n-> {file}")


if __name__ == "__main__":
    main()
