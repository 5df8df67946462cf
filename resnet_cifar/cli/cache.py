"""`resnet-cifar cache [--clear ENTRY|all] [--older-than DAYS]`: lists and clears what was decoded and downloaded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnet_cifar.cli.parser import parse
from resnet_cifar.config.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from resnet_cifar.data.cache import Entry

_USAGE = "resnet-cifar cache [--clear ENTRY|all] [--older-than DAYS]"
_DAY = 24 * 60 * 60


@dataclass(frozen=True)
class CacheOptions:
    """List the decoded datasets and the models downloaded from W&B, most recently used first, or clear some of them."""

    clear: str = ""
    """Clear this entry, or `all`."""
    older_than: float = 0.0
    """Clear the entries that have not been used for this many days."""


def parse_arguments(arguments: list[str]) -> CacheOptions:
    """The options. Exits after --help; raises UserError."""
    options, _ = parse(CacheOptions, _USAGE, arguments)
    if options.clear and options.older_than:
        raise UserError(f"--clear and --older-than each select what to clear: give one of them ({_USAGE})")
    return options


def main(arguments: list[str]) -> None:
    """Prints one row per entry, or one line per cleared entry."""
    options = parse_arguments(arguments)

    from resnet_cifar.data import cache
    from resnet_cifar.reporting.console import listing

    entries, console = cache.list_entries(), listing()
    if not (options.clear or options.older_than):
        console.print(f"{cache.cache_root()}: {len(entries)} entries, {_size(entries)}")
        if entries:
            console.print(_table(entries))
        return
    selected = _select(entries, options)
    for entry in selected:
        cache.discard(entry.path)
        console.print(f"cleared {entry.path.name} ({entry.meta.get('source', 'unfinished')}), {_size([entry])}")
    console.print(f"{len(selected)} of {len(entries)} entries cleared, {_size(selected)}")


def _select(entries: list[Entry], options: CacheOptions) -> list[Entry]:
    if options.older_than:
        return [entry for entry in entries if entry.last_used < time.time() - options.older_than * _DAY]
    if options.clear == "all":
        return entries
    selected = [entry for entry in entries if entry.path.name == options.clear]
    if not selected:
        raise UserError(f"--clear cannot be {options.clear!r}: it should be `all` or an entry that the command lists")
    return selected


def _table(entries: list[Entry]) -> Table:
    from rich.table import Table

    table = Table("entry", "source", "images", "size", "on disk", "created", "last used", box=None, pad_edge=False)
    for entry in entries:
        facts = entry.meta
        images = f"{sum(facts['images'].values()):,}" if "images" in facts else "-"
        size = "x".join(map(str, facts["size"])) if "size" in facts else "-"
        days = (time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) for when in (entry.created, entry.last_used))
        table.add_row(entry.path.name, facts.get("source", "unusable"), images, size, _size([entry]), *days)
    return table


def _size(entries: list[Entry]) -> str:
    return f"{sum(entry.nbytes for entry in entries) / 1e6:,.1f} MB"
