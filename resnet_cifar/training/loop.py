"""The story of a run, from a recipe to a scored model."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from resnet_cifar import commands, run_folder
from resnet_cifar import model as models
from resnet_cifar.commands import TrainCommand
from resnet_cifar.data import store
from resnet_cifar.data.batches import Batch, Batches, check_crop
from resnet_cifar.data.plan import Plan
from resnet_cifar.data.store import ImageData
from resnet_cifar.recipe import Mistake, Recipe
from resnet_cifar.reporting import environment, metrics, model_card, score_files
from resnet_cifar.reporting.console import Screen, duration
from resnet_cifar.run_folder import RunFolder
from resnet_cifar.training import beforehand, checkpoint, closing, fit, launched, outline, snapshot
from resnet_cifar.training.early_stopping import EarlyStopping
from resnet_cifar.training.evaluate import Predictions, check_same_weights, fit_on_validation, predict, refresh_norms
from resnet_cifar.training.interrupts import Interrupted, Requests, exit_code
from resnet_cifar.training.profile import profiled
from resnet_cifar.training.recorder import Recorder
from resnet_cifar.training.snapshot import Snapshot
from resnet_cifar.training.step import Learner, OutOfMemory
from resnet_cifar.training.tally import Sums
from resnet_cifar.training.telemetry import Telemetry
from resnet_cifar.training.timings import Timings
from resnet_cifar.training.watch import GO_ON, Watch
from resnet_cifar.training.world import World, lost_connection

_COSTS = {"gpu_hours": "GPU-hours", "energy_kwh": "kWh"}  # of result.json: unit
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


def train(command: TrainCommand, base: Recipe, requests: Requests) -> None:
    """Trains, evaluates and exports what `command` asks for. Raises Mistake, and SystemExit where it is interrupted."""
    timings = Timings()
    world = World(base.precision, base.deterministic, command.compile)
    screen = Screen(shown=world.is_main)
    base = beforehand.resolved(dataclasses.replace(base, precision=world.precision), screen.warn)
    recipe = commands.extended(base, command.extend)
    folder = RunFolder(Path(command.run) if command.run else run_folder.default_path(command.recipe, base))
    beforehand.check(recipe, world)
    if not command.dry_run and world.main_first(lambda: _look(folder, command, recipe, screen)) == "finished":
        world.close()
        return
    world.main_first(lambda: beforehand.check_start(recipe) or "")
    with timings.part("data"):
        entry = world.main_first(lambda: str(store.ensure(recipe.data)), per_node=True)
        data = store.load(Path(entry), recipe, world.device)
    plan = Plan(recipe, len(data.train), world.size)
    check_crop(recipe, data.train)
    try:
        with timings.part("model"):
            learner = Learner(plan, world, len(data.classes), pretrained=not command.dry_run)
    except RuntimeError as error:
        if lost_connection(error):
            raise Mistake("another process ended before training began, and says why") from None
        raise
    screen.facts(outline.describe(plan, world, data, folder.path))
    for warning in filter(None, (outline.small_share(plan), world.idle_threads())):
        screen.warn(warning)
    if command.dry_run:
        screen.facts(outline.estimate(learner, data))
    else:
        recorder = Recorder(plan, world, data, folder, screen, timings)
        Run(plan, world, data, learner, recorder, Watch(world, requests, recipe.rank_timeout), command.profile).run()
    world.close()


def _look(folder: RunFolder, command: TrainCommand, recipe: Recipe, screen: Screen) -> str:
    """Whether the folder's run is `finished`. Raises Mistake where it is another recipe's, or cannot be used."""
    try:
        return _look_into(folder, command, recipe, screen)
    except OSError as error:
        raise Mistake(f"--run {folder.path} cannot be used ({error.strerror}): name another folder") from None


def _look_into(folder: RunFolder, command: TrainCommand, recipe: Recipe, screen: Screen) -> str:
    if command.fresh and not launched.attempt():  # a restart goes on
        if aside := folder.move_aside():
            screen.say(f"starting over; what was there is now in {aside}")
        return "new"
    folder.check(recipe, extends=bool(command.extend))
    result = folder.finished(recipe)
    if result is None:
        folder.check_writable()
        return "new"
    folder.mark_finished(result)
    further = f"--recipe {folder.path / 'recipe.yaml'} --run {folder.path} " if command.extend else ""
    screen.say(f"this run is finished (--fresh starts it over, {further}--extend EPOCHS goes on)")
    _closing_table(screen, folder, result, [])
    return "finished"


class _Shortage(Mistake):
    """This rank's device has no memory left."""


class Run:
    """One start of a run: trains from where its folder is to the end."""

    def __init__(
        self,
        plan: Plan,
        world: World,
        data: ImageData,
        learner: Learner,
        recorder: Recorder,
        watch: Watch,
        profile: int,
    ) -> None:
        self.plan, self.world, self.data = plan, world, data
        self.learner, self.recorder, self.watch = learner, recorder, watch
        self._profile = profile if world.is_main else 0  # steps to trace
        self.batches = Batches(plan, data.train, len(data.classes), learner.format, world.rank)
        self.norm_rows = plan.norm_rows()
        self.best: dict[str, Any] | None = None
        self.stopping = EarlyStopping(plan.recipe.early_stopping)
        self.began = time.perf_counter()
        self.telemetry = Telemetry(plan, world, data)
        self._unscored: dict[str, Any] | None = None  # the row of a score that is under way
        self._validated: tuple[int, Predictions] | None = None  # the best model's step, and its validation predictions
        self._fresh_at = -1  # the step whose weights BatchNorm's statistics are of

    def run(self) -> None:
        """Trains every step that is left, then scores the best model once on the test split."""
        recorder, ended, why = self.recorder, "failed", ""
        self.watch.leaving = recorder.leave
        try:
            try:
                self._resume(*recorder.open())
                with recorder.timings.part("steps"):
                    self._train()
                self._finish()
                ended = "finished"
            except Interrupted as request:
                self._save_interrupted()
                ended, why = "interrupted", str(request)
        except _Shortage as error:  # of this rank; the others know nothing of it
            why = str(error)
            self.watch.fail(why, everywhere=False)
            raise
        except OSError as error:
            is_disk = error.errno in _DISK
            full = f"{recorder.folder.path} cannot be written ({error.strerror}): make room, and {GO_ON}"
            why = full if is_disk else f"{type(error).__name__}: {error}"
            self.watch.fail(why, everywhere=False)
            if is_disk:
                raise Mistake(why) from None
            raise
        except BaseException as error:
            why = str(error) or type(error).__name__
            if lost_connection(error):
                self.watch.blame()
                ended = "lost"
            self.watch.fail(why, everywhere=isinstance(error, Mistake))
            raise
        finally:
            recorder.end(ended, why)
        self.watch.close()
        if ended == "interrupted":
            recorder.screen.say(f"interrupted by {why} at step {recorder.done}, and saved: {GO_ON}")
            raise SystemExit(exit_code())

    def _resume(self, saved: Snapshot | None, state: dict[str, Any] | None) -> None:
        """Takes up what was saved; rank 0 has read it, and the others get it from there."""
        learner, world, recorder = self.learner, self.world, self.recorder
        if self.plan.recipe.micro_batch == "auto":
            self._take(fit.fit(self.plan, learner, world, recorder.folder))
        step = state["step"] if state else 0
        if self.plan.phase_at(step).train != self.plan.phase_at(0).train:
            learner.begin(self.plan.phase_at(step).train)
        learner.warm_up(*next(self.batches.step(min(step, self.plan.steps - 1))))
        if state is not None:
            self._take_up(saved, state)
        self._freeze_norms(step)

    def _take_up(self, saved: Snapshot | None, state: dict[str, Any]) -> None:
        learner, world, recorder, step = self.learner, self.world, self.recorder, state["step"]
        weights = world.share(saved.weights if saved else None)
        optimizer = world.share(saved.optimizer if saved else None)
        average = world.share(saved.average if saved else None) if learner.average is not None else None
        try:
            if self.plan.begins_stage(step):  # the optimiser that was saved has done its part
                snapshot.restore_weights(weights, learner.model)
            else:
                snapshot.restore(Snapshot(weights, optimizer, state["optimizer"]), learner.model, learner.optimizer)
            if average is not None:
                snapshot.restore_weights(average, learner.average)
        except Mistake as mistake:
            raise Mistake(f"the checkpoint of step {step} does not fit: {mistake}") from None
        if world.scaler is not None:
            world.scaler.load_state_dict(state["scaler"])
        recorder.done = step
        learner.tally.resume_at(step, state["begun"], state["skipped"])
        self.best, self._unscored = state["best"], state["unscored"]
        self._fresh_at = step if state["norms_fresh"] else -1
        self.stopping.resume(state["stopping"])
        best = f", best validation accuracy {self.best['val/accuracy']:.4f}" if self.best else ""
        recorder.screen.say(f"resuming at step {step}, epoch {self.plan.epoch(step):.2f}{best}")

    def _train(self) -> None:
        plan, learner, recorder, start = self.plan, self.learner, self.recorder, self.recorder.done
        recorder.screen.begin(plan.steps, start)
        recorder.seconds_to_first_step = time.time() - psutil.Process().create_time()
        recorder.status("running")
        self.telemetry.start(start)
        if self._unscored:
            self._settle(self._unscored, score=True)
        if self.stopping.over:
            return
        for step, micro_batches in profiled(
            self._steps(start), self._profile, recorder.folder.path / "profile", recorder.screen.say
        ):
            self.watch.tick(step)
            try:
                with recorder.timings.part("first_step" if step == start else "steps"):
                    learner.update(step, micro_batches)
            except OutOfMemory as error:
                self._update_in_smaller_parts(step, error)
            recorder.done = done = step + 1
            if plan.is_row(done):
                learner.tally.take(done)
                if plan.is_checkpoint(done) or recorder.is_time_to_save():
                    *before, last = (self._row(sums) for sums in learner.tally.ready(wait=True))
                    self._write(*before)
                    self._settle(last, score=plan.is_score(done))
                    if self.stopping.over:
                        return
            self._write(*map(self._row, learner.tally.ready()))

    def _steps(self, start: int) -> Iterator[tuple[int, Iterator[Batch]]]:
        """The steps that are left, from `start` on; between two stages it changes what learns."""
        for first, end in self.plan.stages(start):
            if first > start:
                self.learner.begin(self.plan.phase_at(first).train)
                self.learner.warm_up(*next(self.batches.step(first)))
                self._freeze_norms(first)
            yield from enumerate(self.batches.steps(first, end), start=first)

    def _freeze_norms(self, step: int) -> None:
        """Where a stage that trains the head begins: what its frozen BatchNorm goes by all the time.

        Every score of the stage estimates the same again, so that it does not matter when scores fall. It is no unit of
        the watch's: where nothing has been done since the start, a request is answered at once.
        """
        if self.plan.begins_stage(step) and self.plan.phase_at(step).train == "head":
            refresh_norms(self.world, self.learner.model, self.data.train, self.learner.format, self.norm_rows)

    def _update_in_smaller_parts(self, step: int, error: OutOfMemory) -> None:
        """The same update again. Other ranks may wait for this one's gradients: several processes must start over."""
        world, recorder = self.world, self.recorder
        if self.plan.recipe.micro_batch != "auto":
            half = self.plan.smaller_micro_batch
            mend = f"take --micro_batch {half} or auto" if half else "lower model.norm_batch, or take a smaller model"
            raise _Shortage(f"{error}, with micro_batch {self.plan.micro_batch}: {mend}")
        while True:
            plan = fit.smaller(self.plan)
            with contextlib.suppress(OSError):  # of a rank that does not see the folder: rank 0 will ask again
                fit.note(plan, world, recorder.folder)
            if world.size > 1:
                raise _Shortage(f"{error}, with micro-batches of {self.plan.micro_batch}: {GO_ON}, with smaller ones")
            self._take(plan)
            with contextlib.suppress(OutOfMemory):
                self.learner.update(step, self.batches.step(step))
                return

    def _take(self, plan: Plan) -> None:
        """Goes on in micro-batches of the size that was found."""
        self.plan = self.learner.plan = self.batches.plan = plan
        self.recorder.screen.say(f"micro_batch auto: {plan.micro_batch} images a backward pass fit the device")

    def _settle(self, row: dict[str, Any], score: bool) -> None:
        """Scores the model if it is time to, writes the step's row, and saves."""
        began = time.perf_counter()
        if score:
            self._unscored = dict(row)
            row |= self._score()
            self._unscored = None
        self._write(row)
        with self.recorder.timings.part("checkpoint"):
            self._save()
        self.recorder.status("running")
        self.telemetry.exclude(time.perf_counter() - began)

    def _score(self) -> dict[str, float]:
        """Scores today's weights on the validation split and remembers the best."""
        learner, world, validation = self.learner, self.world, self.data.validation
        for model in dict.fromkeys((learner.model, learner.scored)):
            check_same_weights(world, model)
        with self.recorder.timings.part("precise_bn"):
            refresh_norms(world, learner.scored, self.data.train, learner.format, self.norm_rows, self.watch.tick)
        self._fresh_at = self.recorder.done
        if not len(validation):
            return {}
        with self.recorder.timings.part("evaluation"):
            predictions = predict(world, learner.wrapped_to_score, validation, learner.format, self.watch.tick)
            scores = {f"val/{key}": value for key, value in metrics.summary(*predictions).items()}
        self.stopping.see(scores)
        if self.best is None or scores["val/accuracy"] > self.best["val/accuracy"]:  # ties keep the earlier
            self.best = {"step": self.recorder.done, **scores}
            self._validated = self.recorder.done, predictions
        return scores

    def _row(self, sums: Sums) -> dict[str, Any]:
        norm = {} if sums.gradient_norm is None else {"gradient_norm": sums.gradient_norm}
        return {
            "step": sums.step,
            "epoch": self.plan.epoch(sums.step),
            "images": sums.step * self.plan.recipe.batch_size,
            "lr": sums.rate,
            "train/loss": sums.loss,
            "train/accuracy": sums.accuracy,
            **norm,
            **self.telemetry.row(sums.step),
        }

    def _write(self, *rows: dict[str, Any]) -> None:
        for row in rows:
            self.recorder.row(row, is_best=self.best is not None and self.best["step"] == row["step"])

    def _save(self, begun: dict[str, float] | None = None) -> None:
        """Hands a copy of the state to the writer; `begun`: the sums of a row that is not over yet."""
        if not self.world.is_main:
            return
        state = {
            "best": self.best,
            "stopping": self.stopping.state(),
            "begun": begun,
            "unscored": self._unscored,
            "norms_fresh": self._fresh_at == self.recorder.done,
            "scaler": self.world.scaler.state_dict() if self.world.scaler is not None else None,
            "skipped": self.learner.tally.skipped,
        }
        learner = self.learner
        with self.telemetry.waiting():
            self.recorder.save(snapshot.take(learner.model, learner.optimizer, learner.average), state)

    def _save_interrupted(self) -> None:
        """Saves what has been done since the last checkpoint, at the same step on every rank."""
        self.watch.trained()
        self._write(*map(self._row, self.learner.tally.ready(wait=True)))
        begun = self.learner.tally.unread(self.recorder.done)  # every rank takes part, whoever has saved since
        if self.recorder.done > self.recorder.saved:
            self._save(begun)
        self.recorder.energy_kwh = self.telemetry.energy_kwh()
        self.recorder.wait()

    def _finish(self) -> None:
        """Scores the chosen checkpoint on the test split, once, and exports it."""
        learner, world, recorder, folder = self.learner, self.world, self.recorder, self.recorder.folder
        recipe, data, part = self.plan.recipe, self.data, recorder.timings.part
        self.watch.trained()
        step = self.best["step"] if self.best else recorder.done
        chosen = folder.checkpoints / checkpoint.name(step)
        is_in_memory = step == recorder.done == self._fresh_at  # then its checkpoint is written while it is scored
        if world.is_main and not is_in_memory:
            with part("checkpoint"):
                checkpoint.read_state(chosen)
                learner.scored.load_state_dict(checkpoint.weights(chosen))
        world.broadcast_(learner.scored)
        scored = learner.wrapped_to_score
        with part("evaluation"):
            predictions = predict(world, scored, data.test, learner.format, self.watch.tick)
            known = self._validated[1] if self._validated and self._validated[0] == step else None
            temperature = fit_on_validation(world, scored, data, learner.format, self.watch.tick, known)
        recorder.energy_kwh = self.telemetry.energy_kwh()
        if not world.is_main:
            return
        with part("checkpoint"):
            recorder.wait()
            if is_in_memory:
                checkpoint.read_state(chosen)  # no result names a checkpoint that is not whole
        with part("evaluation"):
            found = {
                **score_files.facts("test", recipe, data.fingerprint, str(chosen.relative_to(folder.path))),
                **metrics.full(*predictions, data.classes, temperature),
            }
            score_files.write(folder.path, "test", found, *predictions, data.test.indices)
        result = {
            **({"val/accuracy": self.best["val/accuracy"], "val/loss": self.best["val/loss"]} if self.best else {}),
            "test/accuracy": found["accuracy"],
            "test/top5": found["top5"],
            "test/loss": found["loss"],
            "checkpoint": found["checkpoint"],
            "step": step,
            "steps": recorder.done,
            "stopped_early": self.stopping.over,
            "seconds": time.perf_counter() - self.began,
            "world_size": world.size,
            **recorder.costs(),
        }
        facts = {"temperature": temperature, "stored_size": data.train.side, "fingerprint": data.fingerprint}
        with part("export"):
            card = closing.card(lambda: self._card(found, {**result, **facts}), recorder.screen.warn)
            models.export(learner.scored, folder.model, recipe, data.classes, learner.scored.state_dict(), facts, card)
        run_folder.write_json(folder.path / "result.json", result)
        best = {f"best/{name}": value for name, value in result.items() if name == "step" or name.startswith("val/")}
        costs = {name: result[name] for name in _COSTS if name in result}
        final = {**best, "test/accuracy": result["test/accuracy"], "test/loss": result["test/loss"], **costs}
        recorder.status("finished")
        recorder.screen.end()
        page = None
        if recipe.track.report:
            warn = recorder.screen.warn
            with part("report"):
                closing.keep_pictures(folder.path, "test", predictions, data.test, temperature, warn)
                page = closing.write_page(folder.path, "test", warn)
        recorder.summary(final, with_figures=page is not None)
        recorder.report_timings()
        _closing_table(recorder.screen, folder, result, recorder.tracker.commands)

    def _card(self, found: dict[str, Any], result: dict[str, Any]) -> str:
        config = self.learner.scored.pretrained_cfg
        here = {**environment.describe(), "world_size": self.world.size}
        needs_package = models.is_ours(config["architecture"])
        return model_card.text(self.plan.recipe, config, found, result, here, needs_package)


def _closing_table(screen: Screen, folder: RunFolder, result: dict[str, Any], curves: list[tuple[str, str]]) -> None:
    validation = f"{result['val/accuracy']:.4f}" if "val/accuracy" in result else "none held out; the last model counts"
    early = f", stopped early at step {result['steps']}" if result["stopped_early"] else ""
    page = folder.path / "report" / "index.html"
    costs = [f"{result[name]:.3g} {unit}" for name, unit in _COSTS.items() if name in result]
    screen.table(
        f"Finished in {duration(result['seconds'])}{early}",
        [
            ("validation", f"accuracy {validation}"),
            ("test", f"accuracy {result['test/accuracy']:.4f}, top-5 {result['test/top5']:.4f}, scored once"),
            *([("compute", ", ".join(costs))] if costs else []),
            ("model", f'timm.create_model("local-dir:{folder.model}", pretrained=True)'),
            ("metrics", str(folder.path / "metrics.jsonl")),
            ("report", str(page) if page.is_file() else f"none yet: python -m resnet_cifar.report {folder.path}"),
            ("again", f"python eval.py {folder.path}"),
            *curves,
        ],
    )
