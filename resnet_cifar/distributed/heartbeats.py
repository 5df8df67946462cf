"""The heartbeats of all N ranks, in rank 0's store, where nobody has to read more than about 2 sqrt(N) of them.

Each rank posts its own. Consecutive ranks form blocks, about as many as a block has ranks; the first rank of a block
reads the block's beats and posts them as one, and rank 0 reads those. Where the first rank has ended or hangs, rank 0
reads that block's beats itself. Blocks are not machines: launchers do not tell every process which ranks share one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist

# Of one or several ranks. numbers: those of the beats, by rank; begun: the fewest, the most and the sum of the units of
# work that the ranks have begun; step: the latest; calls: the different latest collectives; ended: ranks; failed: rank,
# step and sentence. The others are below.
Beat = dict[str, Any]

_ALL, _ANY, _FIRST = ("frozen",), ("training", "stopped", "broken", "differs"), ("request", "failed")
_LATE = 1.0  # seconds, two beats, after which a block's beat that has not changed is not relied on


class Heartbeats:
    """One process's part, for use by one thread. `own`: its first beat."""

    def __init__(self, store: dist.Store, rank: int, size: int, own: Beat) -> None:
        self._store, self._rank = store, rank
        side = math.isqrt(size - 1) + 1
        self._blocks = [range(first, min(first + side, size)) for first in range(0, size, side)]
        self._block = self._blocks[rank // side]
        self._watched = range(size) if rank == 0 else self._block  # by this rank, if it is the first of its block
        self._have_begun = False
        self._changed = dict.fromkeys(self._blocks[1:], (b"", 0.0))  # the blocks' beats, and when they last changed
        self._heard = [(-1, 0.0)] * size  # on rank 0: the number of each rank's latest beat, and when it was read
        if rank == self._block[0]:
            store.set(f"block {rank}", "")
        store.set(f"beat {rank}", json.dumps(own))  # last: then all that is read of this rank is there

    def post(self, own: Beat) -> None:
        """Tells this rank's beat and, if it is the first of its block, that of the block."""
        self._store.set(f"beat {self._rank}", json.dumps(own))
        if self._rank == self._block[0] != 0 and self._all_have_begun():
            self._store.set(f"block {self._rank}", json.dumps(merge(self.read(self._block))))

    def gather(self, now: float) -> Beat | None:
        """That of all ranks, on rank 0; None until all have posted one. `now`: in seconds, of a clock."""
        if not self._all_have_begun():
            return None
        beats = self.read(self._blocks[0])
        texts = self._get([f"block {block[0]}" for block in self._changed])
        for block, text in zip(self._changed, texts, strict=True):
            if text != self._changed[block][0]:
                self._changed[block] = text, now
            is_late = now - self._changed[block][1] > _LATE
            beats += self.read(block) if is_late or not text else [json.loads(text)]
        world = merge(beats)
        for rank, number in enumerate(world["numbers"]):
            if number > self._heard[rank][0]:
                self._heard[rank] = number, now
        return world

    def read(self, ranks: Iterable[int]) -> list[Beat]:
        """The latest beat of each of the ranks."""
        return [json.loads(text) for text in self._get([f"beat {rank}" for rank in ranks])]

    def silent(self, now: float, patience: float) -> list[int]:
        """The ranks of which `gather` has read no new beat for `patience` seconds."""
        return [rank for rank, (_, heard) in enumerate(self._heard) if now - heard > patience]

    def excuse(self, seconds: float) -> None:
        """Nobody counts as silent for these seconds, in which this process did not run itself."""
        self._heard = [(number, heard + seconds) for number, heard in self._heard]

    def _all_have_begun(self) -> bool:
        self._have_begun = self._have_begun or self._store.check([f"beat {rank}" for rank in self._watched])
        return self._have_begun

    def _get(self, keys: list[str]) -> list[bytes]:
        return self._store.multi_get(keys) if keys else []


def merge(beats: Sequence[Beat]) -> Beat:
    """Several beats, in the order of their ranks, as one: the same whether they are of ranks or of blocks of ranks."""
    calls = dict.fromkeys(tuple(call) for beat in beats for call in beat["calls"])
    fewest, most, total = zip(*(beat["begun"] for beat in beats), strict=True)
    return {
        "numbers": [number for beat in beats for number in beat["numbers"]],
        "begun": [min(fewest), max(most), sum(total)],
        "step": max(beat["step"] for beat in beats),
        "calls": list(map(list, calls)),
        "ended": [rank for beat in beats for rank in beat["ended"]],
        **{name: all(beat[name] for beat in beats) for name in _ALL},
        **{name: any(beat[name] for beat in beats) for name in _ANY},
        **{name: next((beat[name] for beat in beats if beat[name]), None) for name in _FIRST},
    }


def disagree(beat: Beat) -> bool:
    """Whether ranks have entered different collectives under one number, as far as the beat tells."""
    return len({call[0] for call in beat["calls"]}) < len(beat["calls"])
