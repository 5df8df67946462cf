"""profile.py: the device's idle time, from a trace's events. The trace itself: tests/endtoend."""

from __future__ import annotations

import pytest

from resnet_cifar.training.profiler import device_waits


def kernel(start: float, duration: float, category: str = "kernel") -> dict:
    return {"ph": "X", "cat": category, "ts": start, "dur": duration}


@pytest.mark.parametrize(
    ("events", "share"),
    [
        ([kernel(0, 5), kernel(5, 5)], 0.0),
        ([kernel(8, 2), kernel(0, 2)], 0.6),
        ([kernel(0, 10), kernel(2, 1), kernel(9, 2, "gpu_memcpy")], 0.0),  # two streams at once
        ([kernel(0, 4), kernel(2, 4), kernel(9, 1, "gpu_memset")], 0.3),
        # The host's operators and spans of annotations are no work of the device.
        ([kernel(10, 1), kernel(13, 1), kernel(0, 50, "cpu_op"), kernel(10, 4, "gpu_user_annotation")], 0.5),
    ],
)
def test_what_no_kernel_and_no_copy_covers_is_waiting(events: list[dict], share: float) -> None:
    assert device_waits([*events, {"ph": "M", "name": "process_name"}]) == pytest.approx(share)


def test_without_a_device_nothing_waits() -> None:
    assert device_waits([kernel(0, 5, "cpu_op")]) is None
