"""models/{factory,cifar_stem,precise_bn,pretrained,export}.py: creation, precise BN, warm starts and export."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from resnet_cifar.config.diff import to_dict
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import parse
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.models.export import export_model
from resnet_cifar.models.factory import check_model_name, create_model, normalization
from resnet_cifar.models.ghost_batchnorm import apply_ghost_batchnorm
from resnet_cifar.models.precise_bn import estimate_bn_stats
from resnet_cifar.models.pretrained import check_init_weights, find_init_weights, load_init_weights, read_place
from resnet_cifar.optim.factory import create_optimizer, set_lr
from resnet_cifar.training import preflight

Run = Callable[..., subprocess.CompletedProcess]
CLASSES = tuple("abcdefghij")


def recipe_of(name: str = "test_resnet", size: int = 32, seed: int = 0, **model: Any) -> Recipe:
    return parse(
        {
            "seed": seed,
            "data": {"source": "synthetic", "image_size": size},
            "model": {"name": name, "pretrained": False, **model},
        }
    )


def built(
    name: str = "test_resnet", classes: int = 10, dtype: torch.dtype = torch.float64, **options: Any
) -> nn.Module:
    return create_model(recipe_of(name, **options), classes, pretrained=True).to(dtype)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


# Precise BatchNorm


def alone(statistics: Tensor) -> Tensor:
    return statistics


@pytest.mark.parametrize("grouped", [False, True])
def test_estimated_statistics_are_those_of_update_bn(grouped: bool) -> None:
    """Also with ghost batches: evaluations use the statistics of whole batches."""
    ours, theirs = built("test_efficientnet"), built("test_efficientnet")
    if grouped:
        apply_ghost_batchnorm(ours, 4)
        ours(noise(8, 3, 32, 32, seed=9))  # statistics of training are forgotten
    batches = [noise(16, 3, 32, 32, seed=seed) for seed in range(5)]
    estimate_bn_stats(ours, iter(batches), alone)
    update_bn(batches, theirs)
    for mine, expected in zip(norms(ours), norms(theirs), strict=True):
        torch.testing.assert_close(mine.running_mean, expected.running_mean)
        torch.testing.assert_close(mine.running_var, expected.running_var)


def test_estimating_leaves_everything_else_as_it_was() -> None:
    model = built("test_efficientnet")
    apply_ghost_batchnorm(model, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = [(module.momentum, module.ghost_batch_size) for module in norms(model)]
    estimate_bn_stats(model, [noise(16, 3, 32, 32)], alone)
    assert [(module.momentum, module.ghost_batch_size) for module in norms(model)] == kept
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    estimate_bn_stats(model.eval(), [noise(16, 3, 32, 32)], alone)
    assert not any(module.training for module in model.modules())


class Noted(nn.Module):
    """Says whether it was in training while it ran."""

    seen: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.training
        return x


def test_dropout_is_off_while_statistics_are_estimated() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), Noted())
    estimate_bn_stats(model, [noise(4, 3, 2, 2, dtype=torch.float32)], alone)
    assert model[1].seen is False


def test_two_ranks_that_share_the_batches_get_what_one_gets() -> None:
    """Three batches and two: the mean is weighted, and both ranks end with the same statistics."""
    batches = [noise(16, 3, 32, 32, seed=seed) for seed in range(5)]
    whole, first, second = built(), built(), built()
    estimate_bn_stats(whole, batches, alone)
    seen: dict[str, list[Tensor]] = {"first": [], "second": []}

    def noting(name: str) -> Callable[[Tensor], Tensor]:
        return lambda statistics: (seen[name].append(statistics.clone()), statistics)[1]

    estimate_bn_stats(first, batches[0::2], noting("first"))
    estimate_bn_stats(second, batches[1::2], noting("second"))
    for rank, part in ((first, batches[0::2]), (second, batches[1::2])):
        means: Iterator[Tensor] = ((3 * a + 2 * b) / 5 for a, b in zip(seen["first"], seen["second"], strict=True))
        estimate_bn_stats(rank, part, lambda statistics, means=means: next(means))
        assert next(means, None) is None
        for mine, expected in zip(norms(rank), norms(whole), strict=True):
            torch.testing.assert_close(mine.running_mean, expected.running_mean)
            torch.testing.assert_close(mine.running_var, expected.running_var)


def test_a_model_without_batch_norm_is_left_alone() -> None:
    estimate_bn_stats(built("test_vit"), [], alone)


# Building


def test_weights_follow_from_the_seed_only() -> None:
    torch.manual_seed(1)
    first = create_model(recipe_of(seed=5), 10, pretrained=True).state_dict()
    torch.manual_seed(2)
    torch.rand(7)
    again = create_model(recipe_of(seed=5), 10, pretrained=False).state_dict()
    other = create_model(recipe_of(seed=6), 10, pretrained=True).state_dict()
    for name, tensor in first.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=0)
    assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])


def test_a_stems_weights_follow_from_the_seed_too() -> None:
    first, again, other = (built(stem="cifar", seed=seed).conv1.weight for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


@pytest.fixture
def without_download(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """timm.create_model that notes what was asked for and gives random weights."""
    asked: list[bool] = []
    original = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        asked.append(pretrained)
        return original(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create)
    return asked


@pytest.mark.parametrize(
    ("wanted", "init_from", "here", "zero"),
    [(True, "", True, True), (True, "", False, False), (False, "", True, False), (True, "runs/x", True, False)],
)
def test_the_head_starts_at_zero_only_on_pretrained_features(
    wanted: bool, init_from: str, here: bool, zero: bool, without_download: list[bool]
) -> None:
    model = create_model(recipe_of(pretrained=wanted, init_from=init_from), 10, pretrained=here)
    assert without_download == [zero]
    assert (model.fc.weight.abs().sum() == 0) == zero
    assert model.conv1[0].weight.abs().sum() > 0
    assert model.training


@pytest.mark.parametrize("name", ["test_resnet", "resnet18"])
def test_a_cifar_stem_keeps_the_resolution(name: str) -> None:
    model = built(name, stem="cifar", dtype=torch.float32)
    assert (model.conv1.kernel_size, model.conv1.stride) == ((3, 3), (1, 1))
    seen: list[torch.Size] = []
    model.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    model(torch.zeros(2, 3, 32, 32))
    assert seen[0][2:] == (32, 32)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_a_cifar_stem_is_refused_for_other_families(name: str) -> None:
    with pytest.raises(UserError, match=f"model.stem cifar is for timm's ResNets, not for model.name '{name}'"):
        create_model(recipe_of(name, stem="cifar"), 10, pretrained=False)


def test_the_registered_name_of_a_cifar_stem_is_the_model_or_a_user_error() -> None:
    """`timm.list_models()` offers resnet18_cifar after `import resnet_cifar`."""
    assert "resnet18_cifar" in timm.list_models()
    try:
        model = create_model(recipe_of("resnet18_cifar"), 10, pretrained=False)
    except UserError:
        return
    assert model.conv1.kernel_size == (3, 3)


def test_a_transformer_takes_the_recipes_image_size() -> None:
    model = built("test_vit", size=64, dtype=torch.float32)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("resnet5o", "model.name 'resnet5o' is not one of timm's models; did you mean resnet50?"),
        ("resnet50.a1_in1kk", "model.name 'resnet50.a1_in1kk' has no weights of that tag; did you mean resnet50.a1"),
        ("resnet50.zzz", "model.name 'resnet50.zzz' has no weights of that tag"),
    ],
)
def test_an_unknown_name_or_tag_is_answered_before_any_download(name: str, start: str) -> None:
    with pytest.raises(UserError) as caught:
        check_model_name(name)
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize("name", ["resnet50", "resnet50.a1_in1k", "test_vit", "test_vit.r160_in1k"])
def test_known_names_are_accepted(name: str) -> None:
    check_model_name(name)


def test_inputs_are_normalized_as_in_pretraining_or_not_at_all() -> None:
    model = built()
    config = timm.get_pretrained_cfg("test_resnet")
    assert normalization(model, recipe_of()) == (tuple(config.mean), tuple(config.std))
    none = parse({"data": {"source": "synthetic", "normalize": "none"}})
    assert normalization(model, none) == ((0, 0, 0), (1, 1, 1))


# Warm start


def exported(
    model: nn.Module, recipe: Recipe, folder: Path, classes: tuple[str, ...] = CLASSES, **more: Callable[[], None]
) -> Path:
    preprocess = Preprocess(recipe.data, *map(torch.tensor, normalization(model, recipe)))
    export_model(model, folder, recipe, classes, model.state_dict(), preprocess.timm_config, {}, **more)
    return folder


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run directory with a model of ten classes."""
    (tmp_path / "run").mkdir()
    model = built(seed=1, dtype=torch.float32)
    exported(model, recipe_of(), tmp_path / "run" / "model")
    return tmp_path / "run"


def test_a_warm_start_with_the_same_classes_loads_everything(finished: Path) -> None:
    model = built(dtype=torch.float32)
    load_init_weights(model, find_init_weights(str(finished)), CLASSES)
    saved = load_file(finished / "model" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, saved[name], rtol=0, atol=0)


def test_a_warm_start_with_other_classes_uses_a_new_head(finished: Path) -> None:
    model = built(classes=4, dtype=torch.float32)
    head = {name: tensor.clone() for name, tensor in model.fc.state_dict().items()}
    reason = load_init_weights(model, find_init_weights(str(finished)), ("a", "b", "c", "x"))
    assert reason == "its head has another shape"
    saved = load_file(finished / "model" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        expected = head[name.removeprefix("fc.")] if name.startswith("fc.") else saved[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
    assert model.fc.weight.shape[0] == 4


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        (tuple("abcdefghiz"), "its head is for other classes (j)"),
        (tuple("ABCDEFGHIJ"), "its head is for other classes (a, b, c, ...)"),
        (CLASSES[::-1], "its head has the classes in another order"),
    ],
)
def test_a_head_for_as_many_other_classes_is_not_loaded(finished: Path, classes: tuple[str, ...], reason: str) -> None:
    model = built(dtype=torch.float32)
    head = model.fc.weight.clone()
    assert load_init_weights(model, find_init_weights(str(finished)), classes) == reason
    torch.testing.assert_close(model.fc.weight, head, rtol=0, atol=0)
    saved = load_file(finished / "model" / "model.safetensors")
    torch.testing.assert_close(model.conv1[0].weight, saved["conv1.0.weight"], rtol=0, atol=0)


def test_every_form_of_a_start_gives_the_same_weights(finished: Path, tmp_path: Path) -> None:
    """A run, its exported model, timm's name for the folder, a folder that timm wrote, and a plain file."""
    export, plain, timms = finished / "model", tmp_path / "weights.safetensors", tmp_path / "timm"
    plain.write_bytes((export / "model.safetensors").read_bytes())
    timm.models.save_for_hf(timm.create_model(f"local-dir:{export}", pretrained=True), timms, safe_serialization=True)
    expected = load_file(plain)
    for start in (finished, export, f"local-dir:{export}", timms, f"local-dir:{timms}", plain):
        model = built(dtype=torch.float32)
        assert load_init_weights(model, find_init_weights(str(start)), CLASSES) == ""
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(("start", "stem"), [("local-dir:{}", "imagenet"), ("local-dir:{}/model", "cifar")])
def test_a_model_named_by_its_place_is_what_timm_makes_of_it(start: str, stem: str, tmp_path: Path) -> None:
    """Architecture, weights, normalization and interpolation; ours is then a recipe that needs no config.json."""
    recipe = parse(
        {
            "data": {"source": "synthetic", "image_size": 64, "normalize": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
            | {"interpolation": "bilinear"},
            "model": {"name": "resnet18", "pretrained": False, "stem": stem},
        }
    )
    (tmp_path / "run").mkdir()
    exported(create_model(recipe, 10, pretrained=False), recipe, tmp_path / "run" / "model")
    place = start.format(tmp_path / "run")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True)
    asked = parse({"data": {"source": "synthetic", "image_size": 64}, "model": {"name": place}})
    found = preflight.resolve(asked)
    assert (found.model.name, found.model.stem, found.model.init_from) == ("resnet18", stem, place)
    assert parse(to_dict(found)) == preflight.resolve(found) == found
    ours = create_model(found, 10, pretrained=True)
    assert load_init_weights(ours, find_init_weights(found.model.init_from), CLASSES) == ""
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    config = timm.data.resolve_model_data_config(theirs)
    assert normalization(ours, found) == (tuple(config["mean"]), tuple(config["std"]))
    assert found.data.interpolation == config["interpolation"] == "bilinear"

    own = replace(asked, data=replace(asked.data, normalize="none", interpolation="nearest"))
    found = preflight.resolve(replace(own, model=replace(asked.model, pretrained=False)))
    assert (found.data, found.model.init_from) == (own.data, "")


def test_a_place_with_the_normalization_of_its_architecture_leaves_it_to_the_model(finished: Path) -> None:
    place = parse({"data": {"source": "synthetic"}, "model": {"name": f"local-dir:{finished}", "init_from": "other"}})
    found = preflight.named(place)
    assert (found.data, found.model.name, found.model.init_from) == (place.data, "test_resnet", "other")


def test_only_one_process_reads_a_place(finished: Path) -> None:
    place = parse({"data": {"source": "synthetic"}, "model": {"name": f"local-dir:{finished}"}})
    answer = json.dumps(read_place(place.model.name))
    elsewhere = replace(place, model=replace(place.model, name="hf-hub:nobody/nothing"))
    found = preflight.resolve(elsewhere, once=lambda read: answer)
    assert (found.model.name, found.model.init_from) == ("test_resnet", "hf-hub:nobody/nothing")


@pytest.mark.parametrize("name", ["weights.pth", "pytorch_model.bin", "last.ckpt"])
def test_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"may be a pickle, which can run code: save its weights with safetensors"):
        find_init_weights(str(file))


def test_another_normalization_is_a_remark(finished: Path) -> None:
    found = find_init_weights(str(finished))
    mean, std = tuple(found.config["pretrained_cfg"]["mean"]), tuple(found.config["pretrained_cfg"]["std"])
    assert found.normalization_remark(mean, std) == ""
    assert found.normalization_remark((0.0, 0.0, 0.0), std).startswith(f"its images were normalized with mean {mean}")


def test_a_warm_start_from_another_architecture_or_nothing_is_a_user_error(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"does not fit model\.name: .+; set model\.name to test_resnet and model\.stem"
    ):
        check_init_weights(built("test_efficientnet", dtype=torch.float32), find_init_weights(str(finished)))
    with pytest.raises(UserError, match=r"has no model\.safetensors: name a finished run"):
        find_init_weights(str(tmp_path))
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match=r"has no model/model\.safetensors: name a finished run"):
        find_init_weights(str(tmp_path))
    with pytest.raises(UserError, match=r"has no file or folder of that name"):
        find_init_weights(str(tmp_path / "nowhere"))


def test_a_warm_start_from_a_damaged_model_is_a_user_error(finished: Path) -> None:
    file = finished / "model" / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (b"garbage", whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read \(.+\): name a finished run"):
            check_init_weights(built(dtype=torch.float32), find_init_weights(str(finished)))


def test_loadable_weights_are_determined_by_shapes_alone(finished: Path) -> None:
    with torch.device("meta"):
        same, other_head = (create_model(recipe_of(), classes, False) for classes in (10, 4))
    everything = list(same.state_dict())
    assert check_init_weights(same, find_init_weights(str(finished))) == everything
    assert check_init_weights(other_head, find_init_weights(str(finished))) == everything[:-2]
    assert everything[-2:] == ["fc.weight", "fc.bias"]


# Export


def trained(recipe: Recipe) -> nn.Module:
    """A model that differs from its first weights everywhere, running statistics and zero-initialized ones included."""
    model = create_model(recipe, 10, pretrained=False)
    generator = torch.Generator().manual_seed(7)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


FRESH = """
import sys
{imports}
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{{folder}}/model", pretrained=True).eval()
    with torch.no_grad():
        save_file({{"logits": model(load_file(f"{{folder}}/inputs")["inputs"])}}, f"{{folder}}/logits")
"""


def logits_of_a_fresh_process(imports: str, recipes: list[Recipe], tmp_path: Path, run: Run) -> None:
    """Exports each recipe's model, loads it in another process, and compares logits bit for bit."""
    expected = {}
    for number, recipe in enumerate(recipes):
        folder = tmp_path / str(number)
        folder.mkdir()
        model, size = trained(recipe), recipe.data.image_size
        inputs = noise(3, 3, size, size, dtype=torch.float32)
        save_file({"inputs": inputs}, folder / "inputs")
        exported(model, recipe, folder / "model")
        with torch.no_grad():
            expected[folder] = model(inputs)
    done = run("-c", FRESH.format(imports=imports), *expected)
    assert done.returncode == 0, done.stderr
    for folder, logits in expected.items():
        torch.testing.assert_close(load_file(folder / "logits")["logits"], logits, rtol=0, atol=0)


def test_stock_timm_loads_an_exported_model(tmp_path: Path, run: Run) -> None:
    """A ResNet, a model of BatchNormAct2d, and a transformer at another image size than its own."""
    recipes = [recipe_of(), recipe_of("test_efficientnet"), recipe_of("test_vit", size=48)]
    logits_of_a_fresh_process("import timm", recipes, tmp_path, run)


@pytest.mark.parametrize("imports", ["import resnet_cifar, timm", "import timm, resnet_cifar"])
def test_a_cifar_stem_loads_after_the_package_is_imported(imports: str, tmp_path: Path, run: Run) -> None:
    recipes = [recipe_of(stem="cifar"), recipe_of("resnet18", stem="cifar")]
    logits_of_a_fresh_process(imports, recipes, tmp_path, run)


def test_an_exported_config_holds_the_input_settings(tmp_path: Path) -> None:
    recipe = parse(
        {
            "data": {"source": "synthetic", "image_size": 48, "interpolation": "bilinear", "normalize": "none"},
            "model": {"name": "test_resnet", "pretrained": False},
        }
    )
    folder = exported(create_model(recipe, 10, pretrained=False), recipe, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "test_resnet"
    assert config["num_classes"] == 10
    assert config["label_names"] == list(CLASSES)
    loaded = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}", pretrained=True))
    assert (list(loaded["input_size"]), loaded["interpolation"]) == ([3, 48, 48], "bilinear")
    assert (tuple(loaded["mean"]), tuple(loaded["std"])) == ((0, 0, 0), (1, 1, 1))
    assert (loaded["crop_pct"], loaded["crop_mode"]) == (1.0, "squash")


def test_an_exports_files_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        exported(built(dtype=torch.float32), recipe_of(), tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {"config.json": 0o640, "model.safetensors": 0o640}
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750


def test_an_export_replaces_an_older_one_and_leaves_nothing_aside(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("")
    (tmp_path / "model.writing-1234abcd").mkdir()  # of a process that was killed
    exported(built(dtype=torch.float32), recipe_of(), tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}


def test_an_export_that_fails_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def taken_over() -> None:
        raise UserError("taken over")

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("")
    model, recipe = built(dtype=torch.float32), recipe_of()
    with pytest.raises(UserError, match="taken over"):
        exported(model, recipe, tmp_path / "model", before_rename=taken_over)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        exported(model, recipe, tmp_path / "model")
    assert caught.value.errno == errno.ENOSPC
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/old"]


def test_an_exported_model_has_the_logits_of_the_evaluated_one(tmp_path: Path) -> None:
    """As the loop does it: grouped, trained a little, statistics estimated, exported."""
    recipe = recipe_of()
    model = create_model(recipe, 10, pretrained=False)
    apply_ghost_batchnorm(model, 4)
    optimizer = create_optimizer(model, recipe.optimizer, 0.1, torch.device("cpu"))
    x = noise(16, 3, 32, 32, dtype=torch.float32)
    F.cross_entropy(model(x), torch.arange(16) % 10).backward()
    set_lr(optimizer, 0.1)
    optimizer.step()
    estimate_bn_stats(model, [x], alone)
    folder = exported(model, recipe, tmp_path / "model")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=0, atol=0)
