"""The training loop, from a recipe to a tested and exported model."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from resnet_cifar import wandb_env
from resnet_cifar.checkpoints import run_dir
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import METRIC_NAMES, Recipe, selection_key
from resnet_cifar.config.train_options import TrainOptions, extended
from resnet_cifar.data import prepared_data
from resnet_cifar.data.loader import Batch, Loader, check_crop_padding
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.data.sampling import bn_indices
from resnet_cifar.distributed import launcher_env
from resnet_cifar.distributed.context import DistributedContext, is_lost_connection, is_out_of_memory
from resnet_cifar.distributed.signals import Interrupted, StopSignals, exit_code
from resnet_cifar.distributed.watchdog import RESUME_HINT, Watchdog
from resnet_cifar.evaluation import metrics
from resnet_cifar.evaluation.predict import Predictions, check_same_weights, precise_bn, predict
from resnet_cifar.reporting.console import Screen
from resnet_cifar.training import auto_micro_batch, finalize, plan_summary, preflight
from resnet_cifar.training.early_stopping import EarlyStopping
from resnet_cifar.training.metric_accumulator import StepMetrics
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.profiler import StepProfiler
from resnet_cifar.training.run_writer import RunWriter
from resnet_cifar.training.telemetry import Telemetry
from resnet_cifar.training.timings import Timings
from resnet_cifar.training.train_state import TrainState
from resnet_cifar.training.train_step import OutOfMemory, train_step

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


def train(recipe: Recipe, options: TrainOptions, stop: StopSignals) -> None:
    """Trains, evaluates and exports `recipe`. Raises UserError, and SystemExit where the run is interrupted."""
    timings = Timings()
    context = DistributedContext(recipe.precision, recipe.deterministic, options.compile)
    with context.sharing_failures():  # later the watchdog reports them
        trainer = _set_up(recipe, options, stop, context, timings)
    if trainer is not None:
        trainer.run()
    context.close()


def _set_up(
    recipe: Recipe, options: TrainOptions, stop: StopSignals, context: DistributedContext, timings: Timings
) -> Trainer | None:
    """Everything before training; None where the run is finished, or only planned. Raises UserError."""
    screen = Screen(shown=context.is_main)
    asked = dataclasses.replace(recipe, precision=context.precision)
    base = preflight.resolve(asked, screen.warn, context.run_on_main)
    path = Path(options.run) if options.run else run_dir.default_run_path(options.recipe, base)
    folder = RunDir(wandb_env.trial_path(run_dir.with_a_name(path)))
    recipe, extends = base, options.extend_epochs
    if extends and not context.run_on_main(lambda: "yes" if folder.is_extending(base, options.recipe, extends) else ""):
        recipe = extended(base, extends)
    preflight.check(recipe, context)
    if options.scaling:
        from resnet_cifar.training import scaling_results  # imports scipy, which training does not need

        measured = scaling_results.read(Path(options.scaling))  # a wrong file is found before images are prepared
    if not options.dry_run and context.run_on_main(lambda: _existing_run(folder, options, recipe, screen)):
        return None
    context.run_on_main(lambda: preflight.check_init_from(recipe) or "")
    with timings.part("data"):
        entry = context.run_on_main(lambda: str(prepared_data.prepare(recipe.data)), per_node=True)
        data = prepared_data.load(Path(entry), recipe, context.device)
    if options.refit:
        context.run_on_main(
            lambda: preflight.check_images(Path(options.refit), "--refit", recipe.data.source, data.fingerprint) or ""
        )
    plan = Plan(recipe, data.epoch_images, context.size, class_counts=data.class_counts().get("train", {}))
    plan = auto_micro_batch.first_try(plan, context.device)
    check_crop_padding(recipe, data.train)
    try:
        with timings.part("model"):
            state = TrainState(plan, context, data.classes, not options.dry_run, data.decoding)
    except RuntimeError as error:
        if is_lost_connection(error):
            raise UserError("another process ended before training began, and says why") from None
        raise
    screen.facts(plan_summary.describe(plan, context, data, folder.path))
    screen.facts([("weights", remark) for remark in state.init_remarks])
    for warning in (
        plan_summary.small_batch_warning(plan),
        plan_summary.few_steps_warning(plan),
        plan_summary.memory_warning(state),
        context.idle_threads_warning(),
    ):
        if warning:
            screen.warn(warning)
    if options.dry_run:
        screen.facts(plan_summary.estimate(state, data))
        if options.scaling:
            file, devices = Path(options.scaling), options.scaling_devices or context.size
            screen.facts(scaling_results.describe(measured, file, plan, devices, context.compiled))
        return None
    writer = RunWriter(plan, context, data, folder, screen, timings)
    watchdog = Watchdog(context, stop, recipe.rank_timeout, folder.path)
    return Trainer(plan, context, data, state, writer, watchdog, options.profile_steps)


def _existing_run(folder: RunDir, options: TrainOptions, recipe: Recipe, screen: Screen) -> str:
    """`finished` where the directory holds the finished run, "" where there is something to train.

    Raises UserError where it holds another recipe's run, or cannot be used.
    """
    try:
        if options.restart and not launcher_env.restart_count():  # a process that the launcher restarts resumes
            if aside := folder.move_aside():
                screen.say(f"starting over; the previous run is now in {aside}")
            return ""
        folder.check(recipe, extends=bool(options.extend_epochs))
        result = folder.finished(recipe)
        if result is None:
            folder.check_writable()
            return ""
        folder.mark_finished(result)
    except OSError as error:
        raise UserError(f"--run {folder.path} cannot be used ({error.strerror}): name another folder") from None
    again = f"--recipe {folder.path / 'recipe.yaml'} --run {folder.path} " if options.extend_epochs else ""
    can_go_on = recipe.phases and not recipe.refit_steps and not folder.is_out_of_patience(recipe)
    longer = f", {again}--extend-epochs EPOCHS continues it" if can_go_on else ""
    screen.say(f"this run is finished (--restart starts it over{longer})")
    finalize.closing_table(screen, folder, recipe, result, [])
    return "finished"


class _RankOutOfMemory(UserError):
    """This rank's device is out of memory."""


class Trainer:
    """One attempt at a run: trains from where its directory is to the end."""

    def __init__(
        self,
        plan: Plan,
        context: DistributedContext,
        data: ImageData,
        state: TrainState,
        writer: RunWriter,
        watchdog: Watchdog,
        profile_steps: int,
    ) -> None:
        self.plan, self.context, self.data = plan, context, data
        self.state, self.writer, self.watchdog = state, writer, watchdog
        rows = plan.rows(context.rank)
        self.loader = Loader(plan.recipe, data.train, len(data.classes), state.preprocess, rows)
        self.bn_rows = bn_indices(plan.recipe.seed, len(data.train))
        self.stopping = EarlyStopping(plan.recipe.early_stopping)
        self.telemetry = Telemetry(plan, context, data)
        self.best: dict[str, Any] | None = None
        self.validated: tuple[int, Predictions] | None = None  # the best model's step and validation predictions
        self.bn_stats_step = -1  # the step whose weights BatchNorm's statistics belong to
        self._profile_steps = profile_steps if context.is_main else 0
        self._pending_row: dict[str, Any] | None = None  # of an evaluation that is not finished

    def run(self) -> None:
        """Trains the remaining steps, then evaluates the best model once on the test split and exports it."""
        writer, ended, why = self.writer, "failed", ""
        self.watchdog.leaving = writer.leave
        try:
            try:
                self._resume()
                with writer.timings.part("steps"):
                    self._train()
                self.watchdog.training_done()
                outcome = finalize.TrainingOutcome(self.best, self.validated, self.bn_stats_step)
                check_stop = self.watchdog.check_stop
                finalize.test_and_export(self.state, self.data, writer, self.telemetry, outcome, check_stop)
                ended = "finished"
            except Interrupted as request:
                self._save_interrupted()
                ended, why = "interrupted", str(request)
            writer.end_nodes(ended)
        except _RankOutOfMemory as error:  # the other ranks do not know
            why = str(error)
            self.watchdog.fail(why, everywhere=False)
            raise
        except OSError as error:
            is_disk = error.errno in _DISK
            full = f"{writer.folder.path} cannot be written ({error.strerror}): make room, and {RESUME_HINT}"
            why = full if is_disk else f"{type(error).__name__}: {error}"
            self.watchdog.fail(why, everywhere=False)
            if is_disk:
                raise UserError(why) from None
            raise
        except BaseException as error:
            why = str(error) or type(error).__name__
            if is_lost_connection(error):
                self.watchdog.blame()
                ended = "lost"
            self.watchdog.fail(why, everywhere=isinstance(error, UserError))
            raise
        finally:
            writer.end(ended, why)
        self.watchdog.close()
        if ended == "interrupted":
            writer.say_interrupted(why)
            # An agent counts other codes than 0 as failures, and ends after a few of them.
            raise SystemExit(0 if writer.is_stopped else exit_code())

    def _train(self) -> None:
        plan, state, writer, start = self.plan, self.state, self.writer, self.writer.done
        self._begin()
        if self._pending_row:
            self._evaluate_and_save(self._pending_row, evaluate=True)
        if self.stopping.over:
            return
        with StepProfiler(self._profile_steps, writer.folder.path / "profile", writer.screen.say) as profiler:
            for step in range(start, plan.steps):
                if step > start and plan.begins_stage(step):
                    self._start_stage(step)
                batch = profiler.annotate(self._batch(step))
                self.watchdog.check_stop(step)
                with writer.timings.part("first_step" if step == start else "steps"):
                    self._train_step(step, batch)
                writer.done = done = step + 1
                if plan.should_log(done):
                    state.metrics.flush_async(done)
                    if plan.should_save(done) or writer.is_time_to_save():
                        *earlier, last = map(self._row, state.metrics.poll(wait=True))
                        self._log(*earlier)
                        self._evaluate_and_save(last, evaluate=plan.should_eval(done))
                        if self.stopping.over:
                            return
                self._log(*map(self._row, state.metrics.poll()))
                profiler.step()

    def _train_step(self, step: int, batch: Iterator[Batch]) -> None:
        """The step, repeated in smaller micro-batches where memory runs out and the recipe says `auto`.

        Other ranks may wait for this one's gradients, so several processes have to start over.
        """
        try:
            train_step(self.state, step, batch, self.plan.lr(step))
            return
        except OutOfMemory as error:
            failed = str(error)  # not the error itself, whose frames hold the pass's tensors
        while True:
            if self.plan.recipe.micro_batch != "auto" or self.context.size > 1:
                raise self._out_of_memory(failed)
            self._use_micro_batch(self._smaller_micro_batch())
            with contextlib.suppress(OutOfMemory):
                train_step(self.state, step, self._batch(step), self.plan.lr(step))
                return

    def _out_of_memory(self, failed: str) -> _RankOutOfMemory:
        """What ends this rank; with `auto` the next attempt takes smaller micro-batches."""
        before, recipe = self.plan.micro_batch, self.plan.recipe
        if recipe.micro_batch == "auto":
            self._smaller_micro_batch()
            return _RankOutOfMemory(f"{failed}, with micro-batches of {before}: {RESUME_HINT}, with smaller ones")
        half = self.plan.smaller_micro_batch
        fix = f"set --micro_batch {half} or auto" if half else "lower model.ghost_batch_size, or use a smaller model"
        return _RankOutOfMemory(f"{failed}, with micro_batch {before}: {fix}")

    def _smaller_micro_batch(self) -> Plan:
        """The plan with the next smaller micro-batch, which is recorded in the run directory."""
        plan = auto_micro_batch.smaller(self.plan)
        with contextlib.suppress(OSError):  # of a rank that does not see the directory: rank 0 will find it again
            auto_micro_batch.save(plan, self.context, self.writer.folder)
        return plan

    def _prime_ddp(self, step: int) -> None:
        """`TrainState.prime_ddp` with images of update `step`."""
        try:
            self.state.prime_ddp(*next(self._batch(step)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory(f"{self.context.describe()} ran out of memory before update {step}") from None

    def _batch(self, step: int) -> Iterator[Batch]:
        return self.loader.batch(step, self.plan.image_size(step), self.plan.micro_batch)

    def _start_stage(self, step: int) -> None:
        """From `step` on other weights are trained, with a new optimizer."""
        self.state.start_stage(self.plan.phase_at(step).trainable)
        self._prime_ddp(step)
        self._estimate_frozen_bn(step)

    def _estimate_frozen_bn(self, step: int) -> None:
        """The statistics that frozen BatchNorm layers use throughout a stage that trains the head.

        Every evaluation of the stage estimates the same ones again, so it does not matter when evaluations happen. The
        watchdog does not count it: before the first step a request to stop is answered immediately.
        """
        if self.plan.begins_stage(step) and self.plan.phase_at(step).trainable == "head":
            precise_bn(self.context, self.state.model, self.data.train, self.state.preprocess, self.bn_rows)

    def _resume(self) -> None:
        """Restores the latest checkpoint, if there is one: rank 0 reads it and broadcasts it."""
        state, writer = self.state, self.writer
        saved, values = writer.open()
        if self.plan.recipe.micro_batch == "auto" and self.plan.steps:
            self._use_micro_batch(auto_micro_batch.fit(self.plan, state, self.context, writer.folder))
        step = values["step"] if values else 0
        if self.plan.phase_at(step).trainable != self.plan.phase_at(0).trainable:
            state.start_stage(self.plan.phase_at(step).trainable)
        if self.plan.steps:
            self._prime_ddp(min(step, self.plan.steps - 1))
        if values is not None:
            state.restore(saved, values)
            writer.done = step
            self.best, self._pending_row = values["best"], values["pending_row"]
            self.bn_stats_step = step if values["bn_stats_current"] else -1
            self.stopping.resume(values["stopping"])
            best = ""
            if self.best:
                select_by = self.plan.recipe.evaluate.select_by
                best = f", best validation {METRIC_NAMES[select_by]} {self.best[f'val/{select_by}']:.4f}"
            writer.screen.say(f"resuming at step {step}, epoch {self.plan.epoch(step):.2f}{best}")
        elif self.plan.recipe.model.head.init == "probe":
            with writer.timings.part("probe"):
                state.fit_probe(self.data.train, self.bn_rows, self.watchdog.check_stop)
            self._pending_row = {"step": 0, "epoch": 0.0, "images": 0}  # evaluated like any other step
        self._estimate_frozen_bn(step)

    def _begin(self) -> None:
        writer = self.writer
        writer.screen.begin(self.plan.steps, writer.done)
        writer.seconds_to_first_step = time.time() - psutil.Process().create_time()
        writer.status("running")
        self.telemetry.start(writer.done)

    def _use_micro_batch(self, plan: Plan) -> None:
        self.plan = self.state.plan = plan
        self.writer.screen.say(f"micro_batch auto: {plan.micro_batch} images per backward pass fit the device")

    def _evaluate_and_save(self, row: dict[str, Any], evaluate: bool) -> None:
        """Evaluates the model if it is time to, logs the step's row, and saves."""
        began = time.perf_counter()
        if evaluate:
            self._pending_row = dict(row)
            row |= self._evaluate()
            self._pending_row = None
        self._log(row)
        with self.writer.timings.part("checkpoint"):
            self._save()
        self.writer.status("running")
        self.telemetry.exclude(time.perf_counter() - began)

    def _evaluate(self) -> dict[str, float]:
        """Evaluates the current weights on the validation split and remembers the best."""
        state, context, validation = self.state, self.context, self.data.validation
        for model in dict.fromkeys((state.model, state.scored)):
            check_same_weights(context, model)
        check_stop = self.watchdog.check_stop
        with self.writer.timings.part("precise_bn"):
            precise_bn(context, state.scored, self.data.train, state.preprocess, self.bn_rows, check_stop)
        self.bn_stats_step = self.writer.done
        if not len(validation):
            return {}
        with self.writer.timings.part("evaluation"):
            predictions = predict(context, state.wrapped_for_eval, validation, state.preprocess, check_stop)
            scores = {f"val/{key}": value for key, value in metrics.summary(*predictions).items()}
        self.stopping.update(scores)
        select_by = self.plan.recipe.evaluate.select_by
        if self.best is None or selection_key(scores, select_by) > selection_key(self.best, select_by):
            # The earlier of equals.
            self.best = {"step": self.writer.done, **scores}
            self.validated = self.writer.done, predictions
        return scores

    def _row(self, found: StepMetrics) -> dict[str, Any]:
        optional = {"gradient_norm": found.gradient_norm, "skipped_updates": found.skipped}
        return {
            "step": found.step,
            "epoch": self.plan.epoch(found.step),
            "images": found.step * self.plan.recipe.batch_size,
            "lr": found.lr,
            "train/loss": found.loss,
            "train/accuracy": found.accuracy,
            **{name: value for name, value in optional.items() if value is not None},
            **self.telemetry.row(found.step),
        }

    def _log(self, *rows: dict[str, Any]) -> None:
        for row in rows:
            self.writer.row(row, is_best=self.best is not None and self.best["step"] == row["step"])

    def _save(self, partial: dict[str, float] | None = None) -> None:
        """Hands a copy of the state to the writer; `partial`: the sums of a row that is not complete yet."""
        if not self.context.is_main:
            return
        values = {
            "best": self.best,
            "stopping": self.stopping.state(),
            "partial": partial,
            "pending_row": self._pending_row,
            "bn_stats_current": self.bn_stats_step == self.writer.done,
            "scaler": self.context.scaler.state_dict() if self.context.scaler is not None else None,
            "skipped": self.state.metrics.skipped,
        }
        with self.telemetry.waiting():
            self.writer.save(self.state.snapshot(), values)

    def _save_interrupted(self) -> None:
        """Saves what has been done since the last checkpoint, at the same step on every rank."""
        self.watchdog.training_done()
        self._log(*map(self._row, self.state.metrics.poll(wait=True)))
        partial = self.state.metrics.pending_sums(self.writer.done)  # collective: every rank takes part
        if self.writer.done > self.writer.saved:
            self._save(partial)
        self.writer.energy_kwh = self.telemetry.energy_kwh()
        self.writer.wait()
