"""Faults at exact moments of a run, from outside of it. Python imports this file where its folder is on PYTHONPATH.

FAULTS in the environment is JSON: {"journal": FILE, "tester": PID, "faults": [FAULT, ...]}, and a fault is
{"rank": 1, "restart": 0, "at": MOMENT, "count": N, "then": ACT}: at the N-th MOMENT of that rank, ACT happens.

Moments, each counted by itself:
    import      torch has just been loaded, and the rest of the program has not
    load        before the images are read from the cache
    decode      a file of the cache is about to be written
    claim       a file by which a start takes its folder over is about to be written, flushed, renamed or removed
    update      between the first two backward passes of an update
    evaluation  before a batch that is scored, or that norms are estimated on, in training
    scoring     before a batch of the last scoring
    save        a checkpoint's file or folder is about to be written, is half written, or is flushed, renamed or removed
    export      the same for the scores, the exported model and the result
Acts: `SIGNAL everything|launcher|self`, `block` (for ever, in C), `raise`, `meet` (waits for another start that does),
`an hour passes` (on the clock of --max-minutes).

Every start also writes into the journal what it trained on.
"""

import atexit
import ctypes
import hashlib
import inspect
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

FILES = {
    "decode": re.compile(r"\.building-"),
    "claim": re.compile(r"/(lease\.json|recipe\.yaml|environment\.json|metrics\.jsonl)"),
    "save": re.compile(r"/checkpoints/step-|^(model\.safetensors|optimizer\.safetensors|state\.json)$"),
    "export": re.compile(r"/(eval-test|predictions-test|model(\.writing-\w+)?$|model\.writing-\w+/|result\.json)"),
}
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
SLOW = 0.25  # seconds of every update after a signal: the rest of a run on a fast machine is no longer than its answer


class Injector:
    """What this process does to itself."""

    def __init__(self, plan):
        self.rank = int(os.environ.get("RANK", "0"))
        self.restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        mine = (self.rank, self.restart)
        self.faults = [f for f in plan["faults"] if (f.get("rank", 0), f.get("restart", 0)) == mine]
        self.tester = plan["tester"]
        self.journal = Path(plan["journal"])
        self.counts = {}
        self.is_scoring = self.is_slow = False
        self.lock = threading.RLock()
        self.orders = {}
        self.clock = None

    def write(self, event, **facts):
        line = json.dumps({"event": event, "rank": self.rank, "restart": self.restart, **facts}) + "\n"
        file = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())  # one call, so that lines of several processes do not mix
        os.close(file)

    def moment(self, name, detail=""):
        with self.lock:
            count = self.counts[name] = self.counts.get(name, 0) + 1
            due = [fault for fault in self.faults if (fault["at"], fault["count"]) == (name, count)]
        for fault in due:
            self.write("fault", at=name, count=count, then=fault["then"], detail=detail)
            self.act(fault["then"])

    def act(self, then):
        if then.startswith("SIG"):
            name, target = then.split()
            self.is_slow = True
            self.signal(signal.Signals[name], target)
        elif then == "block":
            block()
        elif then == "raise":
            raise RuntimeError("injected")
        elif then == "an hour passes":
            self.is_slow = True
            now = time.monotonic
            self.clock.time = SimpleNamespace(monotonic=lambda: now() + 3600)
        elif then == "meet":
            self.meet()
        else:
            raise ValueError(then)

    def signal(self, number, target):
        import psutil

        launcher = psutil.Process(os.getppid())
        if target == "self" or launcher.pid == self.tester:
            os.kill(os.getpid(), number)
            return
        # Workers of torch's launcher have sessions of their own, so a signal to its group reaches the launcher alone.
        others = [p for p in launcher.children(recursive=True) if p.pid != os.getpid()]
        os.killpg(os.getpgid(launcher.pid), number)
        if target == "everything":
            for process in others:
                process.send_signal(number)
            os.kill(os.getpid(), number)

    def meet(self):
        """Waits until another process has come here, or has ended."""
        while len(list(self.journal.parent.glob("met-*"))) < 2:
            self.arrive()
            time.sleep(0.002)

    def arrive(self):
        (self.journal.parent / f"met-{os.getpid()}").touch()

    def file(self, path, kind):
        """A file operation is about to happen."""
        try:
            path = os.fsdecode(path)
        except TypeError:  # a descriptor
            return
        for name, pattern in FILES.items():
            if pattern.search(path):
                self.moment(name, f"{kind} {Path(path).name}")

    def audit(self, event, arguments):
        if event == "open":
            path, mode, _ = arguments
            # os.open has no mode: it is how files and folders are flushed.
            if mode is None or set("wax+") & set(mode):
                self.file(path, "flush" if mode is None else "write")
        elif event in CHANGES:
            self.file(arguments[0], event)


def block():
    """Never returns, whatever signals come: a thread that takes a lock of C twice, as good as a lost collective."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def digest(*arrays):
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.tobytes())
    return found.hexdigest()[:16]


def on_signals(module):
    import psutil

    injector.clock = module
    injector.write("began", pid=os.getpid(), created=psutil.Process().create_time())
    sys.addaudithook(injector.audit)
    if any(fault["then"] == "meet" for fault in injector.faults):
        atexit.register(injector.arrive)


def on_sampling(module):
    sample_indices = module.sample_indices

    def noted(seed, images, batch_size, step, *more):
        indices, uses = sample_indices(seed, images, batch_size, step, *more)
        injector.orders[step] = digest(indices, uses)
        return indices, uses

    module.sample_indices = noted


def on_train_step(module):
    train_step = module.train_step

    def noted(state, step, batch, lr):
        parts = []

        def seen():
            for inputs, targets in batch:
                if len(parts) == 1:
                    injector.moment("update", f"step {step}")
                parts.append(digest(inputs.cpu().numpy(), targets.cpu().numpy()))
                yield inputs, targets

        if injector.is_slow:
            time.sleep(SLOW)
        train_step(state, step, seen(), lr)
        injector.write("update", step=step, order=injector.orders[step], batches=parts)

    module.train_step = noted


def on_predict(module):
    for name in ("predict", "precise_bn"):
        setattr(module, name, ticked(getattr(module, name)))


def ticked(function):
    signature = inspect.signature(function)

    def noted(*arguments, **named):
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        check_stop = bound.arguments["check_stop"]

        def counted():
            check_stop()
            injector.moment("scoring" if injector.is_scoring else "evaluation", function.__name__)

        bound.arguments["check_stop"] = counted
        return function(*bound.args, **bound.kwargs)

    return noted


def on_watchdog(module):
    training_done = module.Watchdog.training_done

    def noted(self):
        injector.is_scoring = True
        training_done(self)

    module.Watchdog.training_done = noted


def on_prepared_data(module):
    load = module.load

    def noted(*arguments):
        injector.moment("load")
        return load(*arguments)

    module.load = noted


def on_checkpoint(module):
    if all(fault["at"] != "save" for fault in injector.faults):
        return  # a file is written once: slow_files counts that
    write = module._write

    def torn(file, parts):
        content = b"".join(parts)
        write(file, [content[: len(content) // 2]])
        injector.moment("save", f"half of {file.name}")
        return write(file, [content])

    module._write = torn


def on_torch(module):
    if Path(sys.argv[0]).name == "train.py":  # Accelerate's launcher loads torch, too
        injector.moment("import")


if "SLOW_FILES" in os.environ:
    import slow_files  # noqa: F401

if "FAULTS" in os.environ:
    import wrapt

    injector = Injector(json.loads(os.environ["FAULTS"]))
    for place, hook in {
        "distributed.signals": on_signals,
        "distributed.watchdog": on_watchdog,
        "checkpoints.checkpoint": on_checkpoint,
        "evaluation.predict": on_predict,
        "training.train_step": on_train_step,
        "data.sampling": on_sampling,
        "data.prepared_data": on_prepared_data,
    }.items():
        wrapt.register_post_import_hook(hook, f"resnet_cifar.{place}")
    wrapt.register_post_import_hook(on_torch, "torch")
