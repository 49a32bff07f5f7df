"""The training loop: what a worker runs, under Ray Train or a local launcher.

A run can be killed at any moment and goes on from its newest checkpoint as if nothing had happened:
what a step does depends on the model, the optimizers, the position in the data, the seed and the
number of the step, and on nothing else.
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from infnet_dist import checkpoint
from infnet_dist.batch import RankingBatch
from infnet_dist.checkpoint import (
    CheckpointManifest,
    CheckpointMetadata,
    NotFiniteError,
    RunTotals,
    SavedProgress,
    Saver,
)
from infnet_dist.config.run import Config
from infnet_dist.data.checks.footers import count_without
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.distributed.control import ControlFlags
from infnet_dist.distributed.watchdog import Watchdog
from infnet_dist.errors import CheckpointError, UserError
from infnet_dist.io.json_files import nan_for_null
from infnet_dist.model.ranking import StepOutput
from infnet_dist.sharding.build import ShardedModel, stable_seed
from infnet_dist.sharding.optimizers import learning_rate_factor, set_learning_rate
from infnet_dist.tracking.tracker import NullTracker, Tracker
from infnet_dist.training.data_changes import check_resumable, check_unchanged
from infnet_dist.training.evaluation import evaluate
from infnet_dist.training.meters import TrainMeter
from infnet_dist.training.nonfinite import diagnose_nonfinite
from infnet_dist.training.preemption import GracefulShutdown
from infnet_dist.training.progress import TrainingProgress
from infnet_dist.training.run_folder import (
    checkpoint_folder,
    close_run_folder,
    open_run_folder,
    read_attempts,
)
from infnet_dist.training.run_lock import held_by_workers
from infnet_dist.training.run_log import RunLog
from infnet_dist.training.setup import TrainingSetup, check_can_train, stream

log = logging.getLogger("infnet_dist")


def train_step(
    sharded: ShardedModel,
    batch: RankingBatch,
    config: Config,
    *,
    step: int,
    total_steps: int,
    rank: int = 0,
    may_update: Callable[[torch.Tensor], bool] = lambda loss: True,
) -> tuple[torch.Tensor, StepOutput]:
    """One optimizer step; `step` (the first is 0) of `total_steps` sets the learning rates.

    Random numbers (dropout) depend on `run.seed`, `rank` and `step` alone.

    Args:
        sharded: the model and its optimizers.
        batch: this rank's rows.
        config: the run.
        step: the first is 0.
        total_steps: of the run.
        rank: of this worker.
        may_update: asked with the loss before anything changes; False, from all ranks alike, leaves
            the update out.

    Returns:
        The detached loss of this rank's batch and its by-products.
    """
    torch.manual_seed(stable_seed(config.run.seed, "step", rank, step))
    factor = learning_rate_factor(config.schedule, step, total_steps)
    set_learning_rate(sharded.sparse_optimizer, factor * config.sparse_optimizer.learning_rate)
    set_learning_rate(sharded.dense_optimizer, factor * config.dense_optimizer.learning_rate)
    sharded.optimizer.zero_grad()
    loss, output = sharded.model(batch)
    if may_update(loss.detach()):
        loss.backward()  # rows of the tables are updated here
        sharded.optimizer.step()
    return loss.detach(), output


def train(
    context: WorkerContext,
    config: Config,
    *,
    run_folder: Path,
    stop_file: Path | None = None,
    last_words: Path | None = None,
) -> dict[str, Any]:
    """Train a run, from its newest checkpoint if it has one; every rank calls it.

    Args:
        context: this worker.
        config: the run.
        run_folder: on storage that all nodes share.
        stop_file: the run saves and stops once there is a file of this name.
        last_words: file in which the watchdog says why it ends the workers.

    Returns:
        The summary that also stands in `summary.json`.

    Raises:
        UserError: bad data, plan or checkpoint, or a loss that isn't finite; on all ranks.
    """
    stop = GracefulShutdown(stop_file if context.is_first else None)
    with stop.on_sigterm(), ExitStack() as stack:
        context.together(lambda: check_can_train(config))
        setup = TrainingSetup.open(config, context, splits=["train", "valid"])
        lock = held_by_workers(run_folder, config.scaling)
        context.together(lambda: stack.enter_context(lock) if context.is_first else None)
        folder = checkpoint_folder(config, run_folder)
        manifest, damaged = checkpoint.load_newest(folder, setup.sharded, context)
        if manifest:
            setup.keep_rates(manifest.unknown_id_rates)
            growth = check_resumable(manifest, setup.order, setup.manifest)
            if growth and context.is_first:
                log.warning("%s", growth)
        context.together(
            lambda: (
                checkpoint.check_writable(folder, config, resumed=manifest is not None)
                if context.is_first
                else None
            )
        )
        tracker = context.together(lambda: _open(setup, run_folder, manifest))
        watchdog = Watchdog(context, config.scaling.hang_timeout_s, last_words)
        saver = Saver(folder, setup.sharded, config, context, watchdog.moved, damaged)
        training = _Training(setup, manifest, tracker, saver, stop, watchdog)
        try:
            with watchdog:
                training.run(run_folder)
        finally:
            saver.close()
            place = tracker.finish()
        summary = training.summary(run_folder, place)
        trained = summary["steps"] != (manifest.progress.step if manifest else 0)
        close = partial(close_run_folder, run_folder, summary, trained=trained)
        summary = context.together(lambda: close() if context.is_first else summary)
        return context.broadcast(summary)


def _open(setup: TrainingSetup, run_folder: Path, manifest: CheckpointManifest | None) -> Tracker:
    if not setup.context.is_first:
        return NullTracker()
    log.info("run folder %s", run_folder)
    _warn_of_tasks_without(setup)
    setup.warn_of_unlearned_ids("valid")
    return open_run_folder(setup.config, setup.sharded.plan, run_folder, manifest)


def _warn_of_tasks_without(setup: TrainingSetup) -> None:
    """P(task) = P(under) P(task | under) can't fit rows that have the one without the other."""
    for task, under in setup.config.model.given.items():
        without, positives = count_without(
            setup.config.data.path, setup.manifest, setup.schema, task=task, under=under
        )
        if without:
            log.warning(
                "model.given: %s of %s positive rows of %r are negative for %r, which model.given "
                "rules out; take the pair out if these are no noise",
                *(f"{without:,}", f"{positives:,}", task, under),
            )


class _Training:
    """The state of a training run on one rank."""

    def __init__(
        self,
        setup: TrainingSetup,
        manifest: CheckpointManifest | None,
        tracker: Tracker,
        saver: Saver,
        stop: GracefulShutdown,
        watchdog: Watchdog,
    ) -> None:
        self._setup = setup
        self._manifest = manifest
        self._watchdog = watchdog
        self._context = setup.context
        self._saver = saver
        self._shutdown = stop
        self._progress = TrainingProgress(
            setup.reader("train", shuffle=True),
            setup.config.training,
            setup.context,
            manifest.progress if manifest else SavedProgress(),
        )
        self._interval = TrainMeter(len(setup.schema.tasks), self._context.device)
        self._interval.restore(manifest.interval if manifest else (), self._context)
        self._saved_step = manifest.progress.step if manifest else None
        self._metrics = nan_for_null(manifest.metrics) if manifest else {}
        self._evaluated_step = self._saved_step if self._metrics else None
        self._saved_at = time.monotonic()
        self._stall_s = 0.0
        self._stopped = False
        self._growth = ""
        self._same_world = manifest is not None and manifest.world_size == self._context.world_size
        self._flags = ControlFlags()
        totals = manifest.totals if manifest else RunTotals()
        self._log = RunLog(setup, tracker, total_steps=self._progress.total_steps, totals=totals)

    def run(self, run_folder: Path) -> None:
        """All epochs, evaluation and checkpoints included."""
        if not self._same_world:
            self._log.start(run_folder)
        if self._progress.step:
            self._log.say("going on after step %s", f"{self._progress.step:,}")
            if self._is_due(self._setup.config.training.eval_every_steps):
                self._make_up_evaluation()
        while not (self._stopped or self._progress.at_end):
            self._run_epoch()
        if self._saved_step != self._progress.step:
            self._save()
        self._finish_save(must=True)

    def summary(self, run_folder: Path, place: str | None) -> dict[str, Any]:
        """What smoke prints and scripts read: of the whole run, not of its last attempt alone."""
        pace, progress = self._log.pace, self._progress.saved
        attempts = read_attempts(run_folder) if self._context.is_first else []
        return {
            "run_folder": str(run_folder),
            "started_at": attempts[0]["started_at"] if attempts else None,
            "attempts": attempts,
            "stopped": self._stopped,
            "steps": progress.step,
            "skipped_steps": progress.skipped,
            "unreadable_rows": self._progress.unreadable_rows(),
            "examples": progress.examples,
            "samples_per_s": pace.rows / max(pace.seconds, 1e-9),
            "train_seconds": pace.seconds,
            "num_workers": self._context.world_size,
            "checkpoint": str(self._saver.folder_of(progress.step)),
            "curves": str(run_folder / "curves.png"),
            "metrics_jsonl": str(run_folder / "metrics.jsonl"),
            "wandb": place,
            "metrics": self._metrics,
        }

    def _check_data(self) -> None:
        """Refuse a training set that was replaced since it was opened; say once that it grew."""
        setup, context = self._setup, self._context
        growth = context.together(lambda: check_unchanged(setup) if context.is_first else "")
        if growth and growth != self._growth:
            self._log.warn("%s", growth)
        self._growth = growth

    def _run_epoch(self) -> None:
        self._check_data()
        config = self._setup.config
        for batch, wait_s in stream(self._progress.batches(), self._context.device):
            self._watchdog.moves("training", self._progress.step + 1)
            self._step(batch, wait_s)
            if self._is_due(config.training.log_every_steps):
                self._log_interval()
            self._stopped = self._flags.stop
            if self._is_due(config.training.eval_every_steps) and not self._stopped:
                self._evaluate()
            save = self._flags.save or self._is_due(config.checkpoint.every_steps)
            if save and not self._stopped:
                self._save()
            if self._stopped or self._progress.at_end:
                return
            self._watchdog.moves("reading")

    def _is_due(self, every: int | None) -> bool:
        """Whether to do now what is done every so many steps, after an epoch and at the end."""
        position = self._progress
        in_turn = every is not None and position.step % every == 0
        return in_turn or position.between_epochs or position.at_end

    def _step(self, batch: RankingBatch, wait_s: float) -> None:
        loss, output = train_step(
            self._setup.sharded,
            batch,
            self._setup.config,
            step=self._progress.step,
            total_steps=self._progress.total_steps,
            rank=self._context.rank,
            may_update=self._exchange_flags,
        )
        if self._flags.nonfinite_loss:
            self._skip(batch, loss, output)
        else:
            self._interval.add(loss, output.task_loss_K, batch, wait_s)
        self._progress.advance(batch, skipped=self._flags.nonfinite_loss)
        self._log.step(self._progress.step)

    def _exchange_flags(self, loss: torch.Tensor) -> bool:
        """Ask all ranks what to do; whether the step may change the model."""
        minutes = self._setup.config.checkpoint.every_minutes
        since_s = time.monotonic() - self._saved_at
        self._flags = ControlFlags(
            nonfinite_loss=not math.isfinite(loss.item()),
            save=self._context.is_first and minutes is not None and since_s >= 60 * minutes,
            stop=self._shutdown.requested,
        ).all_reduced(self._context)
        return not self._flags.nonfinite_loss

    def _skip(self, batch: RankingBatch, loss: torch.Tensor, output: StepOutput) -> None:
        """Leave out a batch whose loss isn't finite on some rank, or stop with its reason."""
        diagnosis = diagnose_nonfinite(self._setup, batch, loss, output)
        where = f"in step {self._progress.step + 1} {diagnosis}"
        skipped = self._progress.saved.skipped
        allowed = self._setup.config.training.max_skipped_steps
        if skipped >= allowed:
            raise UserError(
                f"{where}; nothing was updated by it and checkpoints are untouched: lower "
                "dense_optimizer.learning_rate or sparse_optimizer.learning_rate, mend the data, "
                f"or leave out such batches with training.max_skipped_steps (now {allowed})"
            )
        self._log.warn("%s; left out (%s of %s)", where, skipped + 1, allowed)

    def _log_interval(self) -> None:
        self._progress.sync()  # rows of a step that was left out count as examples too
        self._log.interval(self._interval, self._progress.saved)

    def _evaluate(self) -> None:
        if self._evaluated_step == self._progress.step:
            return
        self._log_interval()
        start = time.perf_counter()
        found = evaluate(self._setup, "valid", self._stop_requested, self._watchdog.moved)
        if found is None:
            self._stopped = True
            return
        self._metrics, self._evaluated_step = found["model"], self._progress.step
        self._log.evaluation(self._metrics, self._progress.saved, time.perf_counter() - start)
        self._interval.reset()

    def _make_up_evaluation(self) -> None:
        """If the run was stopped between the step and its evaluation; the checkpoint learns it."""
        assert self._manifest is not None
        if self._evaluated_step == self._progress.step:
            return
        self._evaluate()
        if self._stopped:
            return
        self._watchdog.moves("saving")
        try:
            self._saver.amend(self._manifest, self._facts())
        except CheckpointError as error:
            self._log.warn("%s; training goes on, it only lacks its metrics", error)

    def _stop_requested(self) -> bool:
        self._watchdog.moves("evaluation")
        self._flags = ControlFlags(stop=self._shutdown.requested).all_reduced(self._context)
        return self._flags.stop

    def _save(self) -> None:
        """Start to save; the checkpoint before must be complete first."""
        start = time.perf_counter()
        self._watchdog.moves("saving")
        self._finish_save()
        self._progress.sync()
        self._saver.save(self._facts())
        self._saved_step, self._saved_at = self._progress.step, time.monotonic()
        self._stall_s = time.perf_counter() - start
        self._interval.exclude(self._stall_s)

    def _facts(self) -> CheckpointMetadata:
        evaluated = self._evaluated_step == self._progress.step
        pace = self._log.pace
        return CheckpointMetadata(
            progress=self._progress.saved,
            order=self._setup.order,
            unknown_id_rates=self._setup.unknown_id_rates,
            metrics=self._metrics if evaluated else {},
            interval=tuple(self._context.gather(self._interval.state())),
            totals=RunTotals(rows=pace.rows, seconds=pace.seconds, steps=pace.steps),
        )

    def _finish_save(self, *, must: bool = False) -> None:
        """Wait for the checkpoint that is being written; a failure only warns unless it `must`."""
        start = time.perf_counter()
        try:
            saved = self._saver.wait()
        except NotFiniteError:
            raise
        except CheckpointError as error:
            if must:
                raise
            self._log.warn("%s; training goes on, the next one comes as planned", error)
            return
        waited = time.perf_counter() - start
        if saved:
            self._log.saved(saved, self._stall_s + waited)
