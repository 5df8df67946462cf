"""What `benchmarks.gpu` measures, one stage a process: `python -m benchmarks.gpu_stages STAGE`.

A stage prints each result as a line of JSON after `RESULT`, as soon as it has it. A variant that fails is a result too,
and the next one begins: what a later failure or the end of the time takes away is only what was not measured yet.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch.profiler import ProfilerActivity, profile

from resnet_cifar.atomic_io import read_json
from resnet_cifar.cache_folder import cache_root
from resnet_cifar.checkpoints import snapshot
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Data, Recipe
from resnet_cifar.data import prepared_data
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.loader import Loader
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.evaluation.predict import predict
from resnet_cifar.models.factory import create_model
from resnet_cifar.models.frozen_batchnorm import freeze_batchnorm
from resnet_cifar.models.ghost_batchnorm import apply_ghost_batchnorm
from resnet_cifar.optim.factory import create_optimizer
from resnet_cifar.training import flops, preflight
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.scaling_measurement import whole_step
from resnet_cifar.training.train_state import TrainState
from resnet_cifar.training.train_step import train_step

CLASSES = 10
_ROUNDS, _SECONDS = 5, 0.4  # of timing: the median over these rounds, each about this long
_PROFILED = 2  # steps
_NEEDED, _NEEDED_CACHED, _NEEDED_COMPILED = 12, 25, 60  # seconds that a variant takes: none begins with less
WARMED_UP = 2  # of the compiled variants: the first ones' graphs are in the compiler's cache when they are measured


@dataclass(frozen=True)
class Variant:
    """One way to run the training step.

    batchnorm: an implementation of ghost BatchNorm; `frozen`, as `finetune` has it; `stock`, timm's own; `plain loop`,
    stock timm trained by plain PyTorch on one batch that is on the device already, against which the whole step is
    compared.
    compile_mode: of torch.compile; None where the step is eager.
    expected: images/s predicted for an H100 from counted operators and bytes at 3.0 TB/s; None without a prediction.
    """

    recipe: str
    image_size: int
    batch: int
    batchnorm: str = "auto"
    precision: str = "bf16"
    compile_mode: str | None = None
    cudnn_benchmark: bool = True
    expected: int | None = None

    def __str__(self) -> str:
        compiled = f", compiled ({self.compile_mode})" if self.compile_mode else ""
        tuned = "" if self.cudnn_benchmark else ", no cudnn.benchmark"
        what = f"{self.recipe} {self.image_size} px, batch {self.batch}, {self.precision}, {self.batchnorm}"
        return f"{what}{compiled}{tuned}"


# In order of value: what the time does not allow comes last.
EAGER = (
    Variant("finetune", 224, 256, "frozen"),
    Variant("finetune", 224, 256, expected=3_650),
    Variant("finetune", 224, 256, "plain loop", expected=3_300),
    Variant("scratch", 32, 256, expected=14_500),
    Variant("scratch", 32, 256, "plain loop", expected=13_500),
    Variant("scratch", 32, 1024, expected=17_000),
    Variant("finetune", 224, 256, precision="fp16", expected=3_600),
    Variant("finetune", 224, 256, cudnn_benchmark=False, expected=3_500),
    Variant("finetune", 224, 256, precision="no", expected=1_500),  # TF32
)
BATCHNORM = (
    Variant("finetune", 224, 256, "stock", expected=3_300),
    Variant("scratch", 32, 256, "stock", expected=13_500),
    Variant("finetune", 224, 256, "native", expected=2_850),
    Variant("scratch", 32, 256, "native", expected=8_500),
    Variant("scratch", 32, 256, "compiled"),
)
COMPILED = (
    Variant("scratch", 32, 256, compile_mode="default", expected=17_500),
    Variant("finetune", 224, 256, compile_mode="default", expected=4_500),
    Variant("scratch", 32, 1024, compile_mode="default", expected=20_000),
    Variant("scratch", 32, 256, compile_mode="reduce-overhead", expected=18_500),
    Variant("scratch", 32, 256, "stock", compile_mode="default"),
    Variant("finetune", 224, 256, "stock", compile_mode="default"),
)
# What is measured besides: (prediction for an H100 or None, unit)
EXPECTED = {
    "copy": (3.0, "TB/s"),
    "matmul": (798, "TFLOP/s"),
    "batch": (2.0, "ms"),
    "batch, on the host": (None, "ms"),
    "checkpoint": (None, "MB"),
    "checkpoint stall": (80, "ms"),
}
EXPECTED_ACCURACY = "0.94 to 0.955 in 30 to 35 epochs"


def variants(stage: str, rehearse: bool) -> list[Variant]:
    """The stage's; to rehearse, its first two with a tiny model on a CPU. fp16 where the GPU has no bf16."""
    chosen = {"eager": EAGER, "batchnorm": BATCHNORM, "compiled": COMPILED}[stage]
    chosen = chosen[: 1 if stage == "compiled" else 2] if rehearse else chosen
    return [_for_this_machine(variant, rehearse) for variant in chosen]


def _for_this_machine(variant: Variant, rehearse: bool) -> Variant:
    if rehearse:
        return replace(variant, recipe="scratch", image_size=32, batch=64, expected=None)
    if variant.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return replace(variant, precision="fp16")
    return variant


def report(kind: str, **values: Any) -> None:
    """Prints one result."""
    print("RESULT", json.dumps({"kind": kind, **values}), flush=True)


def measure(chosen: Iterable[Variant], end: float, rehearse: bool) -> None:
    """Reports every variant that can begin before `end`, a time of time.monotonic()."""
    for number, variant in enumerate(chosen):
        cached = _NEEDED_CACHED if number < WARMED_UP else _NEEDED_COMPILED
        if time.monotonic() > end - (cached if variant.compile_mode else _NEEDED):
            report("variant", **asdict(variant), left_out="no time was left")
            continue
        try:
            report("variant", **asdict(variant), **_measured(variant, rehearse))
        except Exception as error:  # whatever it is, the next variant may do
            traceback.print_exc()
            report("variant", **asdict(variant), error=_sentence(error))


def warm_up(variant: Variant, rehearse: bool) -> None:
    """Fills the compiler's cache with the variant's graphs of training and, for `scratch`, which is trained later, of
    evaluation at the sizes that its validation and test splits take; nothing is timed."""
    began = time.monotonic()
    state, loader = _built(variant, rehearse)
    train_step(state, 0, loader.batch(0), state.plan.lr(0))
    images = loader.images
    for count in (len(images) // 10, len(images) // 5) if variant.recipe == "scratch" else ():
        part = ImageDataset(images.images[:count], images.labels[:count], images.indices[:count])
        predict(state.context, state.wrapped, part, state.preprocess)
    _synchronize()
    report("warm-up", variant=str(variant), seconds=round(time.monotonic() - began, 1))


def decode(source: str) -> None:
    """Puts the images into the cache; reports the source that train.py can read, and how many it can train on."""
    try:
        entry = prepared_data.prepare(Data(source=source))
    except ImportError as error:  # of `datasets`, which may want another pyarrow than this machine's
        print(f"datasets cannot be imported ({error}): its parquet files are read with pyarrow instead", flush=True)
        source = str(parquet_to_npz(Path(source), cache_root() / "images.npz"))
        entry = prepared_data.prepare(Data(source=source))
    report("images", source=source, images=read_json(entry / "meta.json")["images"])


def parquet_to_npz(folder: Path, file: Path) -> Path:
    """Writes the train and test images of a folder in the hub's layout as arrays: x_train, y_train, x_test, y_test."""
    import pyarrow.parquet
    from PIL import Image

    def pixels(encoded: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))

    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split in ("train", "test"):
        table = pyarrow.parquet.read_table(sorted(folder.rglob(f"{split}-*.parquet")))
        image, label = (next(name for name in table.column_names if name.startswith(k)) for k in ("im", "la"))
        with ThreadPoolExecutor() as threads:
            decoded = list(threads.map(pixels, (cell["bytes"] for cell in table[image].to_pylist())))
        arrays |= {f"x_{split}": np.stack(decoded), f"y_{split}": table[label].to_numpy()}
    np.savez(file, **arrays)
    return file


def ceilings(rehearse: bool) -> None:
    """What the device can do, and what a batch and a checkpoint cost the step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, side = (2**30, 8192) if device.type == "cuda" else (2**22, 128)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    _report_ceiling("copy", 2 * size / _seconds(lambda: target.copy_(source), 20) / 1e12)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    _report_ceiling("matmul", 2 * side**3 / _seconds(lambda: a @ b, 20) / 1e12)
    _, loader = _built(_for_this_machine(Variant("finetune", 224, 256, "stock"), rehearse), rehearse)
    steps = itertools.count()
    _report_ceiling("batch", 1e3 * _seconds(lambda: list(loader.batch(next(steps))), 10))
    _report_ceiling("batch, on the host", 1e3 * _seconds(lambda: loader.batch(next(steps)), 20))  # never computed
    state, loader = _built(_for_this_machine(Variant("scratch", 32, 256, "stock"), rehearse), rehearse)
    for step in range(2):
        train_step(state, step, loader.batch(step), state.plan.lr(step))
    buffers = (buffer for each in state.optimizer.state.values() for buffer in each.values())
    tensors = [*state.model.state_dict().values(), *(b for b in buffers if isinstance(b, torch.Tensor))]
    _report_ceiling("checkpoint", sum(tensor.nbytes for tensor in tensors) / 1e6)
    # The step waits for no more of a checkpoint than this.
    _report_ceiling("checkpoint stall", 1e3 * _seconds(lambda: snapshot.take(state.model, state.optimizer), 3))


def _report_ceiling(name: str, value: float) -> None:
    expected, unit = EXPECTED[name]
    report("ceiling", name=name, measured=float(f"{value:.4g}"), unit=unit, expected=expected)


def _measured(variant: Variant, rehearse: bool) -> dict[str, Any]:
    """Images/s, milliseconds and kernels of a step, peak memory and share of the device's peak arithmetic.

    Peaks of memory are those of the training steps. None stands for what a CPU does not have.
    """
    gc.collect()
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    state, loader = _built(variant, rehearse)
    step = _plain_step(state, loader) if variant.batchnorm == "plain loop" else whole_step(state, loader)
    _seconds(step, 5 if variant.compile_mode == "reduce-overhead" else 3, warm_up=0)  # CUDA graphs are recorded later
    first = time.monotonic() - began
    count = 1 if rehearse else max(3, round(_SECONDS / _seconds(step, 3)))
    times = [1e3 * _seconds(step, count, warm_up=0) for _ in range(2 if rehearse else _ROUNDS)]
    memory = torch.cuda.max_memory_allocated() / 2**30 if gpu else None
    kernels, busy = _kernels(step)
    ms = statistics.median(times)
    speed = 1e3 * variant.batch / ms
    context = state.context
    tf32 = gpu and torch.backends.cudnn.allow_tf32
    peak = flops.peak(torch.cuda.get_device_name(), context.precision, tf32) if gpu else None
    gflops = flops.flops_an_image(state.plan.recipe, CLASSES) / 1e9
    list(state.metrics.poll(wait=True))  # raises where a loss was not finite
    return {
        "images_per_second": round(speed, 1),
        "ms": round(ms, 3),
        "spread": round(max(times) / min(times) - 1, 3),
        "kernels": kernels,
        "busy_ms": busy,
        "memory_gib": None if memory is None else round(memory, 2),
        "mfu": round(speed * gflops * 1e9 / peak, 4) if peak else None,
        "first_steps_s": round(first, 1),
    }


def _built(variant: Variant, rehearse: bool) -> tuple[TrainState, Loader]:
    """The training state as train.py builds it, and a loader of random images."""
    AcceleratorState._reset_state(True)
    torch._dynamo.reset()
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        os.environ.pop(name, None)
    if variant.compile_mode:  # as `accelerate launch --dynamo_backend inductor --dynamo_mode MODE`
        os.environ["ACCELERATE_DYNAMO_BACKEND"] = "EAGER" if rehearse else "INDUCTOR"
        os.environ["ACCELERATE_DYNAMO_MODE"] = variant.compile_mode
    context = DistributedContext(variant.precision)
    torch.backends.cudnn.benchmark = variant.cudnn_benchmark
    recipe = preflight.resolve(_recipe(variant, rehearse))
    count = 512 if rehearse else 50_000
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, device=context.device)
    labels = torch.randint(0, CLASSES, (count,), device=context.device)
    plan = Plan(recipe, count, world_size=1)
    state = TrainState(plan, context, tuple(map(str, range(CLASSES))))
    if variant.batchnorm == "frozen":  # with random weights, which no recipe does
        freeze_batchnorm(state.model)
    elif variant.batchnorm not in ("auto", "stock", "plain loop"):
        # The model is built with "auto"; this selects another implementation.
        apply_ghost_batchnorm(state.model, recipe.model.ghost_batch_size, variant.batchnorm)
    dataset = ImageDataset(images, labels, np.arange(count))
    return state, Loader(recipe, dataset, CLASSES, state.preprocess, plan.rows(0))


def _recipe(variant: Variant, rehearse: bool) -> Recipe:
    words = {"data.source": "synthetic", "data.image_size": str(variant.image_size), "batch_size": str(variant.batch)}
    words |= {"precision": variant.precision, "model.pretrained": "False", "phases.0.epochs": "100000"}
    if variant.batchnorm in ("frozen", "stock", "plain loop"):
        words["model.ghost_batch_size"] = "null"
    if rehearse:
        words |= {"model.name": "test_resnet", "model.stem": "imagenet"}
    return read_recipe(variant.recipe, words)


def _plain_step(state: TrainState, loader: Loader) -> Callable[[], None]:
    """The step of a plain timm script, on one batch that is already on the device."""
    context, recipe = state.context, state.plan.recipe
    model = create_model(recipe, CLASSES, pretrained=False)
    model.to(context.device, memory_format=torch.channels_last)
    optimizer = create_optimizer(model, recipe.optimizer, 0.001, context.device)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(context.precision)
    scaler = torch.amp.GradScaler(context.device.type, enabled=low == torch.float16)
    inputs, targets = next(loader.batch(0))

    def step() -> None:
        with torch.autocast(context.device.type, dtype=low, enabled=low is not None):
            loss = F.cross_entropy(model(inputs), targets, label_smoothing=recipe.loss.label_smoothing)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def _seconds(work: Callable[[], Any], count: int, warm_up: int = 2) -> float:
    """Seconds of one call, when `count` follow each other."""
    for _ in range(warm_up):
        work()
    _synchronize()
    began = time.perf_counter()
    for _ in range(count):
        work()
    _synchronize()
    return (time.perf_counter() - began) / count


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _kernels(step: Callable[[], None]) -> tuple[float | None, float | None]:
    """(kernels of a step, milliseconds of it in which the device computes); Nones on a CPU."""
    activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(_PROFILED):
            step()
        _synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        return kernels_in(json.loads(trace.read_text())["traceEvents"], _PROFILED)


def kernels_in(events: Iterable[dict[str, Any]], steps: int) -> tuple[float | None, float | None]:
    """(kernels, milliseconds of kernels) of each of `steps` steps in a chrome trace; Nones where it has no kernel."""
    durations = [event["dur"] for event in events if event.get("cat") == "kernel"]
    if not durations:
        return None, None
    return len(durations) / steps, round(sum(durations) / steps / 1e3, 3)


def _sentence(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]


def main(arguments: list[str]) -> None:
    """Runs one stage."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_stages")
    parser.add_argument("stage", choices=("decode", "warm-up", "ceilings", "eager", "batchnorm", "compiled"))
    parser.add_argument("--source", default="synthetic", help="the images, for decode")
    parser.add_argument("--variant", type=int, default=0, help="which of the compiled ones to warm up")
    parser.add_argument("--seconds", type=float, default=600, help="from the start; no variant begins too late for it")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model")
    asked = parser.parse_args(arguments)
    end = time.monotonic() - (time.time() - psutil.Process().create_time()) + asked.seconds  # imports count
    if asked.stage == "decode":
        decode(asked.source)
    elif asked.stage == "warm-up":
        warm_up(variants("compiled", asked.rehearse)[asked.variant], asked.rehearse)
    elif asked.stage == "ceilings":
        ceilings(asked.rehearse)
    else:
        measure(variants(asked.stage, asked.rehearse), end, asked.rehearse)


if __name__ == "__main__":
    main(sys.argv[1:])
