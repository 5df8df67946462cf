"""Phases that train the head or all, at sizes of their own, with a moving average: stopped anywhere, the same run.

An epoch is 30.4 steps. The head learns in steps 0 to 9, all in 9 to 18, the head again in 18 to 27.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from starting import assert_same_run, assert_same_weights, interrupt, train

from resnet_cifar.checkpoints import checkpoint
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.training.trainer import Trainer

RUN = TrainOptions(recipe="phases.yaml", run="run")
NORMS = 8  # batches of an evaluation on which norms are estimated
PHASES = """
phases:
  - {epochs: 0.3, lr: 1.0e-2, trainable: head, image_size: 24}
  - {epochs: 0.3, lr: 1.0e-3, warmup_epochs: 0.1, schedule: linear}
  - {epochs: 0.3, lr: 1.0e-3, trainable: head}
batch_size: 16
micro_batch: 8
data: {source: synthetic, limit: 540, image_size: 16}
augment: {crop_padding: 2, mixup_alpha: 0.2}
model: {name: test_resnet, pretrained: false, ghost_batch_size: 8, ema_decay: 0.8}
optimizer: {name: adamw, weight_decay: 0.05, layer_decay: 0.8}
evaluate: {every_epochs: 0.4}
checkpoint: {every_steps: 5}
track: {trackers: none, report: false}
"""


def recipe(**words: str) -> Recipe:
    Path("phases.yaml").write_text(PHASES)
    return read_recipe("phases.yaml", words)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run that nobody stops: 27 steps, scores after 12, 24 and 27."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(RUN, recipe())
    return str(folder / "run")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    monkeypatch.chdir(tmp_path)


def weights(run: str, step: int, file: str = "model") -> dict[str, torch.Tensor]:
    return load_file(f"{run}/checkpoints/{checkpoint.name(step)}/{file}.safetensors")


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in a.items() if not torch.equal(tensor, b[name])}


def test_a_run_that_is_stopped_around_every_change_of_what_learns_is_the_same_run(whole: str) -> None:
    assert interrupt(RUN, recipe(), "update", 3)["step"] == 4
    assert interrupt(RUN, recipe(), "update", 8)["step"] == 9, "the last step of the head's phase"
    assert interrupt(RUN, recipe(), "update", 9)["step"] == 10, "the first that trains all"
    assert interrupt(RUN, recipe(), "update", 17)["step"] == 18, "before the frozen norms are estimated again"
    assert interrupt(RUN, recipe(), "update", 18)["step"] == 19
    assert interrupt(RUN, recipe(), "evaluation", NORMS + 1)["step"] == 24
    train(RUN, recipe())
    assert_same_run("run", whole)


def test_only_what_a_phase_names_learns(whole: str) -> None:
    kept = recipe(**{"checkpoint.keep_last": "99", "checkpoint.every_steps": "1"})
    train(RUN, kept)
    assert_same_weights("run", whole)
    for first, last in ((1, 9), (19, 27)):
        assert differing(weights("run", first), weights("run", last)) == {"fc.weight", "fc.bias"}
    changed = differing(weights("run", 9), weights("run", 18))
    assert changed == weights("run", 9).keys(), "all weights, and all statistics"


def test_how_often_is_scored_does_not_change_what_frozen_norms_see(whole: str) -> None:
    train(RUN, recipe(**{"evaluate.every_epochs": "0.1"}))
    ours, theirs = (weights(run, 27) for run in ("run", whole))
    assert differing(ours, theirs) == set()


def test_the_average_is_what_is_scored_exported_and_resumed(whole: str) -> None:
    averaged = weights(whole, 27, "average")
    assert len(differing(averaged, weights(whole, 27))) > 10
    result = json.loads(Path(whole, "result.json").read_text())
    chosen = checkpoint.weights(Path(whole, result["checkpoint"]))
    assert differing(chosen, load_file(f"{whole}/model/model.safetensors")) == set()
    assert differing(chosen, weights(whole, result["step"], "average")) == set()


# micro_batch: auto


def short_of_memory(monkeypatch: pytest.MonkeyPatch, rows: int, from_step: int = -1) -> list[int]:
    """From a step on (-1: from the start) a pass of more than `rows` rows finds no memory; returns the sizes tried."""
    from timm.models.resnet import ResNet

    tried: list[int] = []
    forward, train_steps = ResNet.forward_features, Trainer._train
    now = [from_step]

    def refusing(self: ResNet, inputs: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and not inputs.is_meta:
            tried.append(len(inputs))
            if len(inputs) > rows and now[0] < 0:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")
        return forward(self, inputs)

    def counting(self: Trainer) -> None:
        check_stop = self.watchdog.check_stop

        def ticking(step: int | None = None) -> None:
            check_stop(step)
            if step is not None and step >= from_step:
                now[0] = -1

        self.watchdog.check_stop = ticking
        train_steps(self)

    monkeypatch.setattr(ResNet, "forward_features", refusing)
    monkeypatch.setattr(Trainer, "_train", counting)
    return tried


def automatic(**words: str) -> Recipe:
    return recipe(micro_batch="auto", **{"batch_size": "32", "model.ghost_batch_size": "4", **words})


def by_hand(run: str, rows: int, **words: str) -> str:
    """The run with the micro-batch in its recipe."""
    train(dataclasses.replace(RUN, run=run), dataclasses.replace(automatic(**words), micro_batch=rows))
    return run


def test_cpus_take_small_micro_batches_at_once(capsys: pytest.CaptureFixture) -> None:
    """And say so; the recipe keeps `auto`, which is the same run on a GPU."""
    expected = by_hand("hand", 32, batch_size="64")
    capsys.readouterr()
    train(RUN, automatic(batch_size="64"))
    assert "64 = 1 x 64, in micro-batches of 32 (auto); BatchNorm over 4 rows" in " ".join(
        capsys.readouterr().out.split()
    )
    assert json.loads(Path("run/micro_batch.json").read_text())["micro_batch"] == 32
    assert read_recipe("run/recipe.yaml").micro_batch == "auto"
    assert_same_run("run", expected)


def test_a_micro_batch_that_fits_is_found_printed_kept_and_gives_the_same_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    expected = by_hand("hand", 8)
    with monkeypatch.context() as patch:
        tried = short_of_memory(patch, rows=8)
        assert interrupt(RUN, automatic(), "update", 4)["step"] == 5
    assert tried[:3] == [32, 16, 8]
    assert set(tried[3:]) == {8}, "once it is found, no pass fails"
    assert "micro_batch auto: 8 images per backward pass fit the device" in capsys.readouterr().out
    assert json.loads(Path("run/micro_batch.json").read_text())["micro_batch"] == 8
    train(RUN, automatic())  # memory is free again, but the sums stay in the order from earlier
    assert json.loads(Path("run/micro_batch.json").read_text())["micro_batch"] == 8
    assert_same_run("run", expected)


def test_memory_that_runs_out_in_mid_run_halves_the_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = short_of_memory(monkeypatch, rows=8, from_step=7)
    train(RUN, automatic())
    assert json.loads(Path("run/micro_batch.json").read_text())["micro_batch"] == 8
    assert sorted(set(tried)) == [8, 16, 32]
    assert json.loads(Path("run/result.json").read_text())["steps"] == 14
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 15))


def test_a_model_of_which_not_even_a_norm_group_fits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, rows=2)
    with pytest.raises(
        UserError, match=r"micro_batch auto: not even 4 images of \d+ pixels fit.*lower model.ghost_batch_size"
    ):
        train(RUN, automatic())
    assert json.loads(Path("run/status.json").read_text())["state"] == "failed"


def test_memory_that_a_given_micro_batch_lacks_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, rows=2)
    with pytest.raises(UserError, match=r"ran out of memory in update 0, with micro_batch 8: set .*_batch 4 or auto"):
        train(RUN, recipe(**{"model.ghost_batch_size": "4"}))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"model.name": "test_vit"}, r"phases.0.image_size 24 does not fit model.name 'test_vit' \(.*16"),
        ({"model.name": "vgg11", "model.drop_path": "0.1"}, r"model.drop_path 0.1: model.name 'vgg11' has no residual"),
        ({"phases.0.trainable": "body"}, r"phases.0.trainable cannot be 'body': it should be 'all' or 'head'"),
        ({"phases.0.image_size": "4"}, r"phases.0.image_size cannot be '4': it should be greater than or equal to 8"),
        ({"model.ema_decay": "1"}, r"model.ema_decay cannot be '1': it should be less than 1"),
    ],
)
def test_mistakes_name_the_field(words: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(RUN, recipe(**words))
    assert not Path("run").exists()
