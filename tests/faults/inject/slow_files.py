"""A slow file system below one folder: every call there takes some time more. `sitecustomize` imports this file.

SLOW_FILES in the environment is JSON: {"folder": RUN, "journal": FILE, "seconds": 0.2}. When a rank ends, the journal
gets a line of JSON with [call, file, bytes, thread, steps begun] of every call. They are Python's: torch, numpy and
safetensors write none of a run's files while it trains.
"""

import atexit
import builtins
import io
import json
import os
import sys
import threading
import time
from pathlib import Path

import wrapt

EVENTS = {"open": 0, "os.rename": 0, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.listdir": 0, "os.scandir": 0}
EVENTS |= {"os.truncate": 0, "os.utime": 0, "os.chmod": 0, "os.link": 0, "os.symlink": 0, "shutil.copyfile": 0}


class SlowFile:
    """An open file, whose calls are counted; otherwise the file itself."""

    def __init__(self, file, path):
        self._file, self._path = file, path

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        slow.call("close", self._path)
        return self._file.__exit__(*error)

    def __iter__(self):
        return iter(self._file)

    def write(self, content):
        size = content.nbytes if isinstance(content, memoryview) else len(content)
        slow.call("write" if size > io.DEFAULT_BUFFER_SIZE else "buffered write", self._path, size)
        return self._file.write(content)

    def flush(self):
        slow.call("flush", self._path)
        self._file.flush()


class Slow:
    """What this process does in the folder."""

    def __init__(self, folder, journal, seconds):
        self.folder, self.journal, self.seconds = folder, journal, seconds
        self.calls, self.steps = [], 0

    def call(self, kind, path, size=0):
        if name := self.name_of(path):
            self.calls.append((kind, name, size, threading.current_thread().name, self.steps))
            time.sleep(self.seconds * (kind != "buffered write"))

    def name_of(self, path):
        """The name of a path in the folder; "" of others, and of descriptors."""
        if not isinstance(path, str | bytes | os.PathLike):
            return ""
        path = Path(os.fsdecode(path)).absolute()
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else ""

    def audit(self, event, arguments):
        if event in EVENTS and arguments:
            self.call(event.removeprefix("os."), arguments[0])

    def wrap(self, module, name, path_of=lambda path: path):
        real = getattr(module, name)

        def slower(first, *more, **named):
            self.call(name, path_of(first))
            return real(first, *more, **named)

        setattr(module, name, slower)

    def opened(self, real):
        def opening(file, *more, **named):
            stream = real(file, *more, **named)
            return SlowFile(stream, file) if self.name_of(file) else stream

        return opening

    def tell(self):
        if not self.steps:  # the launcher
            return
        rank = int(os.environ.get("RANK", "0"))
        with Path(self.journal).open("a") as file:
            file.write(json.dumps({"rank": rank, "calls": self.calls}) + "\n")


def on_train_step(module):
    train_step = module.train_step

    def counted(*arguments, **named):
        slow.steps += 1
        return train_step(*arguments, **named)

    module.train_step = counted


slow = Slow(**json.loads(os.environ["SLOW_FILES"]))
sys.addaudithook(slow.audit)
for name in ("stat", "lstat", "access"):
    slow.wrap(os, name)
slow.wrap(os, "fsync", lambda descriptor: Path(f"/proc/self/fd/{descriptor}").readlink())
builtins.open = io.open = slow.opened(io.open)
atexit.register(slow.tell)
wrapt.register_post_import_hook(on_train_step, "resnet_cifar.training.train_step")
