"""timm models: weights, stem, head, precise BatchNorm statistics, export in timm's own format."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import timm
import timm.data
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_cifar import head
from resnet_cifar.cifar_stem import SUFFIX, replace_stem
from resnet_cifar.data import draws
from resnet_cifar.ghost_batchnorm import GhostBatchNorm
from resnet_cifar.optim import classifier
from resnet_cifar.recipe import Mistake, Model, Recipe, nearest


def check_name(name: str) -> None:
    """Raises Mistake where timm has no model of that name, or no weights of that tag."""
    architecture, _, tag = name.partition(".")
    if architecture.endswith(SUFFIX):
        raise Mistake(f"model.name {name!r}: take {architecture.removesuffix(SUFFIX)} with --model.stem cifar")
    if architecture == head.NAME:
        raise Mistake(f"model.name {name!r}: take the model itself, such as resnet50, with --model.head.widths 128,64")
    if not timm.is_model(architecture):
        mend = nearest(architecture, timm.list_models()) or "; timm.list_models() has all"
        raise Mistake(f"model.name {name!r} is not one of timm's models{mend}")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise Mistake(
            f"model.name {name!r} has no weights of that tag{nearest(name, tagged) or f'; take {architecture}'}"
        )


def check_weights(settings: Model) -> None:
    """Raises Mistake where timm has no pretrained weights of the model, and the recipe would start from them."""
    if settings.pretrained and not settings.checkpoint and not timm.is_model_pretrained(settings.name):
        raise Mistake(f"model.name {settings.name!r} has no pretrained weights: take --model.pretrained False")


def build(recipe: Recipe, classes: int, pretrained: bool) -> nn.Module:
    """The recipe's model with `classes` outputs, on the CPU, float32, in train mode.

    Random weights follow from the seed. `pretrained`: whether timm's weights are loaded where the recipe asks for
    them; ranks that get their weights from another rank spare themselves the download. Raises Mistake.
    """
    settings = recipe.model
    check_name(settings.name)
    if pretrained:
        check_weights(settings)
    torch.random.default_generator.manual_seed(draws.torch_seed(recipe.seed, "init"))
    pretrained = pretrained and settings.pretrained and not settings.checkpoint
    options = {**_input_size(recipe), **({"drop_path_rate": settings.drop_path} if settings.drop_path else {})}
    own = 0 if settings.head.is_deep else classes  # of timm's classifier
    try:
        model = timm.create_model(settings.name, pretrained=pretrained, num_classes=own, **options)
    except (LocalEntryNotFoundError, OSError, HfHubHTTPError.__bases__[0]) as error:  # the last: httpx's or httpx2's
        raise Mistake(
            f"the pretrained weights of model.name {settings.name!r} are not on this machine yet and cannot be fetched "
            f"({type(error).__name__}): take --model.pretrained False, or a run's weights with --model.checkpoint"
        ) from None
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise Mistake(
            f"model.drop_path {settings.drop_path:g}: model.name {settings.name!r} has no residual branches to drop; "
            "set it to 0"
        ) from None
    if stem(settings) == "cifar":
        if not _has_cifar_form(settings.name):
            raise Mistake(
                f"model.stem cifar is for timm's ResNets, not for model.name {settings.name!r}: take imagenet"
            )
        replace_stem(model)
    if settings.head.is_deep:
        layers = (settings.head.pool, settings.head.units, settings.head.norm, settings.head.dropout)
        head.attach(model, recipe.data.image_size, *layers, classes)
    if settings.head.init == "glorot":
        _glorot(classifier(model))
    elif pretrained:  # a classifier that starts at zero leaves the features alone until it knows something (BiT, ViT)
        last = model.deep_head.classifier if settings.head.is_deep else classifier(model)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
    return model.train()


def stem(settings: Model) -> str:
    """`imagenet` or `cifar`: what `auto` means for the model."""
    if settings.stem == "auto":
        return "cifar" if _has_cifar_form(settings.name) else "imagenet"
    return settings.stem


def _has_cifar_form(name: str) -> bool:
    return timm.is_model(name.partition(".")[0] + SUFFIX)


def _glorot(layers: nn.Module) -> None:
    """Keras's first weights (Glorot & Bengio 2010)."""
    for layer in layers.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _input_size(recipe: Recipe) -> dict[str, int]:
    """What models of a fixed input size (most transformers) want to be told."""
    fixed = timm.get_pretrained_cfg(recipe.model.name).fixed_input_size
    return {"img_size": recipe.data.image_size} if fixed else {}


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """A context in which the whole model is in train or eval mode; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def warm_start(model: nn.Module, run: str) -> None:
    """Loads the weights that run folder `run` exported; where heads differ, ours is left as it is. Raises Mistake."""
    fitting = check_warm_start(model, run)
    weights = load_file(_exported_by(run))
    model.load_state_dict({name: weights[name] for name in fitting}, strict=False)


def check_warm_start(model: nn.Module, run: str) -> list[str]:
    """Names of the weights of run folder `run` that `model` can take, by their shapes. Raises Mistake where there are
    none, or where they are another architecture's."""
    file = _exported_by(run)
    if not file.is_file():
        raise Mistake(f"model.checkpoint {run!r} has no {file.relative_to(run)}: name the folder of a finished run")
    try:
        with safe_open(file, "pt") as saved:
            names = saved.keys()
            theirs = {name: tuple(saved.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise Mistake(
            f"model.checkpoint {run!r}: {file} cannot be read ({error}): name the folder of a finished run"
        ) from None
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    heads = _head_prefixes(model)

    def body(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in shapes.items() if not name.startswith(heads)}

    if body(theirs) != body(ours):
        raise Mistake(f"model.checkpoint {run!r} holds another architecture than model.name: take the run's own model")
    return list(ours if theirs == ours else body(ours))


def _head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """What the names of a head's weights begin with, be it timm's own or a deep one."""
    stock = model.pretrained_cfg.get("classifier") or ()
    stock = (stock,) if isinstance(stock, str) else tuple(stock)
    own = (name for name, module in model.named_modules() if module is classifier(model))
    return tuple(f"{name}." for name in (*stock, *own, head.NAME))


def _exported_by(run: str) -> Path:
    return Path(run) / "model" / "model.safetensors"


def normalisation(model: nn.Module, recipe: Recipe) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of the inputs, each of three numbers for pixels in 0..1."""
    if recipe.data.normalize == "none":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    config = timm.data.resolve_model_data_config(model)
    return tuple(config["mean"]), tuple(config["std"])


@torch.no_grad()
def estimate_norms(model: nn.Module, batches: Iterable[Tensor], average: Callable[[Tensor], Tensor]) -> None:
    """Running statistics afresh: the mean over `batches` with today's weights ("precise BN", Wu & Johnson 2021).

    What `torch.optim.swa_utils.update_bn` does, except that all other modules stay in eval mode (dropout is off) and
    that ranks share the work: `average` turns this rank's statistics into the mean over all batches of all ranks.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta = [module.momentum for module in norms]
    groups = [getattr(module, "ghost_batch_size", None) for module in norms]
    with in_mode(model, training=False):
        for module in norms:
            module.train()
            module.reset_running_stats()
            module.momentum = None  # a cumulative mean
            # Statistics are of whole batches of one rank: ranks have different numbers of them.
            if isinstance(module, nn.SyncBatchNorm):
                module.process_group, module.alone = module.alone, module.process_group
            if isinstance(module, GhostBatchNorm):
                module.ghost_batch_size = sys.maxsize
        for batch in batches:
            model(batch)
    for module, momentum, rows in zip(norms, momenta, groups, strict=True):
        module.momentum = momentum
        module.running_mean.copy_(average(module.running_mean))
        module.running_var.copy_(average(module.running_var))
        module.num_batches_tracked.zero_()
        if isinstance(module, nn.SyncBatchNorm):
            module.process_group, module.alone = module.alone, module.process_group
        if rows:
            module.ghost_batch_size = rows


def is_ours(architecture: str) -> bool:
    """Whether timm knows the architecture only after `import resnet_cifar`."""
    return timm.models.model_entrypoint(architecture).__module__.startswith("resnet_cifar.")


def export(
    model: nn.Module,
    folder: Path,
    recipe: Recipe,
    classes: tuple[str, ...],
    weights: dict[str, Tensor],
    facts: Mapping[str, float | str | None],
    card: str = "",
) -> None:
    """Writes `weights` in timm's format: `timm.create_model("local-dir:FOLDER", pretrained=True)` loads them.

    The folder is written aside and renamed. A CIFAR stem or a deep head loads after `import resnet_cifar`. config.json
    keeps `facts` besides, of which None is left out (`temperature`, that logits are to be divided by; `stored_size` and
    `fingerprint` of the images that it was trained on). `card`: what README.md says of it.
    """
    mean, std = normalisation(model, recipe)
    size = recipe.data.image_size
    name, remake = model.pretrained_cfg["architecture"], getattr(model, "remake", {})
    with torch.device("meta"):  # neither drawn nor copied: the weights are taken as they are
        clean = timm.create_model(name, num_classes=len(classes), **_input_size(recipe), **remake)
    clean.load_state_dict({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, assign=True)
    clean.pretrained_cfg = {
        **model.pretrained_cfg,
        "input_size": (3, size, size),
        "mean": mean,
        "std": std,
        "interpolation": recipe.data.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    aside = folder.with_name(folder.name + ".writing")
    shutil.rmtree(aside, ignore_errors=True)
    config = {"label_names": list(classes), **{name: fact for name, fact in facts.items() if fact is not None}}
    timm.models.save_for_hf(clean, aside, model_config=config, safe_serialization=True)
    if card:
        (aside / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
