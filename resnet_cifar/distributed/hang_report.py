"""What is known of every rank when a run hangs, and the sentence that follows: which rank did not enter what."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from resnet_cifar.distributed.collective_log import NO_CALL, Call

_MOST_RANKS = 4  # that a sentence names


@dataclass(frozen=True)
class RankReport:
    """One rank when the run hangs, by itself or, if not `responds`, by other processes of its machine.

    `calls`: its latest collectives, oldest first; `waiting`: whether it may be waiting in the last one; `place`: where
    its main thread is; `state`: of its process, as psutil names it, or `ended`; "" for what nobody could see.
    `is_current`: whether `calls` are known to be complete, and not those of its last heartbeat.
    """

    calls: list[Call]
    waiting: bool
    place: str = ""
    state: str = ""
    responds: bool = True
    is_current: bool = True

    @property
    def latest(self) -> Call:
        """The last collective that it entered."""
        return self.calls[-1] if self.calls else NO_CALL

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended, or nobody could see that it has not."""
        return self.state in ("", "ended")

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> RankReport:
        """What `to_json` returned."""
        return RankReport(**{**values, "calls": [Call(*call) for call in values["calls"]]})


def explain(reports: Mapping[int, RankReport]) -> tuple[list[int], str]:
    """(the ranks that hold up the others, the sentence that says what they did not enter and where they are)."""
    return find_mismatch(reports) or _absence(reports) or _lag(reports) or _standstill(reports)


def _absence(reports: Mapping[int, RankReport]) -> tuple[list[int], str] | None:
    """Ranks that do not respond and hold up the others; None if there are none."""
    absent = [rank for rank, report in reports.items() if not report.responds]
    calls = [report.latest for report in reports.values() if report.responds]
    if not absent or not calls:
        return None
    held_up = min(calls)
    if unknown := [rank for rank in absent if not reports[rank].is_current]:
        # It may have entered more since its last heartbeat.
        verb = "does" if len(unknown) == 1 else "do"
        return unknown, f"{_names(unknown)} {verb} not take part in {held_up}; {_where(unknown, reports)}"
    inside = [rank for rank in absent if reports[rank].latest == held_up == max(calls)]
    if inside:
        return inside, f"{_names(inside)} entered {held_up} and never left it; {_where(inside, reports)}"
    return None


def _lag(reports: Mapping[int, RankReport]) -> tuple[list[int], str] | None:
    """Ranks that have entered fewer collectives than others; None if there are none."""
    calls = {rank: report.latest for rank, report in reports.items()}
    fewest, most = min(calls.values()), max(calls.values())
    if fewest.number == most.number:
        return None
    behind = [rank for rank, call in calls.items() if call.number == fewest.number]
    known = {call.number: call for report in reports.values() for call in report.calls}
    missed = known.get(fewest.number + 1, most)
    return behind, f"{_names(behind)} never entered {missed}; {_where(behind, reports)}"


def _standstill(reports: Mapping[int, RankReport]) -> tuple[list[int], str]:
    """All ranks have entered the same collectives."""
    latest = next(iter(reports.values())).latest
    busy = [rank for rank, report in reports.items() if not report.waiting]
    if not busy:
        return sorted(reports), f"all ranks entered {latest}, and it never ended: a device or the network hangs"
    if len(busy) == len(reports):
        return busy, f"no rank entered another collective after {latest}; {_where(busy, reports)}"
    verb = "holds" if len(busy) == 1 else "hold"
    return busy, f"{_names(busy)} {verb} up {latest}, in which the others wait; {_where(busy, reports)}"


def find_mismatch(reports: Mapping[int, RankReport]) -> tuple[list[int], str] | None:
    """The ranks whose call differs from the others' of the same number, and the sentence; None if all agree."""
    by_number: dict[int, dict[Call, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, report in sorted(reports.items()):
        for call in report.calls:
            by_number[call.number][call].append(rank)
    for number in sorted(by_number):
        if len(groups := by_number[number]) > 1:
            # The fewest ranks differ; among equals, those whose call never followed their previous one before, or those
            # that are ahead, since they have left something out.
            def rareness(call: Call, groups: dict[Call, list[int]] = groups) -> tuple[int, bool, int]:
                return len(groups[call]), _has_followed(call, reports[groups[call][0]]), -call.unit

            order = sorted(groups, key=rareness)
            strays = [rank for call in order[:-1] for rank in groups[call]]
            parts = [f"{_names(groups[call])} entered {call}" for call in order[:-1]]
            others = "the others" if len(groups[order[-1]]) > 1 else _names(groups[order[-1]])
            return strays, f"{', '.join(parts)}, {others} {order[-1]}"
    return None


def _has_followed(call: Call, report: RankReport) -> bool:
    """Whether, earlier on this rank, a call like this one followed one like its predecessor, in whatever step."""
    earlier = [_alike(each) for each in report.calls if each.number < call.number]
    return bool(earlier) and (earlier[-1], _alike(call)) in pairwise(earlier)


def _alike(call: Call) -> tuple[str, str, str]:
    return call.kind, call.phase.rstrip("0123456789"), call.place


def _names(ranks: list[int]) -> str:
    """`rank 1`, `ranks 1 and 3`, `ranks 1, 3, 5 and 9 others`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = [str(rank) for rank in ranks[:_MOST_RANKS]]
    last = f"{len(ranks) - len(shown)} others" if len(ranks) > len(shown) else shown.pop()
    return f"ranks {', '.join(shown)} and {last}"


def _where(ranks: list[int], reports: Mapping[int, RankReport]) -> str:
    """`it is in data/loader.py:88`, for one or several ranks that are in one or several places."""
    facts = Counter(_fact(reports[rank]) for rank in ranks)  # in order of appearance
    if len(facts) == 1:
        fact = next(iter(facts))
        return f"it {fact}" if len(ranks) == 1 else f"each {fact}"
    said = [f"rank {rank} {_fact(reports[rank])}" for rank in ranks[:_MOST_RANKS]]
    return ", ".join(said)


def _fact(report: RankReport) -> str:
    place = f"is in {report.place}" if report.place else ""
    if report.state == "disk-sleep":
        return f"{place or 'sleeps'}, where a disk or file system does not answer (state D)"
    if report.responds:
        return place
    if report.state in ("stopped", "tracing-stop"):
        return "is a stopped process (state T)"
    if report.state == "ended":
        return "has ended"
    if report.state:
        return f"runs but does not respond{f', and {place}' if place else ''}"
    return "does not respond, and no other process of its machine saw it"
