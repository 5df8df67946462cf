"""Processes, devices and precision: the only module that imports accelerate."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DDPCommunicationHookType, TorchDynamoPlugin
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from resnet_cifar.config.errors import NodeError, RankError, UserError
from resnet_cifar.distributed import launcher_env, rendezvous
from resnet_cifar.distributed.collective_log import CollectiveLog

_SPEAKING = 3.0  # seconds that the other ranks leave to the one that reports a mistake
_READING = 30.0  # seconds that rank 0 waits for the other ranks to read a final message
_FAILING = 3.0  # the same, if that is its own failure: others may be busy with something else
_contexts = itertools.count()  # every process creates them in the same order
_FOREVER = timedelta(days=30)
_LOST = "it died or lost the network"
_COLLECTIVE = timedelta(hours=1)  # the watchdog gives up on a lost process long before

P = ParamSpec("P")
T = TypeVar("T")


def _collective(
    kind: str, has_place: bool = True
) -> Callable[[Callable[Concatenate[DistributedContext, P], T]], Callable[Concatenate[DistributedContext, P], T]]:
    """For methods that every rank calls equally often: notes the call in `collectives`, and sets `waiting` during it.

    The watchdog blames the rank whose calls are behind, or, among equals, those that are not waiting. `has_place`:
    whether the call happens at one place of the program.
    """

    def decorate(
        method: Callable[Concatenate[DistributedContext, P], T],
    ) -> Callable[Concatenate[DistributedContext, P], T]:
        @functools.wraps(method)
        def wrapper(self: DistributedContext, *args: P.args, **kwargs: P.kwargs) -> T:
            if self.size == 1:
                return method(self, *args, **kwargs)
            self.collectives.enter(kind, sys._getframe(1) if has_place else None)
            before, self.waiting = self.waiting, True
            try:
                return method(self, *args, **kwargs)
            finally:
                self.waiting = before  # one such method may call another

        return wrapper

    return decorate


class DistributedContext:
    """This process's rank, node (machine), device and precision, and Accelerate behind a few methods.

    `precision` is the recipe's; `auto` is resolved (`launcher_env.resolve_precision`). `compile_mode` overrides the
    launcher's torch.compile mode unless it is ""; `cpu` keeps it off the GPUs. Raises UserError where the launcher or
    the hardware does not match.
    """

    def __init__(self, precision: str, deterministic: bool = False, compile_mode: str = "", cpu: bool = False) -> None:
        self.collectives = CollectiveLog()
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is initialized
            torch.use_deterministic_algorithms(True)
        launcher_env.check_launcher()
        self.precision, self.precision_reason = launcher_env.resolve_precision(precision)
        on_cpu = cpu or launcher_env.on_cpu()
        launcher_env.check_devices(on_cpu)
        if on_cpu and self.precision == "fp16":
            raise NodeError("precision fp16 needs a GPU, and none was found: use no or bf16")
        if not on_cpu:
            if self.precision == "bf16" and not torch.cuda.is_bf16_supported():
                raise NodeError(f"precision bf16 is not supported by {torch.cuda.get_device_name()}: use fp16 or no")
            _set_up_gpu_arithmetic(deterministic)
        mixed = self.precision if self.precision in ("bf16", "fp16") else "no"
        # Running statistics do not influence training: buffers are not broadcast. Gradients are views of the buckets.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        group = InitProcessGroupKwargs(timeout=_COLLECTIVE)
        options = {
            "mixed_precision": mixed,
            "kwargs_handlers": [ddp, group],
            "dynamo_plugin": _dynamo_plugin(compile_mode),
        }
        _init_group("gloo" if on_cpu else "nccl")
        self._accelerator = Accelerator(cpu=on_cpu, **options)
        self.device: torch.device = self._accelerator.device
        if self.device.type == "cuda" and self.device.index is None:  # from Accelerate with a single process
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.rank: int = self._accelerator.process_index
        self.size: int = self._accelerator.num_processes
        self.is_main: bool = self.rank == 0
        launcher_env.check_world_size(self.size)
        self._hosted, self._port = self._host_store() if self.size > 1 else (None, 0)
        self._store = self.connect()
        self._turns = 0
        self._reduces_gradients = True
        self.node, self.nodes, self.node_size = self._find_nodes()
        if precision == "auto":
            with self.sharing_failures():
                self._check_same_precision()

    def _find_nodes(self) -> tuple[int, int, int]:
        """(the number of this machine from 0, the number of machines, the number of processes on this one).

        Only torch's elastic launcher tells machines apart. Where processes were started by hand, the ranks of a machine
        follow each other, and the first of them has LOCAL_RANK 0.
        """
        if self.size == 1 or "GROUP_RANK" in os.environ:
            given = [os.environ.get(name) for name in ("GROUP_RANK", "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE")]
            return int(given[0] or 0), int(given[1] or 1), int(given[2] or self.size)
        first = self.rank - int(os.environ["LOCAL_RANK"])
        of_all = self.gather(torch.tensor([first], device=self.device)).tolist()
        return sorted(set(of_all)).index(first), len(set(of_all)), of_all.count(first)

    def _check_same_precision(self) -> None:
        """Raises NodeError where `auto` resolves differently on this process's GPU and on rank 0's."""
        first = self.run_on_main(lambda: self.precision)
        if first != self.precision:
            raise NodeError(
                f"precision auto is {first} on rank 0 and {self.precision} on this machine "
                f"({self.precision_reason}): set --precision to one that all GPUs support"
            )

    @property
    def waiting(self) -> bool:
        """Whether the main thread may be waiting for other processes or for the device."""
        return self.collectives.waiting

    @waiting.setter
    def waiting(self, value: bool) -> None:
        self.collectives.waiting = value

    @property
    def is_first_on_node(self) -> bool:
        """Whether no other process on this machine has a lower rank."""
        return self._accelerator.is_local_main_process

    @property
    def speaks_without_main(self) -> bool:
        """Whether this process says what became of rank 0: one of its machine's does, and one of each other machine."""
        return self.rank == 1 or self.is_first_on_node

    @property
    def dtype(self) -> torch.dtype:
        """The data type of weights and inputs."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def _host_store(self) -> tuple[dist.TCPStore | None, int]:
        """(rank 0's store, its port). The process group's store ends with the launcher; this one must outlive it."""
        default, key = dist.distributed_c10d._get_default_store(), f"resnet_cifar {next(_contexts)}"
        if not self.is_main:
            return None, int(default.get(key))
        hosted = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)
        default.set(key, str(hosted.port))
        return hosted, hosted.port

    def connect(self) -> dist.TCPStore | None:
        """A new connection to rank 0's store, for use by one thread; None with a single process."""
        if self.size == 1:
            return None
        host = "localhost" if self.is_main else os.environ["MASTER_ADDR"]
        rendezvous.await_server(launcher_env.Place(self.rank, self.size, host, self._port))
        return dist.TCPStore(host, self._port, None, False, _FOREVER, wait_for_workers=False)

    def describe(self) -> str:
        """The device and, if models are compiled, how."""
        compiled = f", compiled with {self.compiled}" if self.compiled else ""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}{compiled}"
        threads = torch.get_num_threads()
        return f"CPU ({threads} thread{'s' * (threads > 1)}){compiled}"

    @property
    def compiled(self) -> str:
        """How models are compiled, such as `inductor (max-autotune)`; empty if they are not."""
        plugin = self._accelerator.state.dynamo_plugin
        backend, mode = plugin.backend.value.lower(), f" ({plugin.mode})" if plugin.mode != "default" else ""
        return f"{backend}{mode}" if backend != "no" else ""

    def idle_threads_warning(self) -> str | None:
        """A warning where the launcher leaves cores of a CPU run idle."""
        cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
        if self.device.type == "cuda" or self.size > 1 or threads >= cores or not launcher_env.by_accelerate():
            return None
        return (
            f"OMP_NUM_THREADS={threads} leaves {cores - threads} of {cores} cores idle (accelerate launch sets 1 by "
            f"default): set OMP_NUM_THREADS={cores}, or use accelerate_configs/cpu.yaml"
        )

    def describe_precision(self) -> str:
        """The precision, whether float32 uses TF32, and why it was chosen."""
        words = {"no": "float32", "fp64": "float64"}.get(self.precision, self.precision)
        tf32 = " with TF32" if self.precision == "no" and self.uses_tf32 else ""
        return f"{words}{tf32} ({self.precision_reason})"

    @property
    def uses_tf32(self) -> bool:
        """Whether float32 matrix products and convolutions use TF32."""
        is_capable = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) >= (8, 0)
        return is_capable and torch.backends.cuda.matmul.fp32_precision == "tf32"

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler of fp16; None in other precisions."""
        return self._accelerator.scaler

    def set_gradient_reduction(self, bucket_mb: int, compress: bool) -> None:
        """Models that are wrapped from now on reduce gradients in buckets of `bucket_mb` MiB (DDP's default is 25) and,
        with `compress`, rounded to bfloat16."""
        options, hooks = self._accelerator.ddp_handler, DDPCommunicationHookType
        options.bucket_cap_mb, options.comm_hook = bucket_mb, hooks.BF16 if compress else hooks.NO

    @_collective("set-up of DDP")
    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Wraps `model` in autocast, DDP and torch.compile instead of earlier wrappers, with rank 0's weights."""
        self._accelerator.free_memory()
        for mark in ("forward", "_original_forward", "_is_accelerate_prepared"):
            model.__dict__.pop(mark, None)
        model.to(self.device)
        self.broadcast_(model)
        with warnings.catch_warnings():  # Accelerate uses the old name of the argument
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            return self._accelerator.prepare(model, optimizer)

    def prepare_for_eval(self, model: nn.Module) -> nn.Module:
        """Wraps a `model` that is not trained in autocast and torch.compile."""
        model.to(self.device)
        self.broadcast_(model)
        return self._accelerator.prepare_model(model, evaluation_mode=True)

    @_collective("broadcast")
    def broadcast_(self, model: nn.Module) -> None:
        """Broadcasts rank 0's weights and buffers to every rank."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def backward(self, loss: Tensor) -> None:
        """Backpropagates `loss`, scaled in fp16."""
        if self._reduces_gradients:
            self._backward_and_reduce(loss)
        else:
            self._accelerator.backward(loss)

    @_collective("all-reduce", has_place=False)
    def _backward_and_reduce(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def grad_sync(self, model: nn.Module, now: bool) -> AbstractContextManager[Any]:
        """A context for forward and backward passes that reduces gradients over ranks only if `now`."""
        return nullcontext() if now else self._without_reduction(model)

    @contextlib.contextmanager
    def _without_reduction(self, model: nn.Module) -> Iterator[None]:
        self._reduces_gradients = False
        try:
            with self._accelerator.no_sync(model):
                yield
        finally:
            self._reduces_gradients = True

    @_collective("all-reduce")
    def weighted_mean(self, value: Tensor, weight: float) -> Tensor:
        """The mean of all ranks' `value`, weighted by their `weight`; the same on every rank."""
        if self.size == 1:
            return value
        total = torch.cat([value.flatten() * weight, torch.tensor([weight], dtype=value.dtype, device=value.device)])
        dist.all_reduce(total)
        return (total[:-1] / total[-1]).view_as(value)

    @_collective("all-reduce")
    def all_reduce_sum_(self, value: Tensor) -> Tensor:
        """Sums over ranks, in place and without waiting for the device."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    @_collective("all-reduce")
    def all_reduce_min_(self, value: Tensor) -> Tensor:
        """Takes the minimum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MIN)
        return value

    def wait_for_device(self) -> None:
        """Returns when the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @_collective("gather")
    def gather(self, value: Tensor) -> Tensor:
        """All ranks' `value` (of equal shapes), concatenated: [size * n, ...]."""
        if self.size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    @_collective("work on rank 0")
    def run_on_main(self, work: Callable[[], str], per_node: bool = False) -> str:
        """Runs `work` on rank 0 (or on each node's first rank) and returns its result on every rank.

        The other ranks wait at the store, for as long as it takes: no collective is open that could time out. Where
        `work` raises UserError, every rank (of the node) raises it; after any other failure they raise RankError.
        """
        if self._store is None:
            return work()
        self._check_failed()
        nodes = self.nodes if per_node else 1
        self._turns += 1
        turn = f"turn {self._turns}"
        key = f"{turn} of node {self.node}" if per_node else turn
        is_first = self.is_first_on_node if per_node else self.is_main
        answer = self._work_for_others(work, key) if is_first else self._await(key)
        if answer[0] == "-":
            self._await_readers(key, self.node_size if per_node else self.size)
            if nodes > 1 and is_first:
                self._tell_failure(answer[1:])
            if not is_first:
                self._let_the_first_speak()
            raise (NodeError if per_node else UserError)(answer[1:])
        if nodes > 1:  # a node that went on alone would wait in a collective for one that failed
            if is_first and self._store.add(f"nodes after {turn}", 1) == nodes:
                self._store.set(f"{turn} everywhere", "+")
            self._await(f"{turn} everywhere")
        return answer[1:]

    def _work_for_others(self, work: Callable[[], str], key: str) -> str:
        self.waiting = False
        try:
            answer = "+" + work()
        except UserError as mistake:
            answer = f"-{mistake}"
        except BaseException as error:
            self.report_failure(error)
            raise
        finally:
            self.waiting = True
        self._store.set(key, answer)
        return answer

    def _await(self, key: str) -> str:
        """The value of `key`, once another process has set it. Raises RankError when one has failed."""
        try:
            while not self._store.check([key]):
                self._check_failed()
                time.sleep(rendezvous.poll_interval(self.size))
            return self._store.get(key).decode()
        except RuntimeError:
            raise self._rank_error(0, _LOST) from None

    def _check_failed(self) -> None:
        """Raises RankError when another process has failed."""
        try:
            if not self._store.check(["failed"]):
                return
            rank, code, reason = self._store.get("failed").decode().split(" ", 2)
            self._store.add("failed read", 1)
        except RuntimeError:  # includes torch's DistError: rank 0 and its store have ended
            raise self._rank_error(0, _LOST) from None
        raise self._rank_error(int(rank), reason, int(code))

    def _rank_error(self, rank: int, reason: str, code: int = 1) -> RankError:
        is_mistake = code == 2  # which rank 0 prints itself, as the only sentence on its machine
        is_told_here = self.speaks_without_main if rank == 0 and not is_mistake else self.is_first_on_node
        return RankError(f"rank {rank} failed ({reason}), and the other processes stop", is_told_here, code)

    def report_failure(self, error: BaseException) -> None:
        """This process ends with `error`: the others raise RankError where they wait in `run_on_main`, now or later."""
        first_line = next(iter(str(error).splitlines()), "")
        if isinstance(error, UserError):
            self._tell_failure(first_line)
        else:
            self._tell_failure(f"{type(error).__name__}: {first_line}".rstrip(": "), code=1)

    def _tell_failure(self, reason: str, code: int = 2) -> None:
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # rank 0 has ended
                self._store.compare_set("failed", "", f"{self.rank} {code} {reason}")
                self._await_readers("failed", self.size, _FAILING)

    @contextlib.contextmanager
    def sharing_failures(self) -> Iterator[None]:
        """Any exception within the context is reported to the other processes."""
        try:
            yield
        except RankError:
            raise
        except BaseException as error:
            self.report_failure(error)
            raise

    def _let_the_first_speak(self) -> None:
        """Waits until rank 0 has ended: a launcher ends all processes, rank 0 before its sentence, when one exits."""
        end = time.monotonic() + _SPEAKING
        with contextlib.suppress(RuntimeError):  # its store has ended with it
            while time.monotonic() < end:
                self._store.check(["rank 0 has ended"])
                time.sleep(rendezvous.poll_interval(self.size))

    def _await_readers(self, occasion: str, processes: int, seconds: float = _READING) -> None:
        """Rank 0, whose exit closes the store, waits until this many `processes` have read what they need."""
        count, end = self._store.add(f"{occasion} read", 1), time.monotonic() + seconds
        while self.is_main and count < processes and time.monotonic() < end:
            time.sleep(0.02)
            count = self._store.add(f"{occasion} read", 0)

    def wait_for_nodes(self, occasion: str, seconds: float) -> None:
        """The first process of every node calls it; rank 0 waits until the others have, for at most `seconds`."""
        with contextlib.suppress(RuntimeError):  # rank 0 has ended
            self._await_readers(occasion, self.nodes, seconds)

    @_collective("broadcast")
    def broadcast_tensors(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Rank 0's tensors, on the CPU of every rank; the other ranks pass None."""
        if self.size == 1:
            return tensors
        layout = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in (tensors or {}).items()}
        layout = json.loads(self.run_on_main(lambda: json.dumps(layout)))
        shared = {}
        for name, (dtype, shape) in layout.items():
            here = tensors[name] if tensors else torch.empty(shape, dtype=getattr(torch, dtype))
            here = here.to(self.device)
            dist.broadcast(here, src=0)
            shared[name] = here.to("cpu")
        return shared

    @_collective("creation of process groups")
    def batchnorm_group(self, processes: int) -> Any:
        """The process group of this rank, out of groups of `processes` consecutive ranks."""
        groups = [dist.new_group(list(range(first, first + processes))) for first in range(0, self.size, processes)]
        return groups[self.rank // processes]

    def close(self) -> None:
        """Leaves the process group after success. After an error, other ranks may wait in a collective; the launcher
        ends them."""
        if self._store is not None:
            self._await_readers("the end", self.size)
        self._accelerator.end_training()


def _set_up_gpu_arithmetic(deterministic: bool) -> None:
    """Enables TF32 in float32 products and convolutions and cuDNN's autotuner, unless results must be exact."""
    torch.backends.cuda.matmul.allow_tf32 = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cudnn.benchmark = not deterministic


def _dynamo_plugin(mode: str) -> TorchDynamoPlugin:
    """torch.compile as `--compile MODE` or the launcher requests it; every image size is compiled separately."""
    if mode:
        plugin = TorchDynamoPlugin(backend="inductor", mode=mode, dynamic=False)
    else:
        plugin = TorchDynamoPlugin(dynamic=False)
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1
    if several and plugin.mode in ("reduce-overhead", "max-autotune"):
        raise UserError(
            f"torch.compile's mode {plugin.mode} uses CUDA graphs, which DDP (several processes) does not support: "
            "take default or max-autotune-no-cudagraphs"
        )
    return plugin


def _init_group(backend: str) -> None:
    """Creates the process group of several processes, for which Accelerate would wait in silence."""
    place = launcher_env.place()
    if place is not None and not dist.is_initialized():
        if backend == "nccl":  # torch's flight recorder keeps the latest collectives, which some versions leave off
            os.environ.setdefault("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")
        store = rendezvous.meet(place)
        with rendezvous.connecting(place, backend):
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=_COLLECTIVE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective failed because another process ended, as far as the error tells."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
