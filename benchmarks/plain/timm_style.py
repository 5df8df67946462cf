"""Trains timm's ResNet-50 in the style of timm's train.py, as a baseline for train.py.

Data: timm's reader of Hugging Face datasets, `create_loader` with timm's transforms (random resized crop, flip) and
PrefetchLoader, which normalizes on the device.
Training: float32, timm's SGD, timm's cosine schedule updated after each step, AverageMeters, a line every 50 steps.
After each epoch: validation, a row of summary.csv, CheckpointSaver.
At the end: the test images once, and OUTPUT/result.json with losses and accuracies.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import time
from pathlib import Path

import timm
import torch
from timm import utils
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.data.loader import PrefetchLoader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

_logger = logging.getLogger("train")


def main() -> None:
    """Trains, evaluates and saves."""
    args = parse_args()
    utils.setup_default_logging()
    utils.random_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True

    held_out = round(args.images * args.validation)
    splits = {
        "train": f"train[:{args.images - held_out}]",
        "validation": f"train[{args.images - held_out}:{args.images}]",
        "test": f"test[:{args.images}]",
    }
    keys = {"input_key": args.input_key, "target_key": args.target_key}
    sets = {
        name: create_dataset(f"hfds/{args.source}", root=None, split=split, **keys) for name, split in splits.items()
    }

    model = timm.create_model(args.model, num_classes=len(sets["train"].reader.class_to_idx)).to(device)
    config = resolve_data_config({"input_size": (3, args.image_size, args.image_size)}, model=model)

    def loader(name: str, **training: object) -> PrefetchLoader:
        return create_loader(
            sets[name],
            input_size=config["input_size"],
            batch_size=args.batch_size,
            mean=config["mean"],
            std=config["std"],
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            pin_memory=device.type == "cuda",
            device=device,
            **training,
        )

    augment = {"scale": tuple(args.scale), "color_jitter": None, "interpolation": config["interpolation"]}
    train_loader = loader("train", is_training=True, **augment)
    validation_loader, test_loader = (
        loader(name, interpolation=config["interpolation"], crop_pct=1.0) for name in ("validation", "test")
    )

    optimizer = create_optimizer_v2(model, opt="sgd", lr=args.lr, weight_decay=args.weight_decay, momentum=0.9)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=args.epochs,
        warmup_epochs=0,
        step_on_epochs=False,
        updates_per_epoch=len(train_loader),
    )
    args.output.mkdir(parents=True, exist_ok=True)
    saver = utils.CheckpointSaver(
        model, optimizer, args=args, checkpoint_dir=str(args.output), recovery_dir=str(args.output), max_history=2
    )

    for epoch in range(epochs):
        train_metrics = train_one_epoch(epoch, model, train_loader, optimizer, scheduler, args.log_interval)
        eval_metrics = validate(model, validation_loader)
        _logger.info("Epoch %d: %s %s", epoch, train_metrics, eval_metrics)
        lr = optimizer.param_groups[0]["lr"]
        utils.update_summary(epoch, train_metrics, eval_metrics, str(args.output / "summary.csv"), lr=lr)
        saver.save_checkpoint(epoch, metric=eval_metrics["top1"])

    tested = validate(model, test_loader)
    with (args.output / "summary.csv").open() as file:
        history = [{"train/loss": float(row["train_loss"])} for row in csv.DictReader(file)]
    result = {"test/accuracy": tested["top1"] / 100, "history": history}
    _logger.info("Test: %s", tested)
    (args.output / "result.json").write_text(json.dumps(result))


def train_one_epoch(
    epoch: int,
    model: torch.nn.Module,
    loader: PrefetchLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler,
    log_interval: int,
) -> dict[str, float]:
    """The mean of the losses that were logged."""
    model.train()
    loss_function = torch.nn.CrossEntropyLoss()
    losses, batch_time = utils.AverageMeter(), utils.AverageMeter()
    updates, last = epoch * len(loader), len(loader) - 1
    end = time.time()
    for index, (images, labels) in enumerate(loader):
        loss = loss_function(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updates += 1
        scheduler.step_update(num_updates=updates, metric=losses.avg)
        batch_time.update(time.time() - end)
        end = time.time()
        if index == last or index % log_interval == 0:
            losses.update(loss.item(), len(images))
            speed = len(images) / batch_time.avg
            _logger.info("Train: %d [%d/%d] loss %.4g, %.1f images/s", epoch, index, last, losses.val, speed)
    return {"loss": losses.avg}


@torch.no_grad()
def validate(model: torch.nn.Module, loader: PrefetchLoader) -> dict[str, float]:
    """The mean loss, and top-1 and top-5 accuracy in percent."""
    model.eval()
    loss_function = torch.nn.CrossEntropyLoss()
    losses, top1, top5 = utils.AverageMeter(), utils.AverageMeter(), utils.AverageMeter()
    for images, labels in loader:
        output = model(images)
        loss = loss_function(output, labels)
        accuracies = utils.accuracy(output, labels, topk=(1, 5))
        for meter, value in zip((losses, top1, top5), (loss, *accuracies), strict=True):
            meter.update(value.item(), len(images))
    return {"loss": losses.avg, "top1": top1.avg, "top5": top5.avg}


def parse_args() -> argparse.Namespace:
    """The command line, with timm's names where timm has them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="a dataset of the Hub, or a folder of parquet files")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--input-key", default="img")
    parser.add_argument("--target-key", default="label")
    parser.add_argument("--images", type=int, default=2000, help="of each of the splits train and test")
    parser.add_argument("--validation", type=float, default=0.1, help="fraction of the training images held out")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--scale", type=float, nargs=2, default=(0.6, 1.0), help="of the random resized crop")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--weight-decay", type=float, default=5e-5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--log-interval", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
