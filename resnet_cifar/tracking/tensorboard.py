"""TensorBoard: event files in RUN/tensorboard."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from resnet_cifar import wandb_env
from resnet_cifar.config.diff import to_dict
from resnet_cifar.tracking.base import TrackedRun, Tracker


class TensorBoardTracker(Tracker):
    """Every attempt rewrites its event files from metrics.jsonl: rows of an earlier attempt would be drawn twice."""

    package = "tensorboard"

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.path / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # purge_step makes an open TensorBoard discard what it has read.
        self._writer = SummaryWriter(str(folder), purge_step=0)
        texts = {"recipe": to_dict(run.recipe), "environment": run.environment, **wandb_env.group_and_tags()}
        for name, values in texts.items():
            text = values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False)
            self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()))  # Markdown's code
        self.commands = (("curves", f"tensorboard --logdir {shlex.quote(str(folder))}"),)

    def log(self, row: dict[str, Any]) -> None:
        """Logs a row of metrics.jsonl and flushes it to disk."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        """Logs numbers and figures at the last step; TensorBoard cannot store `files`."""
        import numpy as np
        from PIL import Image

        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        for name, file in figures.items():
            self._writer.add_image(name, np.asarray(Image.open(file).convert("RGB")), step, dataformats="HWC")

    def finish(self, state: str) -> None:
        """Closes the file."""
        self._writer.close()
