"""training/checkpoint.py: a run goes on from one bit for bit, and a damaged one is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_cifar import optim
from resnet_cifar.recipe import Optimizer
from resnet_cifar.training import checkpoint

CPU = torch.device("cpu")
OPTIMIZERS = [
    "sgd",
    "adamw",
    "lamb",
    "rmsproptf",
    "muon",
    "nadamw",
    "adafactorbv",
    "lion",
]
STATE: dict[str, Any] = {"best": None, "classes": 10}


def fresh(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model as the loop has it (channels_last) and its optimiser."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10).to(memory_format=torch.channels_last)
    return model, optim.build(model, Optimizer(name=name, weight_decay=0.01, head_lr=3), 0.01, CPU)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
        optim.set_rate(optimizer, 0.01 / (step + 1))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), torch.arange(8)).backward()
        optimizer.step()


def load(saved: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = checkpoint.read_state(saved)
    model.load_state_dict(checkpoint.weights(saved))
    checkpoint.load_optimizer(saved, state["optimizer"], model, optimizer)


def same(ours: nn.Module, theirs: nn.Module) -> None:
    expected = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, optimizer = fresh(name)
    train(model, optimizer, 0, 3)
    saved = checkpoint.save(tmp_path, 3, model, optimizer, STATE)
    train(model, optimizer, 3, 6)
    again, its_optimizer = fresh(name)
    load(saved, again, its_optimizer)
    train(again, its_optimizer, 3, 6)
    same(again, model)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_saved_again_after_loading_is_the_same(name: str, tmp_path: Path) -> None:
    model, optimizer = fresh(name)
    train(model, optimizer, 0, 2)
    first = checkpoint.save(tmp_path / "a", 2, model, optimizer, STATE)
    again, its_optimizer = fresh(name)
    load(first, again, its_optimizer)
    second = checkpoint.save(tmp_path / "b", 2, again, its_optimizer, STATE)
    for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saving_and_loading_before_the_first_step_do_not_change_the_run(name: str, tmp_path: Path) -> None:
    """Asking torch for the state of an optimiser that has not stepped makes it step on zero gradients."""
    untouched, saved_at_0, resumed = fresh(name), fresh(name), fresh(name)
    saved = checkpoint.save(tmp_path, 0, *saved_at_0, STATE)
    load(saved, *resumed)
    for pair in (untouched, saved_at_0, resumed):
        train(*pair, 0, 3)
    same(saved_at_0[0], untouched[0])
    same(resumed[0], untouched[0])


def test_an_optimiser_over_other_parameters_is_not_mixed_up(tmp_path: Path) -> None:
    """State goes by the parameter's name, whatever the order of the parameters in the groups."""
    model, optimizer = fresh("adamw")
    train(model, optimizer, 0, 2)
    saved = checkpoint.save(tmp_path, 2, model, optimizer, STATE)
    again, its_optimizer = fresh("adamw")
    for group in its_optimizer.param_groups:
        group["params"].reverse()
    load(saved, again, its_optimizer)
    names = dict(again.named_parameters())
    for name, parameter in model.named_parameters():
        ours, theirs = its_optimizer.state[names[name]], optimizer.state[parameter]
        assert set(ours) == set(theirs)
        torch.testing.assert_close(ours["exp_avg"], theirs["exp_avg"], rtol=0, atol=0)


# Files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, optimizer = fresh("adamw")
    train(model, optimizer, 0, 1)
    return checkpoint.save(tmp_path / "checkpoints", 7, model, optimizer, STATE)


def test_a_checkpoint_is_three_plain_files(saved: Path) -> None:
    assert saved.name == "step-00000007"
    assert {path.name for path in saved.iterdir()} == {"model.safetensors", "optimizer.safetensors", "state.json"}
    state = json.loads((saved / "state.json").read_text())
    assert (state["format"], state["step"], state["classes"]) == (1, 7, 10)
    assert {**checkpoint.read_state(saved), "checksum": state["checksum"]} == state
    model, _ = fresh("adamw")
    weights: dict[str, Tensor] = load_file(saved / "model.safetensors")
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


FILES = ["model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "changed"])
@pytest.mark.parametrize("file", FILES)
def test_damage_is_noticed_and_the_checkpoint_is_named(file: str, damage: str, saved: Path) -> None:
    whole = (saved / file).read_bytes()
    # In state.json: the step, 7, becomes 6. Elsewhere: one bit of the last weight.
    place = whole.index(b'"step": 7') + 8 if file == "state.json" else len(whole) - 1
    changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    if damage == "missing":
        (saved / file).unlink()
    else:
        (saved / file).write_bytes({"truncated": whole[:-5], "empty": b"", "changed": changed}[damage])
    with pytest.raises(ValueError, match="step-00000007"):
        checkpoint.read_state(saved)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"checksums": {}}', '{"checksums": []}', "\xff"])
def test_a_state_file_of_another_shape_is_damage(text: str, saved: Path) -> None:
    (saved / "state.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="step-00000007"):
        checkpoint.read_state(saved)


def test_another_format_is_refused(saved: Path) -> None:
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(ValueError, match="format 2"):
        checkpoint.read_state(saved)


def test_steps_are_those_of_whole_checkpoints(tmp_path: Path) -> None:
    assert checkpoint.steps(tmp_path / "nowhere") == []
    for name in ("step-00000010", "step-00000002", "step-123456789", "step-00000004.writing", "step-5", "notes"):
        (tmp_path / name).mkdir()
    assert checkpoint.steps(tmp_path) == [2, 10, 123456789]


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (1, None, [5]),
        (2, None, [4, 5]),
        (1, 2, [2, 5]),
        (2, 5, [4, 5]),
        (3, 1, [1, 3, 4, 5]),
        (9, 1, [1, 2, 3, 4, 5]),
    ],
)
def test_the_newest_and_the_best_are_kept(keep: int, best: int | None, left: list[int], tmp_path: Path) -> None:
    for step in range(1, 6):
        (tmp_path / checkpoint.name(step)).mkdir()
    checkpoint.prune(tmp_path, keep, best)
    assert checkpoint.steps(tmp_path) == left


def test_what_a_killed_run_left_half_written_does_no_harm(tmp_path: Path) -> None:
    aside = tmp_path / "step-00000003.writing"
    aside.mkdir(parents=True)
    (aside / "model.safetensors").write_bytes(b"half")
    (aside / "other").write_bytes(b"")
    model, optimizer = fresh("sgd")
    assert checkpoint.steps(tmp_path) == []
    saved = checkpoint.save(tmp_path, 3, model, optimizer, STATE)
    checkpoint.read_state(saved)
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]


def test_a_save_that_fails_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = fresh("sgd")
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 3, model, optimizer, {"best": object()})
    assert checkpoint.steps(tmp_path) == []


def test_the_same_step_is_written_again(saved: Path) -> None:
    """A run that was started over."""
    model, optimizer = fresh("sgd")
    assert checkpoint.save(saved.parent, 7, model, optimizer, STATE) == saved
    assert load_file(saved / "optimizer.safetensors") == {}
    checkpoint.read_state(saved)
