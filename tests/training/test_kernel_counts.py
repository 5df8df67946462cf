"""Ghost BatchNorm costs a training step about as many operators, and when compiled as many kernels, as BatchNorm does.

Counted without a GPU. Run as a script (`test_kernel_counts.py resnet50 32 [GROUP_ROWS]`), this file prints what a
compiled forward and backward pass launches on an H100.
"""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_cifar.models.ghost_batchnorm import Implementation, apply_ghost_batchnorm

ROWS = 256
KERNELS = ("sums_kernel", "normalize_kernel", "grad_sums_kernel", "grad_input_kernel")


def batch(image_size: int) -> tuple[Tensor, Tensor]:
    x = torch.empty(ROWS, 3, image_size, image_size)
    return x.contiguous(memory_format=torch.channels_last), torch.zeros(ROWS, dtype=torch.int64)


class OperatorCount(TorchDispatchMode):
    """Counts the calls of aten operators, by name, except for those that launch no kernel: views and allocations.

    A view returns an alias of an argument that it does not write to. An operator of several kernels counts once, as
    native_batch_norm does, while each launch of a Triton kernel counts: the comparison is in stock BatchNorm's favour.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()  # aten::add_.Tensor
        is_view = any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns)
        is_allocation = "empty" in name
        if name.startswith("aten::") and not (is_view or is_allocation):
            self.calls[name] += 1
        return func(*args, **kwargs or {})


def count_operators(network: str, group_rows: int | None, implementation: Implementation = "auto") -> int:
    """Of one eager training step with SGD in bf16 autocast, on fake CPU tensors.

    Autograd's engine needs a GPU for gradients of fake CUDA tensors. Below autograd the two devices call the same
    operators.
    """
    with FakeTensorMode(), OperatorCount() as count:
        model = timm.create_model(network, num_classes=10)
        for module in model.modules():  # .to() cannot replace fake parameters
            for name, p in module._parameters.items():
                if p is not None and p.dim() == 4:
                    module._parameters[name] = nn.Parameter(p.detach().contiguous(memory_format=torch.channels_last))
        if group_rows:
            apply_ghost_batchnorm(model, group_rows, implementation)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
        x, y = batch(32)
        for _ in range(2):  # the first step makes the momentum's buffers
            count.calls.clear()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return count.calls.total()


def test_an_eager_step_calls_as_many_operators_whatever_the_number_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from resnet_cifar.models import ghost_batchnorm_triton

    launches: collections.Counter[str] = collections.Counter()

    class Counted:
        def __init__(self, kernel: str) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **kwargs: launches.update([self.kernel])

    for kernel in KERNELS:
        monkeypatch.setattr(ghost_batchnorm_triton, kernel, Counted(kernel))
    stock, found = count_operators("resnet50", None), {}
    for group_rows in (8, 16, 32):
        launches.clear()
        operators = count_operators("resnet50", group_rows, "triton")
        steps, norms = 2, 53
        assert launches == dict.fromkeys(KERNELS, steps * norms)
        found[group_rows] = operators + launches.total() // steps
    print(f"resnet50, eager: stock {stock} operators, ghost groups of 8, 16, 32 rows {found}")
    assert len(set(found.values())) == 1
    assert found[32] <= 1.35 * stock


@pytest.mark.proof_only  # compiling takes minutes
@pytest.mark.parametrize(
    ("network", "image_size", "group_sizes"),
    [("resnet18", 32, (32,)), ("resnet50", 32, (32, 16, 8)), ("resnet50", 224, (32,))],
)
def test_a_compiled_step_is_one_graph_of_as_many_kernels(
    network: str, image_size: int, group_sizes: tuple[int, ...]
) -> None:
    stock = run_compiled(network, image_size, None)
    for group_rows in group_sizes:
        ghost = run_compiled(network, image_size, group_rows)
        print(f"{network}, {image_size} px, compiled: stock {stock}, ghost groups of {group_rows} rows {ghost}")
        assert ghost["graphs"] == stock["graphs"] == 1
        assert ghost["library"] == stock["library"]  # convolutions and matrix products
        assert ghost["triton"] <= 1.05 * stock["triton"]


def run_compiled(network: str, image_size: int, group_rows: int | None) -> dict[str, int]:
    """`count_compiled` in a process of its own, in which torch takes itself to be on an H100."""
    pytest.importorskip("triton")
    if torch.version.cuda is None:
        pytest.skip("this torch is built without CUDA")
    command = [sys.executable, __file__, network, str(image_size), *([str(group_rows)] if group_rows else [])]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # no pool
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    if "missing" in counts:
        pytest.skip(f"torch {torch.__version__} differs inside: {counts['missing']}")
    return counts


H100 = SimpleNamespace(
    name="NVIDIA H100", gcnArchName="", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30,
    warp_size=32, regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    shared_memory_per_block=48 << 10, shared_memory_per_block_optin=227 << 10, L2_cache_size=50 << 20,
)  # fmt: skip
ANSWERS = {
    "get_device_properties": H100, "get_device_capability": (9, 0), "device_count": 1, "current_device": 0,
    "_exchange_device": 0, "_maybe_exchange_device": 0, "get_rng_state": torch.zeros(1), "set_rng_state": None,
}  # fmt: skip


def answer(name: str, value: Any) -> None:
    """torch.cuda.`name` returns `value`, whatever it is called with."""
    setattr(torch.cuda, name, lambda *args, **kwargs: value)


def count_compiled(network: str, image_size: int, group_rows: int | None) -> dict[str, Any]:
    """Kernels that inductor launches in forward pass, loss and backward pass, by kind; and the graphs of the step.

    Or {"missing": why not}, where this version of torch lacks something that has to be replaced.

    The step is traced on the CPU, where nothing of it is computed. Then its graphs go to the device "cuda", and
    inductor writes the code that would launch the kernels; this is read and never run.
    """
    try:  # names that are not public, and may differ in other versions
        import torch._inductor.compile_fx as inductor
        from torch._dynamo.device_interface import CudaInterface
        from torch._inductor.graph import GraphLowering
        from torch._subclasses import fake_tensor
        from torch.utils._triton import has_triton
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver

        for holder, names in ((torch.cuda, ANSWERS), (GraphLowering, ("codegen", "compile_to_module"))):
            for name in names:
                getattr(holder, name)
        _ = inductor.compile_fx_inner, has_triton.cache_clear, driver.set_active
    except (ImportError, AttributeError) as error:
        return {"missing": str(error)}

    for name, value in ANSWERS.items():
        answer(name, value)
    traced = trace(network, image_size, group_rows, inductor)

    answer("is_available", True)
    fake_tensor.init_gpu_context = lambda *_: None
    has_triton.cache_clear()
    CudaInterface.get_device_properties = staticmethod(torch.cuda.get_device_properties)
    driver.set_active(SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=int))
    sources: list[str] = []

    class WrittenError(Exception):
        """The code is complete; it is not loaded, which would compile kernels and start the GPU."""

    def keep_source(graph: GraphLowering) -> None:
        code, *_ = graph.codegen()
        sources.append(getattr(code, "value", code))
        raise WrittenError

    GraphLowering.compile_to_module = keep_source
    for graph, inputs, options in traced:
        try:
            with torch._inductor.config.patch(fx_graph_cache=False):
                inductor.compile_fx_inner(move_to_cuda(graph), [on_cuda(value) for value in inputs], **options)
        except Exception as error:  # inductor's own, around ours
            if "WrittenError" not in repr(error):
                raise
    assert len(sources) == 2
    calls = "\n".join(source[source.index("def call(") :] for source in sources)
    return {
        "graphs": len(traced) // 2,
        "triton": len(re.findall(r"^\s*triton_\w+\.run\(", calls, re.MULTILINE)),
        "library": len(re.findall(r"\b(?:extern_kernels\.\w+|torch\.ops\.aten\.\w+\.\w+)\(", calls)),
    }


def trace(network: str, image_size: int, group_rows: int | None, inductor: Any) -> list[tuple[Any, Any, Any]]:
    """The graphs of the forward and of the backward pass, with inputs and options, as inductor's lowering gets them."""
    traced: list[tuple[Any, Any, Any]] = []

    def keep_graph(graph: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Any:
        traced.append((graph, inputs, options))
        (outputs,) = next(node for node in graph.graph.nodes if node.op == "output").args
        values = [output.meta["val"] if isinstance(output, torch.fx.Node) else output for output in outputs]

        def run(*_: Any) -> list[Any]:  # of the right shapes, which is all that the backward pass is traced from
            return [
                torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
                if isinstance(value, Tensor) else value
                for value in values
            ]  # fmt: skip

        run._boxed_call = True  # it takes its inputs as one list
        return run

    model = timm.create_model(network, num_classes=10).to(memory_format=torch.channels_last)
    if group_rows:
        apply_ghost_batchnorm(model, group_rows)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x), y)

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        return inductor.compile_fx(graph, inputs, inner_compile=keep_graph)

    # An error, with its reason, where the graph would break.
    torch.compile(loss, backend=backend, fullgraph=True, dynamic=False)(*batch(image_size)).backward()
    return traced


def on_cuda(value: Any) -> Any:
    """The same fake tensor, on the device "cuda"."""
    if not isinstance(value, FakeTensor):
        return value
    with value.fake_mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda:0")


def move_to_cuda(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Every device that `graph` names, and the values it was traced with."""

    def moved(argument: Any) -> Any:
        return torch.device("cuda", 0) if isinstance(argument, torch.device) else argument

    for node in graph.graph.nodes:
        node.args = torch.fx.node.map_aggregate(node.args, moved)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, moved)
        if "val" in node.meta:
            node.meta["val"] = torch.utils._pytree.tree_map(on_cuda, node.meta["val"])
    graph.recompile()
    return graph


if __name__ == "__main__":
    network, image_size, *group_rows = sys.argv[1:]
    print(json.dumps(count_compiled(network, int(image_size), int(group_rows[0]) if group_rows else None)))
