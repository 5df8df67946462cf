"""The model card (README.md) of an exported model, with metadata for the Hugging Face Hub."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from resnet_cifar.config.diff import differing_fields, flatten
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import METRIC_NAMES, Recipe
from resnet_cifar.data.sources import image_io
from resnet_cifar.reporting import html_page

TAG = "resnet-cifar"  # of all models of this project on the Hub
_METRICS = {"accuracy": "accuracy", "top5": "top-5 accuracy", "loss": "cross-entropy"}
_LICENSES = (
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
)  # whose names in timm and on the Hub agree
_UNSEEN = (
    "data.decode_size",
    "data.decode_mode",
    "data.image_size",
    "data.interpolation",
    "data.normalize",
    "data.validation_fraction",
    "data.overfit_images",
    "data.storage",
    "data.value_range",
    "data.sampling",
)
_ASIDE = ("precision", "rank_timeout", "track.", "checkpoint.", "data.storage")  # stated elsewhere or without effect
_PATHS = ("data.source", "model.init_from")  # only the last part of a local path is published

# `eval.py --verify-export` runs this code as well.
_LOADING = '''\
import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
{package}
model = timm.create_model({address}, pretrained=True).eval()
config = model.pretrained_cfg
mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))


{functions}

def to_input(image):
    """Preprocesses a PIL image, as Image.open gives it, as in training: float32 [3, height, width]."""
    image = {decoded}
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    size, mode = tuple(config["input_size"][1:]), "{interpolation}"
    if pixels.shape[2:] != size:
        antialias = mode != "nearest" and size[0] < max(pixels.shape[2:])
        pixels = F.interpolate(pixels, size, mode=mode, antialias=antialias).clamp(0, 255)
    return (pixels[0] / 255 - mean) / std
'''


def decoding_call(preprocess: Mapping[str, Any]) -> str:
    """The call of `image_io.decode` on `image` that decodes like training; `preprocess`: see `loading_code`."""
    value_range = preprocess["value_range"]
    return f"decode(image, {', '.join(map(str, value_range))})" if value_range else "decode(image)"


def loading_code(folder: str, preprocess: Mapping[str, Any], needs_package: bool) -> str:
    """Python code that loads the model in `folder` with timm as `model` and defines its `to_input`.

    `preprocess`: that of the model's config.json (`Preprocess.facts`). `needs_package`: whether `import resnet_cifar`
    has to register the architecture first.
    """
    package = "\nimport resnet_cifar  # registers its models with timm\n" if needs_package else ""
    size, decoded = preprocess["stored_size"], decoding_call(preprocess)
    is_padded = preprocess.get("decode_mode") == "pad"
    resizing = [image_io.fit] if is_padded else [image_io.cover, image_io.crop_center]
    functions = [image_io.decode, *(resizing if size else [])]
    if size:
        call, border = ("fit", f", {image_io.BORDER}") if is_padded else ("cover", "")
        decoded = f"{call}({decoded}, {size[0]}, {size[1]}{border})"
    return _LOADING.format(
        package=package,
        address=json.dumps(f"local-dir:{folder}"),
        functions="\n\n".join(map(inspect.getsource, functions)),
        decoded=decoded,
        interpolation=preprocess["interpolation"],
    )


def render_card(
    recipe: Recipe,
    config: Mapping[str, Any],
    found: Mapping[str, Any],
    result: Mapping[str, Any],
    environment: Mapping[str, Any],
    needs_package: bool,
) -> str:
    """The model card of a model trained with `recipe`.

    `config`: timm's `pretrained_cfg` of the initial model. `found`: the content of eval-test.json. `result`: that of
    result.json, with `preprocess` (see `loading_code`) and `fingerprint`. `environment`: that of environment.json.
    `needs_package`: see `loading_code`.
    """
    dataset = _source(recipe)
    name = f"{config['architecture']}, {dataset.rpartition('/')[2]}"
    body = html_page.render(
        "model_card.md",
        name=name,
        config=config,
        start=_start(recipe),
        dataset=dataset,
        recipe=recipe,
        exact=result["preprocess"]["exact_in_timm"],
        found=found,
        limited=f" (`data.limit` {recipe.data.limit})" if recipe.data.limit else "",
        result=result,
        metric_names=METRIC_NAMES,
        needs_package=needs_package,
        loading=loading_code("FOLDER", result["preprocess"], needs_package),
        # Which images data.limit keeps depends on the seed, which a model directory does not record.
        scored_on="" if recipe.data.limit and recipe.seed else " ".join(_scored_on(recipe)),
        chosen=f", of which step {result['step']:,} was the best" if result["step"] != result["steps"] else "",
        hardware=_hardware(environment),
        changes=list(_changes(recipe)),
        versions=", ".join(f"{package} {version}" for package, version in environment["packages"].items())
        + f", Python {environment['python']}",
    )
    return str(ModelCard(f"---\n{_metadata(recipe, config, found, name)}\n---\n\n{body}"))


def for_repository(card: str, repository: str) -> str:
    """The card in the Hub's `repository` (OWNER/NAME), whose code loads the model from there."""
    here = f"`FOLDER` is a download of this repository: `hf download {repository} --local-dir FOLDER`."
    return card.replace("`FOLDER` is this directory.", here).replace('"local-dir:FOLDER"', f'"hf-hub:{repository}"')


def _metadata(recipe: Recipe, config: Mapping[str, Any], found: Mapping[str, Any], name: str) -> ModelCardData:
    dataset, starts = _source(recipe), recipe.model.pretrained and not recipe.model.init_from
    base, license_name = config.get("hf_hub_id") if starts else None, config.get("license") if starts else None
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            dataset_args={"images": found["images"]},
            metric_type=kind,
            metric_name=title,
            metric_value=round(found[kind], 6),
        )
        for kind, title in _METRICS.items()
        if kind in found
    ]
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", TAG],
        license=license_name if license_name in _LICENSES else None,
        base_model=base or None,
        datasets=[dataset] if _is_on_hub(recipe) else None,
        metrics=["accuracy"],
        model_name=name,
        eval_results=results,
    )


def _is_on_hub(recipe: Recipe) -> bool:
    """Whether the source is a Hub id: local paths are absolute by now."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.data.source) is not None


def _source(recipe: Recipe) -> str:
    """The Hub id of the dataset, or the last part of its path."""
    return recipe.data.source if _is_on_hub(recipe) else Path(recipe.data.source).name


def _start(recipe: Recipe) -> str:
    if recipe.model.init_from:
        start = recipe.model.init_from
        return f"from the weights of {start if start.startswith(('hf-hub:', 'wandb:')) else Path(start).name}"
    return f"from the weights of timm's {recipe.model.name}" if recipe.model.pretrained else "from random weights"


def _scored_on(recipe: Recipe) -> Iterator[str]:
    """Options with which eval.py finds the same test images, given the model directory only."""
    default = flatten(Recipe())
    for path, value in flatten(recipe).items():
        changed = value != default[path] if path in default else True
        if path.startswith("data.") and path not in _UNSEEN and (changed or path == "data.source"):
            yield f"--{path} {shlex.quote(_shown(path, value))}"


def _changes(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(field, value, default) of the differing fields that affect the result."""
    for path, values in differing_fields([recipe, read_recipe("finetune")], _ASIDE).items():
        here, there = (_shown(path, value) for value in values)
        yield path, here.replace("|", "\\|"), there


def _shown(path: str, value: Any) -> str:
    return Path(value).name if path in _PATHS and Path(str(value)).is_absolute() else str(value)


def _hardware(environment: Mapping[str, Any]) -> str:
    gpus, processes = environment["gpus"], environment["world_size"]
    device = gpus[0] if gpus else f"{environment['cpu']}, threads: {environment['threads']}"
    return f"{processes} process{'es' * (processes > 1)} ({device})"
