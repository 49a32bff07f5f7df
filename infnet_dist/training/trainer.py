"""The training loop: the function that each worker runs, under Ray Train or a local launcher.

A run can be killed at any moment and resumes from its newest checkpoint, bit-identically: a step
depends on the model, the optimizers, the reader's state, the seed and its number, on nothing else.
"""

import logging
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from infnet_dist import checkpoint
from infnet_dist.checkpoint import (
    CheckpointManifest,
    CheckpointMetadata,
    SavedProgress,
    Saver,
    Throughput,
)
from infnet_dist.config.run import Config
from infnet_dist.data.manifest import Manifest
from infnet_dist.distributed import heartbeat
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.distributed.control import ControlFlags
from infnet_dist.distributed.watchdog import Watchdog
from infnet_dist.errors import UserError
from infnet_dist.io.json_files import nan_for_null
from infnet_dist.sharding.optimizers import learning_rate_factors
from infnet_dist.tracking.tracker import NullTracker, Tracker
from infnet_dist.training.begun_set import keep_manifest, log_window, manifest_of_run
from infnet_dist.training.checkpoints import RunCheckpoints
from infnet_dist.training.data_changes import check_resumable, check_unchanged
from infnet_dist.training.evaluation import evaluate
from infnet_dist.training.initial_state import initialise
from infnet_dist.training.meters import TrainMeter
from infnet_dist.training.nonfinite import diagnose_nonfinite
from infnet_dist.training.preemption import GracefulShutdown
from infnet_dist.training.progress import TrainingProgress
from infnet_dist.training.publications import Publications, open_publications, tracked_rows
from infnet_dist.training.run_folder import (
    checkpoint_folder,
    close_run_folder,
    open_run_folder,
    read_attempts,
)
from infnet_dist.training.run_lock import held_by_workers
from infnet_dist.training.run_log import RunLog
from infnet_dist.training.setup import TrainingSetup, open_for_training
from infnet_dist.training.step import Step, StepResult, StepSettings, make_step
from infnet_dist.training.teacher import open_teacher

log = logging.getLogger("infnet_dist")


def train(
    context: WorkerContext,
    config: Config,
    *,
    run_folder: Path,
    stop_file: Path | None = None,
    verdict_file: Path | None = None,
) -> dict[str, Any]:
    """Train a run, from its newest checkpoint if it has one; every rank calls it.

    Args:
        context: this worker.
        config: the run.
        run_folder: on storage that all nodes share.
        stop_file: the run saves and stops once this file exists.
        verdict_file: file in which the watchdog writes why it ends the workers.

    Returns:
        The run's summary, as in `summary.json`.

    Raises:
        UserError: bad data, plan or checkpoint, or a loss that isn't finite; on all ranks.
    """
    stop_file = stop_file if context.is_first else None
    shutdown = GracefulShutdown(stop_file, context.preemption_notice)
    with shutdown.on_sigterm(), ExitStack() as stack:
        splits = ("train", "valid")
        whole = context.on_first(lambda: manifest_of_run(config, run_folder))
        open_set = partial(open_for_training, manifest=whole)
        setup = TrainingSetup.open(config, context, splits=splits, open_set=open_set)
        lock = held_by_workers(run_folder, config.scaling)
        context.on_first(lambda: stack.enter_context(lock))
        folder = checkpoint_folder(config, run_folder)
        manifest, damaged = checkpoint.load_newest(folder, setup.sharded, context)
        if manifest is not None:
            _check_resumable(setup, manifest)
        start = initialise(setup, run_folder, manifest)
        teacher = open_teacher(setup, run_folder, start.step, manifest)
        resumed = manifest is not None
        context.on_first(lambda: checkpoint.check_writable(folder, config, resumed=resumed))
        tracker = context.together(lambda: _open_tracker(setup, whole, run_folder, manifest))
        rows = tracked_rows(setup)
        more = rows.shards if rows else list
        saver = Saver(folder, setup.sharded, config, context, damaged, more_shards=more)
        publications = open_publications(setup, rows, saver, manifest)
        step = make_step(setup, teacher)
        loop = _TrainingLoop(setup, manifest, start, step, tracker, saver, publications, shutdown)
        try:
            with Watchdog(context, config.scaling.hang_timeout_s, verdict_file):
                loop.run(run_folder)
        finally:
            saver.close()
            publications.close()
            wandb_place = tracker.finish()
        summary = loop.summary(run_folder, wandb_place)
        trained = summary["steps"] != start.step
        return context.on_first(lambda: close_run_folder(run_folder, summary, trained=trained))


def _check_resumable(setup: TrainingSetup, manifest: CheckpointManifest) -> None:
    setup.resume_unknown_id_rates(manifest.unknown_id_rates)
    rows = setup.reader("train", shuffle=True).rows
    growth = check_resumable(manifest, setup.order, setup.manifest, rows=rows)
    if growth and setup.context.is_first:
        log.warning("%s", growth)


def _open_tracker(
    setup: TrainingSetup, whole: Manifest, run_folder: Path, manifest: CheckpointManifest | None
) -> Tracker:
    if not setup.context.is_first:
        return NullTracker()
    log.info("run folder %s", run_folder)
    keep_manifest(run_folder, whole)
    log_window(setup, whole)
    setup.warn_of_contradicting_labels()
    setup.warn_of_unlearned_ids("valid")
    return open_run_folder(setup.config, setup.sharded.plan, run_folder, manifest)


class _TrainingLoop:
    """The loop of a run on one rank; all ranks make the same calls."""

    def __init__(
        self,
        setup: TrainingSetup,
        manifest: CheckpointManifest | None,
        start: SavedProgress,
        step: Step,
        tracker: Tracker,
        saver: Saver,
        publications: Publications,
        shutdown: GracefulShutdown,
    ) -> None:
        self._setup = setup
        self._context = setup.context
        self._config = setup.config
        self._manifest = manifest
        self._shutdown = shutdown
        self._progress = TrainingProgress(
            setup.reader("train", shuffle=True),
            setup.config.training,
            setup.context,
            start,
        )
        self._meter = TrainMeter(len(setup.schema.tasks), self._context.device)
        self._meter.restore(manifest.interval if manifest else (), self._context)
        throughput = manifest.totals if manifest else Throughput()
        self._log = RunLog(setup, tracker, self._progress.total_steps, throughput)
        self._metrics = nan_for_null(manifest.metrics) if manifest else {}
        saved_step = manifest.progress.step if manifest else None
        self._checkpoints = RunCheckpoints(saver, self._log, saved_step)
        self._publications = publications
        self._evaluated_step = saved_step if self._metrics else None
        self._step = step
        self._unsettled: StepResult | None = None  # the last step, whose flags weren't read
        self._flags = ControlFlags()  # of the last step whose flags were read
        self._stopped = False
        self._growth = ""

    def run(self, run_folder: Path) -> None:
        """Train all epochs, with evaluations and checkpoints."""
        if self._manifest is None or self._manifest.world_size != self._context.world_size:
            self._log.start(run_folder)
        self._log.trained_parts()
        if self._manifest is not None:
            self._resume(self._manifest)
        while not (self._stopped or self._progress.at_end):
            self._run_epoch()
        if self._checkpoints.saved_step != self._progress.step:
            self._save()
        self._checkpoints.finish(required=True)
        self._publications.finish(self._log, required=True)

    def _resume(self, manifest: CheckpointManifest) -> None:
        """Evaluate the checkpoint if the run was stopped between its step and its evaluation."""
        self._log.say("resuming after step %s", f"{self._progress.step:,}")
        due = self._is_due(self._config.training.eval_every_steps)
        if not due or self._evaluated_step == self._progress.step:
            return
        self._evaluate()
        if not self._stopped:
            self._checkpoints.amend(manifest, self._metadata())

    def _run_epoch(self) -> None:
        self._check_data()
        training, checkpoints = self._config.training, self._config.checkpoint
        for result in self._step.over(self._progress.batches(), self._step_settings):
            self._settle()  # the flags of the step before are there
            self._unsettled = result
            self._progress.advance(result.batch)
            self._log.step(self._progress.step)
            if self._setup.sharded.dense_update.is_pending:
                continue  # no checkpoint holds gradients, so all actions wait for the update
            log, evaluate, save, publish = (
                self._is_due(every)
                for every in (
                    training.log_every_steps,
                    training.eval_every_steps,
                    checkpoints.every_steps,
                    self._config.publish.every_steps,
                )
            )
            flags = self._flags
            publish = self._publications.wanted and (publish or flags.publish)
            if log or evaluate or save or publish or flags.save or flags.stop:
                self._settle()
            self._stopped = flags.stop or self._flags.stop
            save = save or flags.save or self._flags.save
            if log:
                self._log_meter()
            if evaluate and not self._stopped:
                self._evaluate()
            if save and not self._stopped:
                self._save()
            if publish and not self._stopped:
                self._publish()
            if self._stopped or self._progress.at_end:
                return

    def _check_data(self) -> None:
        """Refuse a training set that was replaced since it was opened; warn once if it grew."""
        growth = self._context.on_first(lambda: check_unchanged(self._setup))
        if growth and growth != self._growth:
            self._log.warn("%s", growth)
        self._growth = growth

    def _is_due(self, every: int | None) -> bool:
        """Whether an action of every so many steps is due; also after each epoch and at the end.

        With accumulation it is due at the first update of the dense part in or after that step.
        """
        late = self._config.training.accumulate_steps - 1  # at most
        in_turn = every is not None and self._progress.step % every <= late
        return in_turn or self._progress.between_epochs or self._progress.at_end

    def _step_settings(self) -> StepSettings:
        """The next step."""
        step, minutes = self._progress.step, self._config.checkpoint.every_minutes
        due = minutes is not None and self._checkpoints.age_s >= 60 * minutes
        return StepSettings(
            step,
            learning_rate_factors(self._config, step, self._progress.total_steps),
            is_last=self._progress.is_last_step,
            save=due and self._context.is_first,
            stop=self._shutdown.requested,
            publish=self._publications.is_due and self._context.is_first,
        )

    def _settle(self) -> None:
        """Read the flags of the last step, and count it or note that its batch was skipped."""
        if self._unsettled is None:
            return
        result, self._unsettled = self._unsettled, None
        self._flags = result.flags.read()
        if self._flags.nonfinite_loss:
            self._skip(result)
        else:
            self._meter.add(result.loss, result.output.task_loss_K, result.batch, result.wait_s)

    def _stop_requested(self) -> bool:
        heartbeat.beat("evaluation")
        self._flags = ControlFlags(stop=self._shutdown.requested).all_reduced(self._context)
        return self._flags.stop

    def _skip(self, result: StepResult) -> None:
        """Skip a batch whose loss isn't finite on some rank; an error if too many were skipped."""
        with self._step.paused():
            diagnosis = diagnose_nonfinite(self._setup, result)
        where = f"in step {self._progress.step} {diagnosis}"
        skipped = self._progress.saved.skipped
        allowed = self._config.training.max_skipped_steps
        if skipped >= allowed:
            raise UserError(
                f"{where}; the step updated nothing and checkpoints are untouched: lower "
                "dense_optimizer.learning_rate or sparse_optimizer.learning_rate, fix the data, "
                f"or skip such batches with training.max_skipped_steps (now {allowed})"
            )
        self._progress.skip()
        self._log.warn("%s; skipped (%s of %s)", where, skipped + 1, allowed)

    def _log_meter(self) -> None:
        self._progress.sync()  # also if all steps were skipped: their rows count as examples
        self._log.interval(self._meter, self._progress.saved)

    def _evaluate(self) -> None:
        if self._evaluated_step == self._progress.step:
            return
        self._log_meter()
        start = time.perf_counter()
        with self._step.paused():
            found = evaluate(self._setup, "valid", self._stop_requested)
        if found is None:
            self._stopped = True
            return
        self._metrics, self._evaluated_step = found["model"], self._progress.step
        self._log.evaluation(self._metrics, self._progress.saved, time.perf_counter() - start)
        self._meter.reset()

    def _save(self) -> None:
        self._log_meter()  # so that no checkpoint has to hold the meter
        if self._publications.writes_full:  # one copy of the state at a time
            self._publications.finish(self._log)
        self._meter.exclude(self._checkpoints.save(self._metadata()))

    def _publish(self) -> None:
        self._progress.sync()
        self._publications.finish(self._log)
        if self._publications.next_is_full:  # one copy of the state at a time
            self._checkpoints.finish()
        self._meter.exclude(self._publications.publish(self._metadata(), self._log))

    def _metadata(self) -> CheckpointMetadata:
        return CheckpointMetadata(
            progress=self._progress.saved,
            order=self._setup.order,
            metrics=self._metrics if self._evaluated_step == self._progress.step else {},
            unknown_id_rates=self._setup.unknown_id_rates,
            totals=self._log.throughput,
            published=self._publications.published,
        )

    def summary(self, run_folder: Path, wandb_place: str | None) -> dict[str, Any]:
        """The summary of the whole run, over all attempts."""
        throughput, progress = self._log.throughput, self._progress.saved
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
            "samples_per_s": throughput.samples_per_s,
            "train_seconds": throughput.seconds,
            "num_workers": self._context.world_size,
            "checkpoint": str(self._checkpoints.folder_of(progress.step)),
            "curves": str(run_folder / "curves.png"),
            "metrics_jsonl": str(run_folder / "metrics.jsonl"),
            "wandb": wandb_place,
            "metrics": self._metrics,
        }
