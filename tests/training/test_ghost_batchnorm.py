"""Ghost BatchNorm: every implementation against torch's own BatchNorm of each group, alone and inside timm's models.

Without a GPU the Triton kernels run in Triton's interpreter, and are compiled for sm_90 as an H100 would run them.
"""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_cifar.models.ghost_batchnorm import GhostBatchNorm, apply_ghost_batchnorm

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read where Triton is imported
ALL = ["native", "compiled", *(["triton"] if ON_GPU or INTERPRETED else [])]
EPS = 1e-5
CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
# (shape, groups): images, a pooled map of 1x1, rows without a place, more channels than a tile has
SHAPES = [((32, 16, 7, 5), 4), ((24, 8, 1, 1), 3), ((64, 20), 2), ((16, 70, 3, 3), 2)]
LARGE = (
    [((256, 64, 56, 56), 8), ((256, 2048, 7, 7), 8), ((1024, 256, 32, 32), 32)] if ON_GPU else [((32, 130, 5, 5), 2)]
)


def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int) -> Tensor:
    """Each group through torch's batch_norm."""
    return torch.cat([F.batch_norm(rows, None, None, weight, bias, True, 0.0, EPS) for rows in x.chunk(groups)])


def example(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Tensor, ...]:
    """Input, weight, bias and the output's gradient; channels far from zero, so that cancellation would show."""
    generator = torch.Generator().manual_seed(0)
    channel = (1, -1, *[1] * (len(shape) - 2))

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x, dy = normal(*shape) * 2 + 3 * normal(shape[1]).view(channel), normal(*shape)
    weight, bias = normal(shape[1]), normal(shape[1])
    x, dy = x.to(DEVICE, dtype), dy.to(DEVICE, dtype)
    if x.dim() == 4:
        x, dy = x.contiguous(memory_format=memory_format), dy.contiguous(memory_format=memory_format)
    of_weights = torch.promote_types(dtype, torch.float32)
    return x, weight.to(DEVICE, of_weights), bias.to(DEVICE, of_weights), dy


def forward_and_backward(norm: Callable[[Tensor, Tensor, Tensor], Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Output, then the gradients of input, weight and bias."""
    *leaves, dy = (tensor.detach().clone(memory_format=torch.preserve_format) for tensor in tensors)
    output = norm(*(leaf.requires_grad_() for leaf in leaves))
    output.backward(dy)
    return output.detach(), *(leaf.grad for leaf in leaves)


def ghost(shape: tuple[int, ...], groups: int, implementation: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A module's forward pass as a function of its weight and bias too."""
    norm = apply_ghost_batchnorm(nn.BatchNorm2d(shape[1], eps=EPS).to(DEVICE), shape[0] // groups, implementation)
    return lambda x, weight, bias: torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))


@pytest.mark.parametrize("implementation", ["native", "compiled"])
@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_float64_is_batch_norm_of_each_group(
    shape: tuple[int, ...], groups: int, memory_format: torch.memory_format, implementation: str
) -> None:
    tensors = example(shape, torch.float64, memory_format)
    expected = forward_and_backward(lambda x, weight, bias: reference(x, weight, bias, groups), *tensors)
    found = forward_and_backward(ghost(shape, groups, implementation), *tensors)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert found[0].stride() == tensors[0].stride()


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize(("shape", "groups"), SHAPES + LARGE)
def test_statistics_are_float32_whatever_the_input(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, tolerance: float, implementation: str
) -> None:
    """Against float64, within the rounding of the input's type."""
    tensors = example(shape, dtype, CHANNELS_LAST)
    exact = (tensor.double() for tensor in tensors)
    expected = forward_and_backward(lambda x, weight, bias: reference(x, weight, bias, groups), *exact)
    found = forward_and_backward(ghost(shape, groups, implementation), *tensors)
    for name, mine, theirs in zip(("output", "input", "weight", "bias"), found, expected, strict=True):
        assert mine.isfinite().all(), name
        assert ((mine.double() - theirs).norm() / theirs.norm()).item() < tolerance, name
    assert (found[0].dtype, found[0].stride()) == (dtype, tensors[0].stride())
    assert (found[2].dtype, found[3].dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("implementation", ["native", "compiled"])
def test_a_last_group_that_is_not_full_and_a_norm_without_weights(implementation: str) -> None:
    x = example((10, 3, 5, 5), torch.float64, CONTIGUOUS)[0]
    for affine in (True, False):
        norm = nn.BatchNorm2d(3, affine=affine).double().to(DEVICE)
        expected = torch.cat([F.batch_norm(rows, None, None, norm.weight, norm.bias, True) for rows in x.split(4)])
        found = apply_ghost_batchnorm(norm, 4, implementation)(x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", ["native", "compiled"])
def test_gradients_are_those_of_finite_differences(implementation: str) -> None:
    x, weight, bias, _ = (tensor.requires_grad_() for tensor in example((6, 3, 2, 2), torch.float64, CONTIGUOUS))
    assert torch.autograd.gradcheck(ghost((6, 3, 2, 2), 3, implementation), (x, weight, bias))


@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="the Triton kernels are among the implementations above")
def test_triton_kernels_in_tritons_interpreter() -> None:
    triton = pytest.importorskip("triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
        pytest.skip("Triton 3.6's interpreter cannot take a loop's ends from NumPy 2")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "float32 and triton"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{len(SHAPES + LARGE) * 3} passed" in done.stdout


@pytest.mark.skipif(INTERPRETED, reason="what is interpreted is not compiled")
@pytest.mark.proof_only
def test_the_kernels_compile_for_an_h100() -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from resnet_cifar.models import ghost_batchnorm_triton as kernels

    block = {"BLOCK_ROWS": 64, "BLOCK_CHANNELS": 64}
    of_x = {"x", "out", "grad", "dx"}
    for kernel, dtype in itertools.product(
        (kernels.sums_kernel, kernels.normalize_kernel, kernels.grad_sums_kernel, kernels.grad_input_kernel),
        ("bf16", "fp16", "fp32"),
    ):
        constants = {name: 8 if name == "MAX_SPLITS" else block[name] for name in kernel.arg_names if name.isupper()}
        numbers = {"rows", "channels", "groups", "splits", "rows_per_split", "rows_per_chunk", "chunks"}
        signature = {
            name: "constexpr" if name.isupper()
            else "i32" if name in numbers
            else "fp32" if name == "eps"
            else f"*{dtype}" if name in of_x
            else "*fp32"
            for name in kernel.arg_names
        }  # fmt: skip
        source = ASTSource(kernel, signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert ".target sm_90" in compiled.asm["ptx"]
        assert compiled.asm["cubin"]


def test_triton_is_used_only_for_eager_cuda_in_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from resnet_cifar.models import ghost_batchnorm

    monkeypatch.setattr(ghost_batchnorm, "_has_triton", lambda: True)
    choose = ghost_batchnorm.choose_implementation
    with FakeTensorMode():
        images = torch.empty(8, 3, 4, 4, device="cuda", dtype=torch.bfloat16)
        assert choose(images) == "native"
        assert choose(images.contiguous(memory_format=CHANNELS_LAST)) == "triton"
        assert choose(images.contiguous(memory_format=CHANNELS_LAST).double()) == "native"
        assert choose(torch.empty(8, 3, device="cuda")) == "triton"
        assert choose(torch.empty(8, 3)) == "native"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert choose(torch.empty(8, 3)) == "compiled"


def built(name: str = "test_resnet") -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).double().to(DEVICE, memory_format=CHANNELS_LAST)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def images(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, 32, 32, generator=generator, dtype=torch.float64)
    return x.to(DEVICE).contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("implementation", ["native", "compiled"])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_model_sees_each_group_as_a_batch_of_its_own(name: str, implementation: str) -> None:
    plain, grouped = built(name), built(name)
    if name == "test_efficientnet":
        assert any(isinstance(module, BatchNormAct2d) for module in plain.modules())
    apply_ghost_batchnorm(grouped, 4, implementation)
    assert not any(
        isinstance(module, _BatchNorm) and not isinstance(module, GhostBatchNorm) for module in grouped.modules()
    )
    x = images(12)
    expected, found = torch.cat([plain(rows) for rows in x.split(4)]), grouped(x)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(found, copy.deepcopy(plain)(x))
    for outputs, model in ((expected, plain), (found, grouped)):
        outputs.square().mean().backward()
        assert all(p.grad is not None for p in model.parameters())
    for ours, theirs in zip(grouped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_training_leaves_running_statistics_alone() -> None:
    """They differ from one number of processes to another, and are estimated before every evaluation."""
    model = apply_ghost_batchnorm(built(), 4)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(images(8))
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_names_parameters_and_evaluation_stay(name: str) -> None:
    plain = built(name).eval()
    parameters, x = list(plain.parameters()), images(6)
    expected, names = plain(x), list(plain.state_dict())
    grouped = apply_ghost_batchnorm(plain, 4)
    assert list(grouped.state_dict()) == names
    assert all(ours is theirs for ours, theirs in zip(grouped.parameters(), parameters, strict=True))
    assert not any(module.training for module in grouped.modules())
    torch.testing.assert_close(grouped(x), expected, rtol=0, atol=0)


def test_a_copy_is_grouped_and_apart() -> None:
    grouped = apply_ghost_batchnorm(built(), 4)
    twin = copy.deepcopy(grouped)
    x = images(8)
    torch.testing.assert_close(twin(x), grouped(x), rtol=0, atol=0)
    with torch.no_grad():
        twin.conv1[0].weight.zero_()
    assert grouped.conv1[0].weight.abs().sum() > 0


def test_the_size_of_groups_can_be_set_again() -> None:
    again, once = apply_ghost_batchnorm(apply_ghost_batchnorm(built(), 8), 4), apply_ghost_batchnorm(built(), 4)
    x = images(8)
    torch.testing.assert_close(again(x), once(x), rtol=0, atol=0)


def test_a_norm_used_in_two_places_stays_one_module() -> None:
    norm = nn.BatchNorm2d(3)
    model = apply_ghost_batchnorm(nn.Sequential(norm, nn.Identity(), norm), 4)
    assert isinstance(model[0], GhostBatchNorm)
    assert model[0] is model[2]


def test_mixed_precision_keeps_the_inputs_type_and_channels_last() -> None:
    model = apply_ghost_batchnorm(built().float(), 8)
    seen: list[tuple[torch.dtype, torch.dtype, bool]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0].dtype, output.dtype, output.is_contiguous(memory_format=CHANNELS_LAST)))

    for module in model.modules():
        if isinstance(module, GhostBatchNorm):
            module.register_forward_hook(note)
    with torch.autocast(DEVICE, torch.bfloat16):
        model(images(16).float()).sum().backward()
    assert set(seen) == {(torch.bfloat16, torch.bfloat16, True)}
