"""optim/factory.py: weight decay, learning rates of head and layers, and unsupported optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Optimizer
from resnet_cifar.models.mlp_head import head_module
from resnet_cifar.optim.factory import (
    OWN_OPTIMIZERS,
    UNSUPPORTED_OPTIMIZERS,
    check_optimizer,
    check_optimizer_name,
    create_optimizer,
    set_lr,
)

CPU = torch.device("cpu")
KNOWN = [*timm.optim.list_optimizers(), *OWN_OPTIMIZERS]


def tiny(name: str = "test_resnet") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10)


def settings_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Parameter name -> (weight decay, multiple of the rate)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    assert len(groups) == len(names) == len({name for name, _ in groups})
    return {name: (group["weight_decay"], group["lr_scale"]) for name, group in groups}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet_gn"])
def test_norms_and_biases_do_not_decay_and_weights_do(name: str) -> None:
    model = tiny(name)
    found = settings_of(model, create_optimizer(model, Optimizer(weight_decay=0.3), 0.1, CPU))
    no_norm = (nn.Conv2d, nn.Linear)
    weights = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, no_norm)}
    assert weights
    assert {path for path, (decay, _) in found.items() if decay == 0.3} == weights
    assert {decay for path, (decay, _) in found.items() if path not in weights} == {0}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_only_the_classifier_has_the_head_multiplier(name: str) -> None:
    model = tiny(name)
    optimizer = create_optimizer(model, Optimizer(head_lr_multiplier=10), 0.1, CPU)
    head = {"fc.weight", "fc.bias", "head.weight", "head.bias", "classifier.weight", "classifier.bias"}
    found = settings_of(model, optimizer)
    at_ten = {path for path, (_, scale) in found.items() if scale == 10}
    assert len(at_ten) == 2
    assert at_ten <= head
    assert {scale for path, (_, scale) in found.items() if path not in at_ten} == {1}
    set_lr(optimizer, 0.02)
    for group in optimizer.param_groups:
        assert group["lr"] == 0.02 * group["lr_scale"]


def test_parameters_exempted_by_the_model_do_not_decay() -> None:
    """A vision transformer's position embedding is a matrix that should not shrink."""
    model = tiny("test_vit")
    assert "pos_embed" in model.no_weight_decay()
    assert settings_of(model, create_optimizer(model, Optimizer(weight_decay=0.3), 0.1, CPU))["pos_embed"][0] == 0


def test_frozen_parameters_are_left_out() -> None:
    model = tiny()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.fc.requires_grad_(True)
    optimizer = create_optimizer(model, Optimizer(), 0.1, CPU)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in model.fc.parameters()
    }


def test_sgd_is_nesterov_with_momentum() -> None:
    """Three steps against torch's own, with each group's decay and rate."""
    ours, theirs = tiny(), tiny()
    optimizer = create_optimizer(ours, Optimizer(name="sgd", weight_decay=0.1, head_lr_multiplier=5), 0.1, CPU)
    set_lr(optimizer, 0.05)
    decaying = [p for p in theirs.parameters() if p.ndim > 1 and p is not theirs.fc.weight]
    others = [p for name, p in theirs.named_parameters() if p.ndim <= 1 and name != "fc.bias"]
    groups = [
        {"params": decaying, "weight_decay": 0.1},
        {"params": others},
        {"params": [theirs.fc.weight], "weight_decay": 0.1, "lr": 0.25},
        {"params": [theirs.fc.bias], "lr": 0.25},
    ]
    reference = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for model, stepper in ((ours, optimizer), (theirs, reference)):
            stepper.zero_grad()
            model(x).square().mean().backward()
            stepper.step()
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)


SUPPORTED = [name for name in timm.optim.list_optimizers() if not name.startswith(tuple(UNSUPPORTED_OPTIMIZERS))]
WITH_BETAS = [name for name in SUPPORTED if timm.optim.get_optimizer_info(name).has_betas]
WITH_MOMENTUM = [name for name in SUPPORTED if timm.optim.get_optimizer_info(name).has_momentum]


@pytest.mark.parametrize("name", WITH_BETAS)
def test_betas_reach_every_optimizer_that_has_them(name: str) -> None:
    betas = (0.7, 0.8, 0.85)[: timm.optim.get_optimizer_info(name).num_betas]
    model = tiny()
    optimizer = create_optimizer(model, Optimizer(name=name, betas=betas), 0.1, CPU)
    key, expected = ("beta1", betas[0]) if name.endswith("adafactor") else ("betas", betas)  # it uses the first
    assert {group[key] for group in optimizer.param_groups} == {expected}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with pytest.raises(UserError, match=rf"optimizer.betas 0.5: {name} takes [23] of them: give as many"):
        check_optimizer(Optimizer(name=name, betas=(0.5,)))


@pytest.mark.parametrize("name", WITH_MOMENTUM)
def test_momentum_reaches_every_optimizer_that_has_it(name: str) -> None:
    for momentum in (0.9, 0.6, 0.0):
        optimizer = create_optimizer(tiny(), Optimizer(name=name, momentum=momentum), 0.1, CPU)
        assert {group["momentum"] for group in optimizer.param_groups} == {momentum}


def test_sgd_without_momentum_is_plain() -> None:
    """The update is lr times the gradient; no buffers are kept, on a GPU either."""
    for device in ("cpu", "cuda"):
        model = tiny()
        before = [p.detach().clone() for p in model.parameters()]
        settings = Optimizer(momentum=0.0, weight_decay=0.0)
        optimizer = create_optimizer(model, settings, 0.1, torch.device(device))
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 2.0)
        set_lr(optimizer, 0.25)
        optimizer.step()
        for old, new in zip(before, model.parameters(), strict=True):
            torch.testing.assert_close(new, old - 0.5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            Optimizer(name="adamw", momentum=0.8),
            "optimizer.momentum 0.8 does not apply to adamw (optimizer.betas sets its moments): remove it",
        ),
        (Optimizer(name="adagrad", momentum=0.8), "optimizer.momentum 0.8 does not apply to adagrad: remove it"),
        (Optimizer(name="rmsprop_keras", momentum=0.8), "optimizer.momentum 0.8 does not apply to rmsprop_keras"),
        (Optimizer(name="sgd", betas=(0.9, 0.99)), "optimizer.betas 0.9,0.99: sgd has none: remove it"),
        (Optimizer(name="rmsprop_keras", betas=(0.9,)), "optimizer.betas 0.9: rmsprop_keras has none: remove it"),
    ],
)
def test_a_momentum_or_betas_that_do_not_apply_are_refused(settings: Optimizer, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check_optimizer(settings)
    assert str(caught.value).startswith(sentence)


REFUSED = [name for name in KNOWN if name.startswith(("bnb", "fused", "kron", "adahessian"))]
REASONS = {
    "kronw": "draws random numbers",
    "adahessian": "second derivatives",
    "fusedsgd": "apex",
    "bnblion8bit": "bitsandbytes",
}


@pytest.mark.parametrize("name", REASONS)
def test_a_refusal_is_one_sentence_that_names_the_optimizer_and_says_why(name: str) -> None:
    with pytest.raises(UserError) as caught:
        check_optimizer_name(name)
    text = str(caught.value)
    assert text.startswith(f"optimizer.name {name!r} is not supported, it")
    assert REASONS[name] in text
    assert "\n" not in text


def test_every_unsupported_entry_matches_only_names_that_start_with_it() -> None:
    for part in UNSUPPORTED_OPTIMIZERS:
        assert [name for name in KNOWN if part in name] == [name for name in KNOWN if name.startswith(part)] != []


@pytest.mark.parametrize("spelled", [str.lower, str.capitalize, str.upper])
@pytest.mark.parametrize("name", ["kron", "kronw", "adahessian", "fusedsgd", "fusedadam", "bnbadam", "bnblion8bit"])
def test_some_names_are_refused_however_they_are_spelled(name: str, spelled: type[str]) -> None:
    assert name in REFUSED
    with pytest.raises(UserError, match=r"optimizer\.name"):
        check_optimizer_name(spelled(name))


@pytest.mark.parametrize("name", REFUSED)
def test_suggested_alternatives_are_supported(name: str) -> None:
    with pytest.raises(UserError) as caught:
        check_optimizer_name(name)
    offered = str(caught.value).rsplit("use ", 1)[1].replace(" or ", ", ").split(", ")
    for other in offered:
        assert check_optimizer_name(other.strip("'"))


@pytest.mark.parametrize("name", ["SGD", "AdamW", "lamb"])
def test_a_name_may_be_written_in_capitals(name: str) -> None:
    assert check_optimizer_name(name) == name.lower()


@pytest.mark.parametrize(("written", "meant"), [("sdg", "sgd"), ("adam-w", "adamw"), ("rmsproptff", "rmsproptf")])
def test_an_unknown_name_suggests_one(written: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        check_optimizer_name(written)
    assert str(caught.value) == (f"optimizer.name {written!r} is not one of timm's optimizers; did you mean {meant}?")


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in REFUSED])
def test_every_other_name_can_be_built_and_steps(name: str) -> None:
    """To add an optimizer of timm, open nothing."""
    torch.manual_seed(0)
    model = tiny()
    optimizer = create_optimizer(model, Optimizer(name=name), 0.1, CPU)
    before = [p.detach().clone() for p in model.parameters()]
    x = torch.randn(2, 3, 32, 32)
    for _ in range(2):
        set_lr(optimizer, 0.01)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_layer_decay_lowers_the_rate_away_from_the_head(name: str) -> None:
    model = tiny(name)
    settings = Optimizer(weight_decay=0.3, layer_decay=0.5, head_lr_multiplier=4)
    found = settings_of(model, create_optimizer(model, settings, 0.1, CPU))
    theirs = {}
    for group in timm.optim.param_groups_layer_decay(
        model, 0.3, layer_decay=0.5, no_weight_decay_list=getattr(model, "no_weight_decay", set)()
    ):
        theirs |= {id(p): (group["weight_decay"], group["lr_scale"]) for p in group["params"]}
    head = {id(p) for p in head_module(model).parameters()}
    for path, parameter in model.named_parameters():
        decay, scale = theirs[id(parameter)]
        assert found[path] == (decay, scale * (4 if id(parameter) in head else 1)), path
    first = next(path for path in found if "conv1" in path or "patch_embed" in path)
    assert found[first][1] < 0.5 < max(scale for _, scale in found.values()) == 4


def test_frozen_parameters_are_in_no_group() -> None:
    model = tiny()
    model.requires_grad_(False)
    head_module(model).requires_grad_()
    optimizer = create_optimizer(model, Optimizer(layer_decay=0.7), 0.1, CPU)
    ours = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert ours == {id(p) for p in head_module(model).parameters()}


def test_fused_sgd_begins_from_zeros_which_changes_nothing() -> None:
    """Its buffers are not memory as it was found: fp16's scaler may skip the update that would fill them."""
    weights = []
    for device in ("cpu", "cuda"):  # which asks for fused updates, and CPUs have them too
        model = tiny()
        optimizer = create_optimizer(model, Optimizer(weight_decay=0.1), 0.1, torch.device(device))
        assert bool(optimizer.defaults.get("fused")) == (device == "cuda")
        if device == "cuda":
            buffers = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
            assert all((buffer == 0).all() for buffer in buffers)
        for step in range(3):
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            set_lr(optimizer, 0.1)
            optimizer.step()
        weights.append([p.detach().clone() for p in model.parameters()])
    for plain, fused in zip(*weights, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)


def test_a_foreach_update_of_lamb_is_a_few_operators_however_many_weights() -> None:
    """On GPUs timm takes them by itself (from 1.0.31 on); 161 weights of a ResNet-50 were 2,215 operators before.

    On a CPU it is left off: one update of a ResNet-50 takes 0.21 s so, and 0.14 s weight by weight.
    """
    counts = {}
    for name in ("test_resnet", "test_vit"):
        model = tiny(name)
        optimizer = create_optimizer(model, Optimizer(name="lamb", weight_decay=0.01), 0.1, CPU)
        assert [group["foreach"] for group in optimizer.param_groups] == [None] * 4, "timm chooses by the device"
        for group in optimizer.param_groups:
            group["foreach"] = True
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()  # makes the state
        with _Names() as names:
            optimizer.step()
        counts[name] = len(names.seen)
        # Each group's number of updates, which lies on the host.
        assert names.seen.count("aten::_local_scalar_dense") == 4
    assert max(counts.values()) <= 4 * 20 + 5
    assert len(set(counts.values())) == 1


class _Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(op.name().partition(".")[0])
        return op(*args, **(kwargs or {}))
