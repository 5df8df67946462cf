"""The story of a run, from a recipe to a scored model."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from resnet_cifar import model as models
from resnet_cifar import optim, run_folder
from resnet_cifar.cli import TrainCommand
from resnet_cifar.data import store
from resnet_cifar.data.batches import Batches
from resnet_cifar.data.plan import Plan, check_share
from resnet_cifar.data.store import ImageData
from resnet_cifar.recipe import Recipe, to_dict
from resnet_cifar.reporting import environment, metrics, track
from resnet_cifar.reporting.console import Screen, duration
from resnet_cifar.run_folder import RunFolder
from resnet_cifar.training import checkpoint, outline
from resnet_cifar.training.evaluate import check_same_weights, predict, refresh_norms, write_scores
from resnet_cifar.training.step import Learner, Sums
from resnet_cifar.training.world import World


def train(command: TrainCommand, recipe: Recipe) -> None:
    """Trains, evaluates and exports what `command` asks for. Raises Mistake."""
    world = World(recipe.precision)
    recipe = dataclasses.replace(recipe, precision=world.precision)
    screen = Screen(shown=world.is_main)
    folder = RunFolder(Path(command.run) if command.run else run_folder.default_path(command.recipe, recipe))
    # What needs no data is answered before any download.
    models.check_name(recipe.model.name)
    optim.check_name(recipe.optimizer.name)
    check_share(recipe, world.size)
    if not command.dry_run and world.main_first(lambda: _look(folder, command, recipe, screen)) == "finished":
        return
    entry = world.main_first(lambda: str(store.ensure(recipe.data.source)), per_node=True)
    data = store.load(Path(entry), recipe, world.device)
    plan = Plan(recipe, len(data.train), world.size)
    learner = Learner(plan, world, len(data.classes), pretrained=not command.dry_run)
    screen.facts(outline.describe(plan, world, data, folder.path))
    for warning in filter(None, (outline.small_share(plan), world.idle_threads())):
        screen.warn(warning)
    if command.dry_run:
        screen.facts(outline.estimate(learner, data))
    else:
        Run(plan, world, data, learner, folder, screen).run()
    world.close()


def _look(folder: RunFolder, command: TrainCommand, recipe: Recipe, screen: Screen) -> str:
    """Whether the folder's run is `finished`. Raises Mistake where it is another recipe's."""
    if command.fresh:
        if aside := folder.move_aside():
            screen.say(f"starting over; what was there is now in {aside}")
        return "new"
    folder.check(recipe)
    result = folder.result()
    if result is None:
        return "new"
    screen.say("this run is finished (--fresh starts it over)")
    _closing_table(screen, folder, result, [])
    return "finished"


class Run:
    """One start of a run: trains from where its folder is to the end."""

    def __init__(
        self, plan: Plan, world: World, data: ImageData, learner: Learner, folder: RunFolder, screen: Screen
    ) -> None:
        self.plan, self.world, self.data = plan, world, data
        self.learner, self.folder, self.screen = learner, folder, screen
        self.batches = Batches(plan, data.train, len(data.classes), learner.format, world.rank)
        self.norm_rows = torch.from_numpy(plan.norm_rows()).to(world.device)
        self.tracker: track.Tracker = track.Nothing()
        self.best: dict[str, Any] | None = None
        self.began = time.perf_counter()
        self._rows_until, self._images_until = self.began, 0
        self._to_first_step, self._done = 0.0, 0

    def run(self) -> None:
        """Trains every step that is left, then scores the best model once on the test split."""
        if self.world.is_main:
            facts = {**environment.describe(), "world_size": self.world.size, "data": self.data.fingerprint}
            self.folder.claim(self.plan.recipe, facts)
        ended = "failed"
        try:
            if self.world.is_main:
                self.tracker = track.start(self.plan.recipe, self.folder.path, facts, self.screen.warn)
            self._train(self._resume())
            self._finish()
            ended = "finished"
        except KeyboardInterrupt:
            ended = "interrupted"
            raise
        finally:
            self.screen.end()
            if ended != "finished":
                self._status(ended, self._done)
            self.tracker.finish(failed=ended != "finished")

    def _resume(self) -> int:
        """Takes up the newest checkpoint and returns the number of updates it has seen; 0 where there is none."""
        learner, checkpoints = self.learner, self.folder.checkpoints
        # Rank 0 decides: a network file system may show ranks different folders for a while.
        step = int(self.world.main_first(lambda: str(max(checkpoint.steps(checkpoints), default=0))))
        if self.world.is_main:
            self.folder.cut_rows(step)
        if not step:
            return 0
        newest = checkpoints / checkpoint.name(step)
        state = checkpoint.read_state(newest)
        learner.model.load_state_dict(checkpoint.weights(newest))
        checkpoint.load_optimizer(newest, state["optimizer"], learner.model, learner.optimizer)
        if learner.world.scaler is not None:
            learner.world.scaler.load_state_dict(state["scaler"])
        learner.resume_at(step)
        self.best = state["best"]
        best = f", best validation accuracy {self.best['val/accuracy']:.4f}" if self.best else ""
        self.screen.say(f"resuming at step {step}, epoch {self.plan.epoch(step):.2f}{best}")
        return step

    def _train(self, start: int) -> None:
        rows, checkpoints = set(self.plan.row_steps()), set(self.plan.checkpoint_steps())
        scores = set(self.plan.score_steps())
        self.screen.begin(self.plan.steps, start)
        self._to_first_step = time.time() - psutil.Process().create_time()
        self._status("running", start)
        self._rows_until, self._images_until = time.perf_counter(), start * self.plan.recipe.batch_size
        for step, micro_batches in enumerate(self.batches.steps(start), start=start):
            self.learner.update(step, micro_batches)
            self._done = done = step + 1
            if done in rows:
                self.learner.take_sums(done)
            if done in checkpoints:
                self._pause(done, score=done in scores)
            else:
                for sums in self.learner.ready_sums():
                    self._write_row(self._row(sums))

    def _pause(self, done: int, score: bool) -> None:
        """Reads what has been summed, scores the model if it is time to, and saves it."""
        rows = [self._row(sums) for sums in self.learner.ready_sums(wait=True)]
        began = time.perf_counter()
        if score:
            rows[-1] |= self._score(done)
        for row in rows:
            self._write_row(row)
        if self.world.is_main:
            self._save(done)
        self._status("running", done)
        self._rows_until += time.perf_counter() - began  # images_per_second leaves it out

    def _score(self, done: int) -> dict[str, float]:
        """Scores today's weights on the validation split and remembers the best."""
        learner, world, validation = self.learner, self.world, self.data.validation
        check_same_weights(world, learner.model)
        refresh_norms(world, learner.model, self.data.train, learner.format, self.norm_rows)
        if not len(validation):
            return {}
        predictions = predict(world, learner.wrapped, validation, learner.format)
        scores = {f"val/{key}": value for key, value in metrics.summary(*predictions).items()}
        if self.best is None or scores["val/accuracy"] > self.best["val/accuracy"]:  # ties keep the earlier
            self.best = {"step": done, **scores}
        return scores

    def _row(self, sums: Sums) -> dict[str, Any]:
        images, now = sums.step * self.plan.recipe.batch_size, time.perf_counter()
        speed = (images - self._images_until) / (now - self._rows_until)
        self._rows_until, self._images_until = now, images
        return {
            "step": sums.step,
            "epoch": self.plan.epoch(sums.step),
            "images": images,
            "lr": sums.rate,
            "train/loss": sums.loss,
            "train/accuracy": sums.accuracy,
            "images_per_second": speed,
        }

    def _write_row(self, row: dict[str, Any]) -> None:
        if self.world.is_main:
            self.folder.append_row(row)
            self.tracker.log(row)
            self.screen.row(row)
            if "val/accuracy" in row:
                self.screen.score(row, best=self.best is not None and self.best["step"] == row["step"])

    def _save(self, done: int) -> None:
        self.folder.keep_owning()
        scaler = self.world.scaler
        state = {
            "best": self.best,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "recipe": to_dict(self.plan.recipe),
            "data": self.data.fingerprint,
            "classes": list(self.data.classes),
        }
        checkpoint.save(self.folder.checkpoints, done, self.learner.model, self.learner.optimizer, state)
        keep = self.plan.recipe.checkpoint.keep
        checkpoint.prune(self.folder.checkpoints, keep, self.best["step"] if self.best else None)

    def _finish(self) -> None:
        """Scores the chosen checkpoint on the test split, once, and exports it."""
        learner, world, folder = self.learner, self.world, self.folder
        step = self.best["step"] if self.best else self.plan.steps
        chosen = folder.checkpoints / checkpoint.name(step)
        weights = checkpoint.weights(chosen) if world.is_main else {}
        if world.is_main:
            learner.model.load_state_dict(weights)
        world.broadcast_(learner.model)
        predictions = predict(world, learner.wrapped, self.data.test, learner.format)
        if not world.is_main:
            return
        recipe, data = self.plan.recipe, self.data
        scores = write_scores(folder.path, "test", recipe, chosen, predictions, data.test.indices, data.classes)
        models.export(learner.model, folder.model, recipe, data.classes, weights)
        result = {
            **({"val/accuracy": self.best["val/accuracy"], "val/loss": self.best["val/loss"]} if self.best else {}),
            "test/accuracy": scores["accuracy"],
            "test/top5": scores["top5"],
            "test/loss": scores["loss"],
            "checkpoint": scores["checkpoint"],
            "step": step,
            "steps": self.plan.steps,
            "seconds": time.perf_counter() - self.began,
            "world_size": world.size,
        }
        run_folder.write_json(folder.path / "result.json", result)
        best = {f"best/{name}": value for name, value in result.items() if name == "step" or name.startswith("val/")}
        self.tracker.summary({**best, "test/accuracy": result["test/accuracy"], "test/loss": result["test/loss"]})
        self._status("finished", self.plan.steps)
        self.screen.end()
        _closing_table(self.screen, folder, result, self.tracker.commands)

    def _status(self, state: str, done: int) -> None:
        if self.world.is_main:
            self.folder.status(
                state, step=done, steps=self.plan.steps, seconds_to_first_step=round(self._to_first_step, 2)
            )


def _closing_table(screen: Screen, folder: RunFolder, result: dict[str, Any], commands: list[tuple[str, str]]) -> None:
    validation = f"{result['val/accuracy']:.4f}" if "val/accuracy" in result else "none held out; the last model counts"
    screen.table(
        f"Finished in {duration(result['seconds'])}",
        [
            ("validation", f"accuracy {validation}"),
            ("test", f"accuracy {result['test/accuracy']:.4f}, top-5 {result['test/top5']:.4f}, scored once"),
            ("model", f'timm.create_model("local-dir:{folder.model}", pretrained=True)'),
            ("metrics", str(folder.path / "metrics.jsonl")),
            ("again", f"python eval.py {folder.path}"),
            *commands,
        ],
    )
