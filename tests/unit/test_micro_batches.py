"""Micro-batching: what has arrived is classified together, and nothing waits for more."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from resnet_cifar.evaluation.micro_batches import MicroBatches


class Blocked:
    """Doubles numbers; each batch says that it has begun and waits to be let on."""

    def __init__(self) -> None:
        self.begun, self.free = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.begun.release()
        self.free.acquire()
        return [2 * number for number in numbers]


def test_a_lone_image_is_classified_at_once_and_the_next_ones_together() -> None:
    classify, sizes = Blocked(), []
    with MicroBatches(classify, 4, sizes.append) as batches:
        first = batches.submit(1)
        classify.begun.acquire()  # a batch of one, though there is room for four
        later = [batches.submit(number) for number in range(2, 8)]
        assert batches.waiting == 6
        classify.free.release(3)
        assert [future.result() for future in (first, *later)] == [2, 4, 6, 8, 10, 12, 14]
    assert sizes == [1, 4, 2]


def test_the_end_of_the_context_waits_for_what_was_submitted() -> None:
    classify, sizes = Blocked(), []
    classify.free.release(9)
    with MicroBatches(classify, 2, sizes.append) as batches:
        futures = [batches.submit(number) for number in range(5)]
    assert [future.result(timeout=0) for future in futures] == [0, 2, 4, 6, 8]
    assert sum(sizes) == 5


def test_a_failure_belongs_to_its_batch_and_the_thread_survives_it() -> None:
    def classify(numbers: Sequence[int]) -> list[float]:
        return [1 / number for number in numbers]

    with MicroBatches(classify, 1, lambda size: None) as batches:
        wrong, right = batches.submit(0), batches.submit(4)
        with pytest.raises(ZeroDivisionError):
            wrong.result()
        assert right.result() == 0.25


def test_what_nobody_waits_for_is_not_classified() -> None:
    classify, sizes = Blocked(), []
    with MicroBatches(classify, 4, sizes.append) as batches:
        batches.submit(1)
        classify.begun.acquire()
        canceled, kept = batches.submit(2), batches.submit(3)
        assert canceled.cancel()
        classify.free.release(2)
        assert kept.result() == 6
    assert sizes == [1, 1]
