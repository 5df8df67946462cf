"""Images in device memory, or memory-mapped from a file on local disk. Both give the same batches bit for bit.

Memory-mapped images are prefetched: a thread gathers the rows, into pinned memory for a GPU, and a separate stream
copies them to the device while it computes.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

_AHEAD = 2  # batches prefetched
_SHARE = 0.5  # of the free memory that images may use: weights and activations need the rest
GIB = 2**30

ALL = slice(None)


class MmapImages:
    """Rows of uint8 .npy files [m, height, width, 3], read by a thread and sent to `device`.

    `parts`: files and the rows (int64 [n]) of each, which are counted through: the first file's are 0 to n - 1.
    `seconds_waited`: total time that callers have waited for the thread.
    """

    def __init__(self, parts: Sequence[tuple[Path, np.ndarray]], device: torch.device) -> None:
        self._files, self._device = [np.load(file, mmap_mode="r") for file, _ in parts], device
        self._file_of = np.repeat(np.arange(len(parts)), [len(rows) for _, rows in parts])
        self._rows = np.concatenate([rows for _, rows in parts])
        self.seconds_waited = 0.0
        self.shape = (len(self._rows), *self._files[0].shape[1:])
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def prefetch(self, rows: np.ndarray) -> Callable[[slice], Tensor]:
        """Starts reading images; the returned function waits until they are read, but not for the device."""
        return _PendingImages(self, self._reader.submit(self._read, rows))

    def _read(self, rows: np.ndarray) -> tuple[Tensor, torch.cuda.Event | None]:
        images = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8, pin_memory=self._stream is not None)
        if len(self._files) == 1:  # "raise" would go through a copy
            np.take(self._files[0], self._rows[rows], axis=0, out=images.numpy(), mode="clip")
        else:
            for number, file in enumerate(self._files):
                here = self._file_of[rows] == number
                images.numpy()[here] = file[self._rows[rows[here]]]
        if self._stream is None:
            return images, None
        with torch.cuda.stream(self._stream):
            # torch does not reuse the pinned memory before the copy is done.
            there = images.to(self._device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return there, arrived


class _PendingImages:
    """Images that a thread reads and a stream copies."""

    def __init__(self, source: MmapImages, reading: Future[tuple[Tensor, torch.cuda.Event | None]]) -> None:
        self._source, self._reading = source, reading

    def __call__(self, part: slice) -> Tensor:
        if not self._reading.done():
            began = time.perf_counter()
            wait([self._reading])
            self._source.seconds_waited += time.perf_counter() - began
        images, arrived = self._reading.result()
        if arrived is not None:
            computing = torch.cuda.current_stream(images.device)
            computing.wait_event(arrived)  # the device waits, not the host
            images.record_stream(
                computing
            )  # its memory belongs to the copying stream, which must not reuse it too early
        return images[part]


@dataclass(frozen=True)
class PendingBatch:
    """Images and labels being read: `images(part)`, uint8 [n, height, width, 3], and `labels(part)`, int64 [n]."""

    images: Callable[[slice], Tensor]
    labels: Callable[[slice], Tensor]


@dataclass(frozen=True)
class ImageDataset:
    """Images, uint8 [n, height, width, 3], on a device or mapped, and their labels, int64 [n], on the device.

    `indices` (int64 [n], on the host) holds their positions in the split of the source, those in a second split counted
    on from the first; `file_names` their files, relative to the source, or "" if unknown; empty if all are.
    """

    images: Tensor | MmapImages
    labels: Tensor
    indices: np.ndarray
    file_names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def file_name(self, row: int) -> str:
        """The file of an image, or "" if unknown."""
        return self.file_names[row] if self.file_names else ""

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.labels.device

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the stored images."""
        return tuple(self.images.shape[1:3])

    @property
    def resident_bytes(self) -> int:
        """Bytes of the images in device memory."""
        return self.images.nbytes if isinstance(self.images, Tensor) else 0

    @property
    def seconds_waited(self) -> float:
        """Total time that the host has waited for images to be read from disk."""
        return self.images.seconds_waited if isinstance(self.images, MmapImages) else 0.0

    def prefetch(self, rows: np.ndarray) -> PendingBatch:
        """Starts reading the images `rows` (int64 [k], on the host)."""
        here = to_device(rows, self.device)
        resident = self.images
        images = resident.prefetch(rows) if isinstance(resident, MmapImages) else lambda part: resident[here[part]]
        return PendingBatch(images, lambda part: self.labels[here[part]])

    def gather(self, rows: np.ndarray) -> Tensor:
        """The images `rows`, uint8 [k, height, width, 3] on the device."""
        return self.prefetch(rows).images(ALL)

    def read(self, batches: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """The images of each batch of rows, with the next ones prefetched."""
        pending: deque[PendingBatch] = deque()
        for rows in batches:
            pending.append(self.prefetch(rows))
            if len(pending) > _AHEAD:
                yield pending.popleft().images(ALL)
        while pending:
            yield pending.popleft().images(ALL)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copies the array to the device, without waiting."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def free_memory(device: torch.device) -> int:
    """Free bytes of a GPU, or a process's share of this machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def choose_storage(storage: str, nbytes: int, device: torch.device) -> tuple[str, str]:
    """(`device` or `host`, a description with the reason) for images of `nbytes` and the recipe's `data.storage`."""
    free, memory = free_memory(device), "the GPU's memory" if device.type == "cuda" else "memory"
    place = storage
    if storage == "auto":
        place = "device" if nbytes <= _SHARE * free else "host"
    where = f"in {memory}" if place == "device" else "on local disk, prefetched"
    limit = "at most" if nbytes <= _SHARE * free else "more than"
    why = "data.storage" if storage == place else f"{limit} half of the {free / GIB:.1f} GiB free in {memory}"
    return place, f"{nbytes / GIB:.2f} GiB {where} ({why})"
