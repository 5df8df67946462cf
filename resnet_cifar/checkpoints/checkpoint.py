"""Checkpoints: a folder of safetensors and state.json, pickle-free, whole or not there.

    step-00000100/  model.safetensors  optimizer.safetensors  state.json  (with model.ema_decay: average.safetensors)

It is written beside its final name, flushed, checksummed and renamed, in the background while training goes on. A
reader verifies it, and where the newest is damaged takes the one before and says so.
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

FORMAT = 2
_WEIGHTS, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_AVERAGE = "average.safetensors"
# safetensors' names of types, in the order in which it writes them.
_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_NAME = re.compile(r"step-(\d{8,})")


def name(step: int) -> str:
    """The folder of the checkpoint after `step` updates."""
    return f"step-{step:08d}"


class Damage(UserError):
    """A checkpoint is not what was written."""


def write(
    folder: Path,
    step: int,
    snapshot: Snapshot,
    state: dict[str, Any],
    before: Callable[[], None] = lambda: None,
) -> Path:
    """Writes the checkpoint after `step` updates; `state` is plain JSON. Raises OSError, and then nothing has changed.

    At any instant the folder holds this checkpoint or all that were there before (`recover` tidies up after a kill).
    `before` is called when all is written, before it takes its name, and may refuse by raising.
    """
    final = folder / name(step)
    aside = folder / f"{final.name}.writing-{secrets.token_hex(4)}"  # an owner of before may still be writing its own
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
        shutil.rmtree(aside, ignore_errors=True)  # it may be what fills the disk
        raise
    replaced = folder / f"{final.name}.replaced"
    if final.exists():  # an interrupt in an evaluation saved the same step, without its score
        final.rename(replaced)
    aside.rename(final)
    fsync_path(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def steps(folder: Path) -> list[int]:
    """The steps of all checkpoints that were written whole, rising."""
    names = (_NAME.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in names if match)


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Removes all but the newest `keep`, the best, and what was the best when one of those was written."""
    there = steps(folder)
    spared = {best}
    for step in there[-keep:]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one says nothing
            spared.add(json.loads((folder / name(step) / _STATE).read_text())["best"]["step"])
    for step in there[:-keep]:
        if step not in spared:
            shutil.rmtree(folder / name(step), ignore_errors=True)  # tried again after the next one


def recover(folder: Path) -> None:
    """Tidies up after a kill: what was being replaced comes back, what was half written goes."""
    for replaced in folder.glob("step-*.replaced"):
        final = replaced.with_suffix("")
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(final)
    for aside in folder.glob("step-*.writing-*"):
        shutil.rmtree(aside, ignore_errors=True)


def newest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; None where there never was one.

    A damaged one is named to `warn` and put aside as NAME.damaged. Raises UserError where none is left, and where one
    cannot be read at all or has another format, which putting it aside would not mend.
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
            f"no checkpoint in {folder} is whole ({', '.join(sorted(path.name for path in damaged))}): bring one back "
            "from a copy, or start over with --restart"
        )
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json, after every file was verified. Raises Damage, naming the file, and UserError for another format."""
    try:
        state = json.loads((checkpoint / _STATE).read_text())
        if state["format"] != FORMAT:
            raise UserError(f"{checkpoint} has format {state['format']}, and this version reads {FORMAT}")
        checksums = state["checksums"]
        files = [_WEIGHTS, _OPTIMIZER, *([_AVERAGE] if _AVERAGE in checksums else [])]
        changed = [file for file in files if sha256(checkpoint / file) != checksums[file]]
        if state.pop("checksum") != _state_checksum(state):
            changed.append(_STATE)
        names = {path.name for path in checkpoint.iterdir() if not path.name.startswith(".")}  # .nfs..., .DS_Store
        foreign = names - {*files, _STATE}
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
    if foreign:
        raise UserError(
            f"{checkpoint / min(foreign)} is not a checkpoint's file (nothing in one is a pickle): remove it"
        )
    return state


def read(checkpoint: Path) -> tuple[Snapshot, dict[str, Any]]:
    """(what was saved, its state) of a verified checkpoint. Raises UserError."""
    state = read_state(checkpoint)
    trained, optimizer = (safetensors.torch.load_file(checkpoint / file) for file in (_WEIGHTS, _OPTIMIZER))
    averaged = weights(checkpoint) if _AVERAGE in state["checksums"] else None
    return Snapshot(trained, optimizer, state["optimizer"], averaged), state


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights and buffers that are scored (the moving average where there is one), by timm's names, on the CPU."""
    averaged = checkpoint / _AVERAGE
    return safetensors.torch.load_file(averaged if averaged.is_file() else checkpoint / _WEIGHTS)


class Writer:
    """Writes one checkpoint at a time in a thread of its own; `before` as in `write`, and before others are removed."""

    def __init__(self, folder: Path, keep: int, before: Callable[[], None]) -> None:
        self.folder, self._keep, self._before = folder, keep, before
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._snapshot: Snapshot | None = None  # until the thread has it on the host

    def write(self, step: int, snapshot: Snapshot, state: dict[str, Any], best: int | None) -> None:
        """Begins to write; waits for the checkpoint before, if that is not done. Raises what that one raised."""
        self.wait()
        self._snapshot = snapshot
        self._thread = threading.Thread(target=self._run, args=(step, state, best), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk. Raises UserError where it could not be written."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises what went wrong in the background, without waiting."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, step: int, state: dict[str, Any], best: int | None) -> None:
        last = 0
        try:
            # The last reference to copies on a GPU goes here, so that they do not stay there while the disk is written.
            snapshot, self._snapshot = self._snapshot.on_host(), None
            last = max(steps(self.folder), default=0)
            write(self.folder, step, snapshot, state, self._before)
            self._before()
            prune(self.folder, self._keep, best)
        except OSError as error:
            try:
                self._before()  # a later owner tidies up what it finds half written
            except UserError as taken_over:
                self._error = taken_over
                return
            except OSError:
                pass  # the folder is the trouble, and that is said below
            self._error = UserError(
                f"the checkpoint of step {step} could not be written to {self.folder} ({error.strerror}): make room, "
                f"and the same command goes on from step {last}"
            )
        except Exception as error:  # raised again where the run waits for this thread
            self._error = error


def _contents(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """What `safetensors.torch.save` returns, a tensor at a time: that function holds two further copies of them all.

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
    """Writes the file and flushes it; returns the SHA-256 of what should be in it, in hex."""
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
