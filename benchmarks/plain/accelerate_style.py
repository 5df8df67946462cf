"""Trains timm's ResNet-50 in the style of Accelerate's vision examples, as a baseline for train.py.

Data: `datasets.load_dataset`, `with_transform` with torchvision transforms on PIL images, torch's DataLoader.
Training: float32, SGD, one rate per step, everything through `accelerator.prepare`.
After each epoch: validation with `gather_for_metrics`, `accelerator.save_state`.
At the end: the test images once, `accelerator.save_model`, and OUTPUT/result.json with losses and accuracies.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from torchvision import transforms


def main() -> None:
    """Trains, evaluates and saves."""
    args = parse_args()
    set_seed(args.seed)
    accelerator = Accelerator()

    dataset = datasets.load_dataset(args.source)
    classes = dataset["train"].features[args.label_column].num_classes
    model = timm.create_model(args.model, num_classes=classes)
    mean, std = model.default_cfg["mean"], model.default_cfg["std"]

    held_out = round(args.images * args.validation)
    train_set = dataset["train"].select(range(args.images - held_out))
    validation_set = dataset["train"].select(range(args.images - held_out, args.images))
    test_set = dataset["test"].select(range(min(args.images, len(dataset["test"]))))

    resize = [] if args.image_size == 32 else [transforms.Resize((args.image_size, args.image_size))]
    to_input = [*resize, transforms.ToTensor(), transforms.Normalize(mean, std)]
    augment = [transforms.RandomCrop(32, padding=4, padding_mode="reflect"), transforms.RandomHorizontalFlip()]

    def loader(split: datasets.Dataset, transform: transforms.Compose, training: bool) -> DataLoader:
        return DataLoader(
            split.with_transform(apply(transform, args.image_column, args.label_column)),
            batch_size=args.batch_size,
            shuffle=training,
            drop_last=training,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    train_loader = loader(train_set, transforms.Compose([*augment, *to_input]), training=True)
    validation_loader = loader(validation_set, transforms.Compose(to_input), training=False)
    test_loader = loader(test_set, transforms.Compose(to_input), training=False)

    optimizer = torch.optim.SGD(
        model.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs * len(train_loader))
    model, optimizer, train_loader, validation_loader, test_loader, scheduler = accelerator.prepare(
        model, optimizer, train_loader, validation_loader, test_loader, scheduler
    )

    history = []
    for epoch in range(args.epochs):
        model.train()
        total_loss = torch.zeros((), device=accelerator.device)
        for batch in train_loader:
            loss = F.cross_entropy(model(batch["image"]), batch["label"])
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            total_loss += loss.detach()
        row = {"epoch": epoch, "train/loss": total_loss.item() / len(train_loader)}
        row["val/accuracy"] = evaluate(accelerator, model, validation_loader)
        accelerator.print(row)
        accelerator.save_state(args.output / f"epoch_{epoch}")
        history.append(row)

    result = {"test/accuracy": evaluate(accelerator, model, test_loader), "history": history}
    accelerator.print(result)
    accelerator.save_model(model, args.output / "model")
    if accelerator.is_main_process:
        (args.output / "result.json").write_text(json.dumps(result))


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader) -> float:
    """The accuracy in 0..1; every image counts once."""
    model.eval()
    correct, count = torch.zeros((), device=accelerator.device), 0
    for batch in loader:
        predicted = model(batch["image"]).argmax(dim=1)
        predicted, labels = accelerator.gather_for_metrics((predicted, batch["label"]))
        correct += (predicted == labels).sum()
        count += len(labels)
    return correct.item() / count


def apply(transform: Callable, image_column: str, label_column: str) -> Callable[[dict[str, list]], dict[str, Any]]:
    """A function of a batch of rows for `Dataset.with_transform`: columns `image` and `label`."""

    def rows_to_inputs(rows: dict[str, list]) -> dict[str, Any]:
        images = [transform(image.convert("RGB")) for image in rows[image_column]]
        return {"image": images, "label": rows[label_column]}

    return rows_to_inputs


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="a dataset of the Hub, or a folder of parquet files")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--image-column", default="img")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--images", type=int, default=2000, help="of each of the splits train and test")
    parser.add_argument("--validation", type=float, default=0.1, help="fraction of the training images held out")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--weight-decay", type=float, default=5e-5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
