"""checkpoints/snapshot.py: with every supported optimizer a run resumes bit for bit from a checkpoint."""

from __future__ import annotations

import contextlib
import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_cifar.checkpoints import checkpoint, snapshot
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Optimizer
from resnet_cifar.optim.factory import OWN_OPTIMIZERS, check_optimizer_name, create_optimizer, set_lr

CPU = torch.device("cpu")
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def is_refused(name: str) -> bool:
    try:
        check_optimizer_name(name)
    except UserError:
        return True
    return False


KNOWN = [*timm.optim.list_optimizers(), *OWN_OPTIMIZERS]
ACCEPTED = [name for name in KNOWN if not is_refused(name)]

Pair = tuple[nn.Module, torch.optim.Optimizer]


@cache
def initial() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10)


def fresh(name: str, dtype: torch.dtype = torch.float32) -> Pair:
    """A model as the loop has it (channels_last) and its optimizer, in four groups."""
    model = copy.deepcopy(initial()).to(memory_format=torch.channels_last, dtype=dtype)
    return model, create_optimizer(model, Optimizer(name=name, weight_decay=0.01, head_lr_multiplier=3), 0.01, CPU)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    dtype = next(model.parameters()).dtype
    for step in range(first, last):
        inputs = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(step)).to(dtype)
        set_lr(optimizer, 0.01 / (step + 1))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs.contiguous(memory_format=torch.channels_last)), torch.arange(8)).backward()
        optimizer.step()


def save(folder: Path, pair: Pair) -> Path:
    return checkpoint.write(folder, 3, snapshot.take(*pair), {})


def load(saved: Path, pair: Pair) -> None:
    snapshot.restore(checkpoint.read(saved)[0], *pair)


def different(ours: nn.Module, theirs: nn.Module) -> list[str]:
    """The weights and buffers that are not the same to the bit."""
    expected = theirs.state_dict()
    assert set(ours.state_dict()) == set(expected)
    return [name for name, tensor in ours.state_dict().items() if not torch.equal(tensor, expected[name])]


# Every optimizer


def test_every_name_is_resumed_below_or_refused() -> None:
    refused = {name for name in KNOWN if is_refused(name)}
    assert refused | set(ACCEPTED) == set(KNOWN)
    assert refused == {name for name in KNOWN if name.startswith(("bnb", "fused", "kron", "adahessian"))}
    assert len(ACCEPTED) >= 80


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_run_goes_on_bit_for_bit_and_what_it_saves_again_is_the_same(name: str, tmp_path: Path) -> None:
    ours, theirs = fresh(name), fresh(name)
    train(*ours, 0, 3)
    first = save(tmp_path / "a", ours)
    train(*ours, 3, 6)
    load(first, theirs)
    second = save(tmp_path / "b", theirs)
    for file in FILES:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file
    assert different(theirs[0], ours[0]), "the second half of training changed nothing"
    train(*theirs, 3, 6)
    assert different(theirs[0], ours[0]) == []


@pytest.mark.parametrize("name", ACCEPTED)
def test_saving_and_loading_before_the_first_step_change_nothing(name: str, tmp_path: Path) -> None:
    """Asking torch for the state of an optimizer that has not stepped makes some step on zero gradients."""
    untouched, saved_at_0, resumed = fresh(name), fresh(name), fresh(name)
    load(save(tmp_path, saved_at_0), resumed)
    assert len(saved_at_0[1].state) == len(untouched[1].state)
    for pair in (untouched, saved_at_0, resumed):
        train(*pair, 0, 2)
    assert different(saved_at_0[0], untouched[0]) == []
    assert different(resumed[0], untouched[0]) == []


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "muon", "nadam", "adafactorbv"])
def test_the_proofs_precision_goes_on_bit_for_bit_too(name: str, tmp_path: Path) -> None:
    ours, theirs = fresh(name, torch.float64), fresh(name, torch.float64)
    train(*ours, 0, 3)
    load(save(tmp_path, ours), theirs)
    for pair in (ours, theirs):
        train(*pair, 3, 6)
    assert different(theirs[0], ours[0]) == []


def test_lamb_goes_on_bit_for_bit_with_the_foreach_operators_that_gpus_use(tmp_path: Path) -> None:
    ours, theirs = fresh("lamb"), fresh("lamb")
    for _, optimizer in (ours, theirs):
        for group in optimizer.param_groups:
            group["foreach"] = True
    train(*ours, 0, 3)
    load(save(tmp_path, ours), theirs)
    assert all(group["foreach"] for group in theirs[1].param_groups)
    for pair in (ours, theirs):
        train(*pair, 3, 6)
    assert different(theirs[0], ours[0]) == []


# What a snapshot is


def test_a_snapshot_is_a_copy_that_training_does_not_change() -> None:
    pair = fresh("adamw")
    train(*pair, 0, 1)
    taken = snapshot.take(*pair)
    kept = copy.deepcopy(taken)
    train(*pair, 1, 2)
    for now, before in ((taken.weights, kept.weights), (taken.optimizer, kept.optimizer)):
        assert now
        assert all(torch.equal(tensor, before[name]) for name, tensor in now.items())
    assert taken.scalars == kept.scalars


def test_on_a_cpu_a_snapshot_is_copied_once() -> None:
    pair = fresh("adamw")
    train(*pair, 0, 1)
    taken = snapshot.take(*pair)
    assert taken.copied is None
    assert taken.on_host() is taken


class _Copies(TorchDispatchMode):
    """Notes the copies from one device to another beside what streams and events are asked."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op is torch.ops.aten.copy_.default and args[0].device != args[1].device:
            self.log.append("copy, not waiting" if args[2] else "copy")
        result = op(*args, **(kwargs or {}))
        if op is torch.ops.aten._to_copy.default and result.device != args[0].device:
            self.log.append("copy")
        return result


def test_a_gpus_copies_reach_the_host_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fake CUDA tensors and streams: what is asked in which order, and that pageable memory will do."""
    log: list[str] = []

    class Event:
        def record(self, stream: Any) -> None:
            log.append(f"record on {stream}")

        def synchronize(self) -> None:
            log.append("wait")

    class Stream:
        def __init__(self, device: torch.device) -> None:
            assert device.type == "cuda"

        def __str__(self) -> str:
            return "its own"

        def wait_event(self, event: Event) -> None:
            log.append("its own waits for the copies")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the step's")
    with FakeTensorMode(), _Copies(log):
        model = nn.Linear(3, 4, device="cuda")
        taken = snapshot.take(model, torch.optim.SGD(model.parameters(), lr=0.1))
        assert log == ["record on the step's"]
        log.clear()
        there = taken.on_host()
    own = ["its own waits for the copies", *["copy, not waiting"] * 2, "record on its own", "wait"]
    assert log == own
    assert {tensor.device.type for tensor in there.weights.values()} == {"cpu"}
    assert there.on_host() is there


def test_a_full_device_is_left_by_the_old_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no copy fits the device, the host waits for one."""
    pair = fresh("adamw")
    train(*pair, 0, 1)
    expected = snapshot.take(*pair)

    def full(tensor: Tensor, **options: Any) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Tensor, "clone", full)
    taken = snapshot.take(*pair)
    monkeypatch.undo()
    for found, wanted in ((taken.weights, expected.weights), (taken.optimizer, expected.optimizer)):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) and found[name].is_contiguous() for name in found)


def test_a_snapshot_has_plain_names_and_the_optimizers_groups() -> None:
    pair = fresh("adamw")
    train(*pair, 0, 1)
    taken = snapshot.take(*pair)
    assert set(taken.weights) == set(pair[0].state_dict())
    assert {f"state/{name}/exp_avg" for name, _ in pair[0].named_parameters()} <= set(taken.optimizer)
    assert len(taken.scalars["groups"]) == len(pair[1].param_groups) == 4
    assert all(tensor.is_contiguous() for tensor in (*taken.weights.values(), *taken.optimizer.values()))


def test_state_goes_by_the_parameters_name_whatever_their_order() -> None:
    (model, optimizer), (again, its_optimizer) = fresh("adamw"), fresh("adamw")
    train(model, optimizer, 0, 2)
    for group in its_optimizer.param_groups:
        group["params"].reverse()
    snapshot.restore(snapshot.take(model, optimizer), again, its_optimizer)
    parameters = dict(again.named_parameters())
    for name, parameter in model.named_parameters():
        ours, theirs = its_optimizer.state[parameters[name]], optimizer.state[parameter]
        assert set(ours) == set(theirs)
        assert torch.equal(ours["exp_avg"], theirs["exp_avg"])


def test_the_optimizers_tensors_are_laid_out_like_their_parameters() -> None:
    """A sum over a tensor of another layout runs in another order, and ends in other bits."""
    ours, theirs = fresh("lamb"), fresh("lamb")
    train(*ours, 0, 1)
    snapshot.restore(snapshot.take(*ours), *theirs)
    strides = {parameter.stride() for parameter in theirs[0].parameters() if parameter.ndim == 4}
    assert any(stride[1] == 1 for stride in strides), "the model is not channels_last"
    for parameter in theirs[0].parameters():
        assert theirs[1].state[parameter]["exp_avg"].stride() == parameter.stride()


# A snapshot of something else


def broken(taken: snapshot.Snapshot, **parts: dict[str, Any]) -> snapshot.Snapshot:
    whole = {"weights": taken.weights, "optimizer": taken.optimizer, "scalars": taken.scalars}
    return snapshot.Snapshot(**{**whole, **parts})


def sentence(wrong: snapshot.Snapshot, pair: Pair) -> str:
    with pytest.raises(UserError) as caught:
        snapshot.restore(wrong, *pair)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def taken() -> snapshot.Snapshot:
    pair = fresh("adamw")
    train(*pair, 0, 1)
    return snapshot.take(*pair)


def forged(tmp_path: Path, wrong: snapshot.Snapshot) -> snapshot.Snapshot:
    """As it comes from a checkpoint whose checksums were made to fit."""
    return checkpoint.read(checkpoint.write(tmp_path, 3, wrong, {}))[0]


def test_a_weight_of_another_shape_is_named(taken: snapshot.Snapshot, tmp_path: Path) -> None:
    wrong = broken(taken, weights={**taken.weights, "fc.bias": torch.zeros(11)})
    text = sentence(forged(tmp_path, wrong), fresh("adamw"))
    assert text == "fc.bias has the shape [11], and the model's has [10]"


def test_a_weight_that_is_missing_is_named(taken: snapshot.Snapshot, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in taken.weights.items() if name != "fc.bias"}
    assert sentence(forged(tmp_path, broken(taken, weights=weights)), fresh("adamw")) == (
        "fc.bias is not in the checkpoint"
    )


def test_a_weight_too_many_is_named(taken: snapshot.Snapshot, tmp_path: Path) -> None:
    wrong = broken(taken, weights={**taken.weights, "fc.scale": torch.ones(1)})
    assert sentence(forged(tmp_path, wrong), fresh("adamw")) == "fc.scale is not in the model"


@pytest.mark.parametrize("wrong", [torch.zeros(11), torch.zeros(0)])
def test_an_optimizers_tensor_of_another_shape_is_named(
    wrong: Tensor, taken: snapshot.Snapshot, tmp_path: Path
) -> None:
    tensors = {**taken.optimizer, "state/fc.bias/exp_avg": wrong}
    text = sentence(forged(tmp_path, broken(taken, optimizer=tensors)), fresh("adamw"))
    assert text == f"the optimizer's fc.bias/exp_avg has the shape {list(wrong.shape)}, not [10]"


def test_another_number_of_groups_is_refused(taken: snapshot.Snapshot, tmp_path: Path) -> None:
    scalars = {**taken.scalars, "groups": taken.scalars["groups"][:1]}
    text = sentence(forged(tmp_path, broken(taken, scalars=scalars)), fresh("adamw"))
    assert text == "the optimizer's state has 1 groups of weights, not 4"


@pytest.mark.parametrize("key", ["state/fc.scale/exp_avg", "group/9/lr", "elsewhere"])
def test_an_optimizers_tensor_that_belongs_nowhere_is_named(key: str, taken: snapshot.Snapshot, tmp_path: Path) -> None:
    wrong = broken(taken, optimizer={**taken.optimizer, key: torch.ones(10)})
    assert key in sentence(forged(tmp_path, wrong), fresh("adamw"))


def test_an_optimizers_tensor_that_is_missing_is_named(taken: snapshot.Snapshot, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in taken.optimizer.items() if name != "state/fc.bias/exp_avg"}
    assert "fc.bias/exp_avg" in sentence(forged(tmp_path, broken(taken, optimizer=tensors)), fresh("adamw"))


def test_nothing_is_changed_where_a_snapshot_is_refused(taken: snapshot.Snapshot) -> None:
    pair = fresh("adamw")
    sentence(broken(taken, optimizer={**taken.optimizer, "state/fc.bias/exp_avg": torch.zeros(11)}), pair)
    assert different(pair[0], initial()) == []
