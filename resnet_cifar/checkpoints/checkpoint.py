"""Checkpoints: a directory of safetensors and state.json, without pickles, complete or absent.

    step-00000100/  model.safetensors  optimizer.safetensors  state.json  (with model.ema_decay: average.safetensors)

A checkpoint is written beside its final name, flushed, checksummed and renamed, in the background while training
continues. Reading verifies it; if the latest is damaged, the previous one is used, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from resnet_cifar.atomic_io import fsync_path, sha256
from resnet_cifar.checkpoints.snapshot import Snapshot
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.rerun import how_to_resume

FORMAT = 4
_WEIGHTS, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_AVERAGE = "average.safetensors"
# safetensors' names of dtypes, in the order in which it writes them.
_DTYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_NAME = re.compile(r"step-(\d{8,})")


def name(step: int) -> str:
    """The directory name of the checkpoint after `step` updates."""
    return f"step-{step:08d}"


class Damage(UserError):
    """A checkpoint differs from what was written."""


def write(
    folder: Path, step: int, snapshot: Snapshot, state: dict[str, Any], before: Callable[[], None] = lambda: None
) -> Path:
    """Writes the checkpoint after `step` updates; `state` is plain JSON. Raises OSError, having changed nothing.

    At any moment the folder holds this checkpoint or all previous ones (`recover` cleans up after a kill). `before` is
    called before the final rename, and may refuse by raising.
    """
    final = folder / name(step)
    aside = folder / f"{final.name}.writing-{secrets.token_hex(4)}"  # an earlier attempt may still be writing its own
    aside.mkdir(parents=True)
    try:
        checksums, snapshot = {}, snapshot.on_host()
        files = {_WEIGHTS: snapshot.weights, _OPTIMIZER: snapshot.optimizer}
        if snapshot.average is not None:
            files[_AVERAGE] = snapshot.average
        for file, tensors in files.items():
            checksums[file] = _write(aside / file, _contents(tensors))
        whole = {"format": FORMAT, "step": step, "optimizer": snapshot.scalars, "checksums": checksums, **state}
        whole["checksum"] = _state_checksum(whole)
        _write(aside / _STATE, [(json.dumps(whole, indent=1) + "\n").encode()])
        fsync_path(aside)
        before()
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # frees a full disk
        raise
    replaced = folder / f"{final.name}.replaced"
    if final.exists():  # saved by an interrupt during the evaluation of this step
        final.rename(replaced)
    aside.rename(final)
    fsync_path(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def steps(folder: Path) -> list[int]:
    """The steps of all complete checkpoints, ascending."""
    names = (_NAME.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in names if match)


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Removes all but the latest `keep`, the best, and those that were the best when a kept one was written."""
    existing, kept = steps(folder), {best}
    for step in existing[-keep:]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a damaged state.json
            kept.add(json.loads((folder / name(step) / _STATE).read_text())["best"]["step"])
    for step in existing[:-keep]:
        if step not in kept:
            shutil.rmtree(folder / name(step), ignore_errors=True)  # tried again after the next checkpoint


def recover(folder: Path) -> None:
    """Cleans up after a kill: restores a checkpoint that was being replaced, and removes incomplete ones."""
    for replaced in folder.glob("step-*.replaced"):
        final = replaced.with_suffix("")
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(final)
    for aside in folder.glob("step-*.writing-*"):
        shutil.rmtree(aside, ignore_errors=True)


def newest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The latest undamaged checkpoint; None if there never was one.

    A damaged one is reported to `warn` and renamed to NAME.damaged. Raises UserError if none is left, or if one cannot
    be read at all or has another format.
    """
    recover(folder)
    damaged = list(folder.glob("step-*.damaged"))
    for step in reversed(steps(folder)):
        checkpoint = folder / name(step)
        try:
            read_state(checkpoint)
        except Damage as damage:
            aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            damaged.append(checkpoint.rename(aside))
            warn(f"{damage}; it is now {aside.name}")
        else:
            return checkpoint
    if damaged:
        raise UserError(
            f"every checkpoint in {folder} is damaged ({', '.join(sorted(path.name for path in damaged))}): restore "
            "one from a copy, or start over with --restart"
        )
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json, after verifying every file. Raises Damage, naming the file, and UserError for another format."""
    try:
        state = json.loads((checkpoint / _STATE).read_text())
        if state["format"] != FORMAT:
            raise UserError(
                f"{checkpoint} has format {state['format']}, and this version reads {FORMAT}: use the version that "
                "wrote it, or train again with --restart"
            )
        checksums = state["checksums"]
        files = [_WEIGHTS, _OPTIMIZER, *([_AVERAGE] if _AVERAGE in checksums else [])]
        changed = [file for file in files if sha256(checkpoint / file) != checksums[file]]
        if state.pop("checksum") != _state_checksum(state):
            changed.append(_STATE)
        names = {path.name for path in checkpoint.iterdir() if not path.name.startswith(".")}  # .nfs..., .DS_Store
        unexpected = names - {*files, _STATE}
        if not changed:
            for file in files:
                with safetensors.safe_open(checkpoint / file, "pt") as tensors:  # checks the header against the size
                    tensors.keys()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, KeyError, TypeError, AttributeError) as error:
        raise Damage(f"the checkpoint {checkpoint} is damaged ({type(error).__name__}: {error})") from None
    except (SafetensorError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Damage(f"the checkpoint {checkpoint} is damaged ({error})") from None
    except OSError as error:
        raise UserError(f"the checkpoint {checkpoint} cannot be read ({error.strerror}): try again") from None
    if changed:
        raise Damage(f"{checkpoint / changed[0]} has changed since it was written")
    if unexpected:
        raise UserError(
            f"{checkpoint / min(unexpected)} is not a checkpoint's file (nothing in one is a pickle): remove it"
        )
    return state


def read(checkpoint: Path) -> tuple[Snapshot, dict[str, Any]]:
    """The snapshot and the state of a checkpoint, verified. Raises UserError."""
    state = read_state(checkpoint)
    files = (file for file in (_WEIGHTS, _OPTIMIZER, _AVERAGE) if file in state["checksums"])
    trained, optimizer, *average = (safetensors.torch.load_file(checkpoint / file) for file in files)
    return Snapshot(trained, optimizer, state["optimizer"], *average), state


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights and buffers to evaluate (the moving average if there is one), by timm's names, on the CPU."""
    averaged = checkpoint / _AVERAGE
    return safetensors.torch.load_file(averaged if averaged.is_file() else checkpoint / _WEIGHTS)


class Writer:
    """Writes one checkpoint at a time in a background thread; `before` as in `write`, and before others are removed."""

    def __init__(self, folder: Path, keep: int, before: Callable[[], None]) -> None:
        self.folder, self._keep, self._before = folder, keep, before
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._snapshot: Snapshot | None = None  # until the thread has it on the host

    def write(self, step: int, snapshot: Snapshot, state: dict[str, Any], best: int | None) -> None:
        """Starts writing, after waiting for the previous checkpoint. Raises its error, if any."""
        self.wait()
        self._snapshot = snapshot
        self._thread = threading.Thread(target=self._run, args=(step, state, best), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk. Raises UserError if it could not be written."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises an error from the background thread, without waiting."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, step: int, state: dict[str, Any], best: int | None) -> None:
        last = 0
        try:
            # Drops the last reference to copies on the GPU before the disk is written.
            snapshot, self._snapshot = self._snapshot.on_host(), None
            last = max(steps(self.folder), default=0)
            write(self.folder, step, snapshot, state, self._before)
            self._before()
            prune(self.folder, self._keep, best)
        except OSError as error:
            failure = UserError(
                f"the checkpoint of step {step} could not be written to {self.folder} ({error.strerror}): make room, "
                f"and {how_to_resume()} to resume from step {last}"
            )
            with contextlib.suppress(OSError):
                try:
                    self._before()  # a later attempt removes what is incomplete, which is an OSError here
                except UserError as taken_over:
                    failure = taken_over
            self._error = failure
        except Exception as error:  # raised by `check`
            self._error = error


def _contents(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of `safetensors.torch.save`, one tensor at a time: that function holds two more copies of all of them.

    Tensors are on the host and contiguous. The format: the header's length, the header in JSON, and the tensors.
    """
    order = sorted(tensors, key=lambda name: (list(_DTYPES).index(tensors[name].dtype), name))
    header, end = {}, 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        kind = _DTYPES[tensors[name].dtype]
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield tensors[name].reshape(-1).view(torch.uint8).numpy().data


def _write(file: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Writes and flushes the file; returns the SHA-256 of the intended content, in hex."""
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for part in parts:
            digest.update(part)
            stream.write(part)
        stream.flush()
        fsync_path(file)
    return digest.hexdigest()


def _state_checksum(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
