"""Lists and clears decoded data sets: `python -m resnet_cifar.cli.cache [--clear ENTRY|all] [--older-than DAYS]`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from resnet_cifar.cli.entry import run_main
from resnet_cifar.cli.looking import cache_command
from resnet_cifar.config.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from resnet_cifar.cli.looking import CacheCommand
    from resnet_cifar.data.cache import Entry

_DAY = 24 * 60 * 60


def main(arguments: list[str]) -> None:
    """A row for each entry, the one used last first; or a line for each that is cleared."""
    command = cache_command(arguments)

    from resnet_cifar.data import cache
    from resnet_cifar.reporting.console import listing

    entries, console = cache.list_entries(), listing()
    if not (command.clear or command.older_than):
        console.print(f"{cache.cache_root()}: {len(entries)} entries, {_size(entries)}")
        if entries:
            console.print(_table(entries))
        return
    chosen = _chosen(entries, command)
    for entry in chosen:
        cache.discard(entry.path)
        console.print(f"cleared {entry.path.name} ({entry.meta.get('source', 'unfinished')}), {_size([entry])}")
    console.print(f"{len(chosen)} of {len(entries)} entries cleared, {_size(chosen)}")


def _chosen(entries: list[Entry], command: CacheCommand) -> list[Entry]:
    if command.older_than:
        return [entry for entry in entries if entry.last_used < time.time() - command.older_than * _DAY]
    if command.clear == "all":
        return entries
    chosen = [entry for entry in entries if entry.path.name == command.clear]
    if not chosen:
        raise UserError(f"--clear cannot be {command.clear!r}: it should be `all` or an entry that the command lists")
    return chosen


def _table(entries: list[Entry]) -> Table:
    from rich.table import Table

    table = Table("entry", "source", "images", "size", "on disk", "made", "last used", box=None, pad_edge=False)
    for entry in entries:
        facts = entry.meta
        images = f"{sum(facts['images'].values()):,}" if facts else "-"
        size = "x".join(map(str, facts["size"])) if facts else "-"
        days = (time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) for when in (entry.created, entry.last_used))
        table.add_row(entry.path.name, facts.get("source", "of no use"), images, size, _size([entry]), *days)
    return table


def _size(entries: list[Entry]) -> str:
    return f"{sum(entry.nbytes for entry in entries) / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(run_main(main))
