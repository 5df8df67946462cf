"""Errors that are the user's to fix, and what an unknown name was probably meant to be."""

from __future__ import annotations

import difflib
import re
import sys
import unicodedata
from collections.abc import Sequence

_CONTROL = ("Cc", "Zl", "Zp")  # Unicode's categories of control characters, line and paragraph separators

_SHOWN = 40  # characters of a long name
FILE_NAME = 255  # bytes, on every common file system


class UserError(ValueError):
    """An error the user can fix, in one sentence: the field, its value and the fix. Shown without a traceback."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"error: {self}"]


class NodeError(UserError):
    """An error that other nodes may not have: the first process of each affected node prints it."""


def printable(text: str) -> str:
    """The text with escapes for line breaks, control characters and bytes of file names that are not UTF-8."""
    kinds = (*_CONTROL, "Cs")
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in kinds else char for char in text
    )


def check_name(what: str, name: str, longest: int = 0) -> None:
    """Raises UserError for the name of a class, run or source that reports, tables and trackers cannot show.

    `longest`: bytes of each part of a path; 0: no limit.
    """
    kinds, encoding = {unicodedata.category(char) for char in name}, sys.getfilesystemencoding()
    if "Cs" in kinds and encoding != "utf-8":
        raise UserError(f"{what} {name!r} is not {encoding}, the encoding of this locale: set PYTHONUTF8=1")
    if "Cs" in kinds:
        raise UserError(f"{what} {name!r} is not UTF-8: rename it")
    if kinds & {*_CONTROL}:
        raise UserError(f"{what} {name!r} contains a line break or control character: rename it")
    if longest and any(len(part.encode()) > longest for part in name.split("/")):
        raise UserError(f"{what} {name[:_SHOWN]!r}... is longer than the {longest} bytes of a file name: shorten it")


class RankError(UserError):
    """Another process failed, and this one stops with it.

    `is_told_here`: whether this process prints it. The process that failed shows its own error, which may be on another
    machine. `code`: this process's exit code, 2 if the other one failed with UserError.
    """

    def __init__(self, sentence: str, is_told_here: bool, code: int = 1) -> None:
        super().__init__(sentence)
        self.is_told_here, self.code = is_told_here, code


# Fields and flags of earlier versions.
RENAMED = {
    "model.norm_batch": "model.ghost_batch_size",
    "model.ema": "model.ema_decay",
    "model.checkpoint": "model.init_from",
    "model.head.widths": "model.head.hidden_dims",
    "data.name": "data.config_name",
    "data.stored_size": "data.decode_size",
    "data.overfit": "data.overfit_images",
    "data.validation": "data.validation_fraction",
    "augment.trivial": "augment.trivial_augment",
    "augment.erase": "augment.random_erasing",
    "augment.crop": "augment.crop_padding",
    "augment.mixup": "augment.mixup_alpha",
    "augment.cutmix": "augment.cutmix_alpha",
    "optimizer.clip": "optimizer.clip_grad_norm",
    "optimizer.head_lr": "optimizer.head_lr_multiplier",
    "phases.0.train": "phases.0.trainable",
    "phases.0.warmup": "phases.0.warmup_epochs",
    "phases.0.decay": "phases.0.schedule",
    "early_stopping.min_improvement": "early_stopping.min_delta",
    "evaluate.every": "evaluate.every_epochs",
    "checkpoint.keep": "checkpoint.keep_last",
    "track.to": "track.trackers",
    "fetch": "download-only",
    "fresh": "restart",
    "extend": "extend-epochs",
    "profile": "profile-steps",
    "check": "verify-export",
}


def renamed(word: str, known: Sequence[str]) -> str:
    """The new name of a field or flag of an earlier version, if it is among the `known` ones; else nothing."""
    phase = re.match(r"phases\.\d+", word)
    name = RENAMED.get(re.sub(r"^phases\.\d+", "phases.0", word), "")
    return "" if name not in known else name.replace("phases.0", phase[0]) if phase else name


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` or nothing, for the end of a sentence."""
    phase = re.match(r"phases\.\d+", word)
    # `warmup_epochs` is also found by a misspelled `warmup`.
    prefixes = {name[: match.start()]: name for name in reversed(known) for match in re.finditer("_", name)}
    forms = prefixes | {name: name for name in known}  # a full name is never taken for the beginning of a longer one
    close = difflib.get_close_matches(re.sub(r"^phases\.\d+", "phases.0", word), forms, n=1, cutoff=0.5)
    if not close:
        return ""
    return f"; did you mean {forms[close[0]].replace('phases.0', phase[0]) if phase else forms[close[0]]}?"
