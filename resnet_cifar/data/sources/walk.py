"""The files below a folder, each once: a link is followed unless it leads to what is read anyway."""

# Strings instead of Path objects, because there may be millions of files.
# ruff: noqa: PTH116, PTH118, PTH119, PTH120

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from resnet_cifar.config.errors import UserError
from resnet_cifar.data.sources.base import shorten

# Left behind by tools: neither read nor mentioned.
_LEFT_BEHIND = {
    ".cache",
    ".git",
    ".hg",
    ".ipynb_checkpoints",
    ".svn",
    ".thumbnails",
    "@eaDir",
    "__MACOSX",
    "__pycache__",
}


@dataclass
class Walk:
    """`files` and `folders`: paths below the folder, sorted by folder and name.

    Not among these: `links` to a folder or file that is read anyway; `others`, which are sockets, pipes and devices;
    and `hidden` folders, whose names begin with a dot or two underscores.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was seen and not followed."""
        hidden = [path for path in self.hidden if os.path.basename(path) not in _LEFT_BEHIND]
        found = {
            "links to what is read already": self.links,
            "sockets, pipes and devices": self.others,
            "hidden folders": hidden,
        }
        return tuple(f"not used: {what}: {shorten(map(repr, names))}" for what, names in found.items() if names)


def is_hidden(name: str) -> bool:
    """Whether a folder is left out by its name, such as .git or __MACOSX."""
    return name.startswith((".", "__"))


def walk(root: Path, is_first: Callable[[str], bool] = lambda name: False) -> Walk:
    """Everything below `root`. Raises UserError for a folder that cannot be read.

    What is real takes precedence over links to it. `is_first(name)`: folders directly below `root` that take
    precedence, with their links, over the other ones. A link that leads nowhere is listed as a file.
    """
    found = Walk()
    walker = _Walker(str(root), found)
    top, top_links = walker.list_folder("")
    for chosen in (True, False):
        folders = [name for name in top if is_first(name) == chosen]
        links = [name for name in top_links if is_first(name) == chosen]
        links += walker.descend(folders)
        while links:
            links.sort(reverse=True)
            links += walker.follow(links.pop())
    found.files.sort(key=os.path.split)
    found.folders.sort()
    return found


class _Walker:
    """Remembers the real paths of the folders and linked files that have been seen."""

    def __init__(self, root: str, found: Walk) -> None:
        self.root, self.found = root, found
        self.real_root = os.path.realpath(root)
        self.seen = {self.real_root}

    def list_folder(self, path: str) -> tuple[list[str], list[str]]:
        """The subfolders and links in a folder; files are added to those found."""
        folders, links = [], []
        try:
            with os.scandir(os.path.join(self.root, path)) as entries:
                for entry in entries:
                    name = os.path.join(path, entry.name)
                    if entry.is_symlink():
                        links.append(name)
                    elif entry.is_dir():
                        (self.found.hidden if is_hidden(entry.name) else folders).append(name)
                    else:
                        (self.found.files if entry.is_file() else self.found.others).append(name)
        except OSError as error:
            raise UserError(
                f"data.source: the folder {os.path.join(self.root, path)!r} cannot be read ({error.strerror}): make it "
                "readable, or move it elsewhere"
            ) from None
        return folders, links

    def descend(self, folders: list[str]) -> list[str]:
        """Lists the folders and all below them; returns the links that were met."""
        links = []
        while folders:
            path = folders.pop()
            real = os.path.realpath(os.path.join(self.root, path))
            if real not in self.seen:
                self.seen.add(real)
                self.found.folders.append(path)
                inside, met = self.list_folder(path)
                folders += inside
                links += met
        return links

    def follow(self, link: str) -> list[str]:
        """Reads what a link leads to; returns the links that were met."""
        target = os.path.realpath(os.path.join(self.root, link))
        try:
            mode = os.stat(target).st_mode
        except OSError:  # it leads nowhere, or to itself
            self.found.files.append(link)
            return []
        is_above = f"{self.real_root}/".startswith(f"{target.rstrip('/')}/")
        if target in self.seen or is_above or (not stat.S_ISDIR(mode) and os.path.dirname(target) in self.seen):
            self.found.links.append(link)
        elif stat.S_ISDIR(mode):
            if is_hidden(os.path.basename(link)):
                self.found.hidden.append(link)
            else:
                return self.descend([link])
        else:
            self.seen.add(target)
            (self.found.files if stat.S_ISREG(mode) else self.found.others).append(link)
        return []


def file_stamps(root: Path) -> str:
    """Path, size and modification time of a file, or of every file in a folder, and the targets of skipped links."""
    root = root.expanduser().resolve()
    if not root.is_dir():
        return f"{root} {[_stamp('.', str(root))]}"
    found = walk(root)
    stamps = [_stamp(name, os.path.join(root, name)) for name in found.files]
    return f"{root} {stamps + [(name, os.path.realpath(os.path.join(root, name))) for name in found.links]}"


def _stamp(name: str, path: str) -> tuple[str, int, int]:
    try:
        facts = os.stat(path)
        return name, facts.st_size, facts.st_mtime_ns
    except OSError:  # a link that leads nowhere
        return name, -1, 0
