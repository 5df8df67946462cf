"""What the stand-in for the hub serves: tiny data sets and a tiny model, laid out like the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml


def write(root: Path) -> None:
    """uoft-cs/cifar10 (160 + 40 images), uoft-cs/cifar100 (200 + 100), owner/birds, timm/test_resnet, owner/own."""
    import timm
    import torch

    animals = ["bird", "cat", "deer", "dog", "frog", "horse"]
    names = {"label": ["airplane", "automobile", *animals, "ship", "truck"]}
    _write_data_set(root / "datasets/uoft-cs/cifar10", "plain_text", names, {"train": 160, "test": 40})
    fine, coarse = [f"fine {number}" for number in range(100)], [f"coarse {number}" for number in range(20)]
    names = {"fine_label": fine, "coarse_label": coarse}
    _write_data_set(root / "datasets/uoft-cs/cifar100", "cifar100", names, {"train": 200, "test": 100})
    _write_birds(root / "datasets/owner/birds")
    torch.manual_seed(5)  # random weights, but not those that a run would start from
    model = timm.create_model("test_resnet.r160_in1k")
    timm.models.save_for_hf(model, root / "models/timm/test_resnet.r160_in1k", safe_serialization=True)
    own = {"pretrained_cfg": {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}}
    timm.models.save_for_hf(model, root / "models/owner/own", model_config=own, safe_serialization=True)


def _write_data_set(folder: Path, config: str, names: dict[str, list[str]], sizes: dict[str, int]) -> None:
    """Noise images as PNGs in parquet files, their classes taking turns, and the README.md that describes them."""
    from datasets import ClassLabel, Dataset, Features, Image

    noise = np.random.default_rng(0)
    features = Features({"img": Image(), **{column: ClassLabel(names=classes) for column, classes in names.items()}})
    for split, size in sizes.items():
        columns = {column: [row % len(classes) for row in range(size)] for column, classes in names.items()}
        columns["img"] = list(noise.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8))
        file = folder / config / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns, features=features).to_parquet(file)
    described = [{"name": "img", "dtype": "image"}]
    for column, classes in names.items():
        numbered = {str(number): name for number, name in enumerate(classes)}
        described.append({"name": column, "dtype": {"class_label": {"names": numbered}}})
    files = [{"split": split, "path": f"{config}/{split}-*"} for split in sizes]
    card = {
        "dataset_info": {"config_name": config, "features": described},
        "configs": [{"config_name": config, "data_files": files, "default": True}],
    }
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")


def _write_birds(folder: Path) -> None:
    """Two configurations, neither the default: 12 + 6 images each, with splits, columns and labels named unusually."""
    from datasets import Dataset, Features, Image, Value

    noise, configs = np.random.default_rng(1), []
    features = Features({"photo": Image(), "mask": Image(), "species": Value("string")})
    for config, words in {"coarse": ["owl", "duck"], "fine": ["tawny owl", "eider", "mallard"]}.items():
        for split, size in {"summer": 12, "winter": 6}.items():
            images = noise.integers(0, 256, (2, size, 8, 8, 3), dtype=np.uint8)
            columns = dict(zip(("photo", "mask"), map(list, images), strict=True))
            columns["species"] = [words[row % len(words)] for row in range(size)]
            file = folder / config / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_dict(columns, features=features).to_parquet(file)
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in ("summer", "winter")]
        configs.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
