"""One loop for training and evaluation.

`train` and `evaluate_checkpoint` are what a worker runs, under Ray Train or a local launcher.
Both open a `Session` (training set, sharded model) and iterate over `stream`.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from infnet_dist import checkpoint
from infnet_dist.batch import RankingBatch
from infnet_dist.checkpoint import Progress
from infnet_dist.config import Config, dump_config
from infnet_dist.context import WorkerContext
from infnet_dist.data.check import count_without
from infnet_dist.data.order import Interval, merge, remaining
from infnet_dist.errors import CheckpointError, UserError
from infnet_dist.metrics import MetricState
from infnet_dist.model import StepOutput
from infnet_dist.optim import learning_rate_factor, set_learning_rate
from infnet_dist.pace import LogInterval, Pace
from infnet_dist.parallel import ShardedModel, table_bytes
from infnet_dist.planning.plan import save_plan
from infnet_dist.planning.review import describe, size_text
from infnet_dist.provenance import versions
from infnet_dist.session import Session, check_can_train, stream
from infnet_dist.tracking import NullTracker, Tracker, make_tracker, plot_curves

log = logging.getLogger("infnet_dist")


def train_step(
    sharded: ShardedModel, batch: RankingBatch, config: Config, *, step: int, total_steps: int
) -> tuple[torch.Tensor, StepOutput]:
    """One optimizer step; `step` (the first is 0) of `total_steps` sets the learning rates.

    Returns:
        The detached loss of this rank's batch and its by-products.
    """
    factor = learning_rate_factor(config.schedule, step, total_steps)
    set_learning_rate(sharded.sparse_optimizer, factor * config.sparse_optimizer.learning_rate)
    set_learning_rate(sharded.dense_optimizer, factor * config.dense_optimizer.learning_rate)
    sharded.optimizer.zero_grad()
    loss, output = sharded.model(batch)
    loss.backward()  # rows of the tables are updated here
    sharded.optimizer.step()
    return loss.detach(), output


def evaluate(session: Session, split: str) -> dict[str, dict[str, float]]:
    """Metrics of the model on a split (`model`), and of the planted truth if known (`optimum`)."""
    model = session.sharded.model
    tasks = session.schema.tasks
    watch_time_s = {t.name: t.mean_ms / 1000 for t in tasks if t.kind == "watch_time"}
    state = MetricState([task.name for task in tasks], watch_time_s)
    model.eval()
    with torch.no_grad():
        batches = session.reader(split, shuffle=False).batches()
        for batch, _ in stream(batches, session.context.device):
            _, output = model(batch)
            state.update(
                output.logits_BK,
                batch.labels_BK,
                truth_BK=batch.truth_BK,
                group_B=batch.group_B,
                weights_B=batch.weights_B,
            )
    model.train()
    return state.compute(session.context, split)


def evaluate_checkpoint(
    context: WorkerContext, config: Config, *, path: Path, split: str
) -> dict[str, Any]:
    """Load a checkpoint, with any number of workers, and evaluate it on a split.

    Returns:
        split, rows, checkpoint, step, metrics, optimum.
    """
    session = Session.open(config, context, splits=[split])
    manifest = checkpoint.load(path, session.sharded, context, with_optimizer=False)
    result = evaluate(session, split)
    return {
        "split": split,
        "rows": session.manifest.split(split).rows,
        "checkpoint": str(path),
        "step": manifest.progress.step,
        "metrics": result["model"],
        "optimum": result["optimum"],
    }


def train(context: WorkerContext, config: Config, *, run_folder: Path) -> dict[str, Any]:
    """Train a run, from its newest checkpoint if its folder has one; every rank calls it.

    Returns:
        The summary that also stands in `summary.json`.

    Raises:
        UserError: bad data, plan or checkpoint, or a loss that isn't finite; on all ranks.
    """
    context.together(lambda: check_can_train(config))
    session = Session.open(config, context, splits=["train", "valid"])
    progress = _go_on(session, run_folder / "checkpoints")  # may fail: before anything is written
    tracker = context.together(lambda: _open_run_folder(session, run_folder))
    training = _Training(session, progress, tracker, run_folder)
    try:
        training.run()
    finally:
        place = tracker.finish()
    summary = context.broadcast(training.summary(place))
    context.together(lambda: _close_run_folder(session, run_folder, summary))
    return summary


def _go_on(session: Session, checkpoints: Path) -> Progress:
    """Load the newest checkpoint, if there is one; where to go on.

    Raises:
        CheckpointError: it doesn't fit the model, or its position speaks of other data.
    """
    path = session.context.broadcast(checkpoint.newest(checkpoints))
    if path is None:
        return Progress()
    manifest = checkpoint.load(path, session.sharded, session.context)
    if manifest.progress.consumed and manifest.order != session.order:
        raise CheckpointError(
            f"{path} stopped within an epoch of {manifest.order}, this run reads {session.order}; "
            f"go on with the same training set, run.seed and data.shuffle_rows, or start a new run"
        )
    if session.context.is_first:
        log.info("going on from %s", path)
    return manifest.progress


def _open_run_folder(session: Session, run_folder: Path) -> Tracker:
    config = session.config
    if not session.context.is_first:
        return NullTracker()
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / "config.yaml").write_text(dump_config(config))
    write_json(run_folder / "versions.json", versions())
    save_plan(session.sharded.plan, run_folder / "plan.json")
    dense = sum(p.numel() for p in session.sharded.dense_optimizer.params.values())
    log.info("run folder %s", run_folder)
    log.info("plan:\n%s", describe(session.sharded.plan))
    log.info("dense parameters: %s", f"{dense:,}")
    _warn_of_tasks_without(session)
    return make_tracker(
        config.tracking,
        folder=run_folder,
        run_id=f"{config.run.name}-{run_folder.name}",
        settings=config.model_dump(mode="json"),
    )


def _warn_of_tasks_without(session: Session) -> None:
    """P(task) = P(under) P(task | under) can't fit rows that have the one without the other."""
    for task, under in session.config.model.given.items():
        without, positives = count_without(
            session.config.data.path, session.manifest, session.schema, task=task, under=under
        )
        if without:
            log.warning(
                "model.given: %s of %s positive rows of %r are negative for %r, which model.given "
                "rules out; take the pair out if these are no noise",
                *(f"{without:,}", f"{positives:,}", task, under),
            )


def _close_run_folder(session: Session, run_folder: Path, summary: dict[str, Any]) -> None:
    if not session.context.is_first:
        return
    write_json(run_folder / "summary.json", summary)
    try:
        plot_curves(run_folder / "metrics.jsonl", run_folder / "curves.png")
    except Exception as error:
        log.warning("no curves.png (%s)", error)


class _Training:
    """The state of a training run on one rank."""

    def __init__(
        self, session: Session, progress: Progress, tracker: Tracker, run_folder: Path
    ) -> None:
        self._session = session
        self._tracker = tracker
        self._run_folder = run_folder
        self._context = session.context
        self._sharded = session.sharded
        self._reader = session.reader("train", shuffle=True)
        self._progress = progress
        self._metrics: dict[str, float] = {}
        self._read: list[Interval] = []  # by this rank in this epoch
        self._saved_step: int | None = progress.step or None
        self._evaluated_step: int | None = None
        self._total_steps = self._count_steps()
        self._pace = Pace()
        self._interval = LogInterval(len(session.schema.tasks), self._context.device)

    @property
    def _folder(self) -> Path:
        return self._run_folder / "checkpoints"

    def run(self) -> None:
        """All epochs, evaluation and checkpoints included."""
        while self._progress.epoch < self._session.config.training.epochs and not self._done():
            self._run_epoch()
        self._evaluate()
        if self._saved_step != self._progress.step:
            self._save()

    def summary(self, place: str | None) -> dict[str, Any]:
        """What smoke prints and scripts read."""
        return {
            "run_folder": str(self._run_folder),
            "steps": self._progress.step,
            "examples": self._progress.examples,
            "samples_per_s": self._pace.rows / max(self._pace.seconds, 1e-9),
            "train_seconds": self._pace.seconds,
            "num_workers": self._context.world_size,
            "checkpoint": str(checkpoint.newest(self._folder)),
            "curves": str(self._run_folder / "curves.png"),
            "metrics_jsonl": str(self._run_folder / "metrics.jsonl"),
            "wandb": place,
            "metrics": self._metrics,
        }

    def _count_steps(self) -> int:
        training = self._session.config.training
        later_epochs = training.epochs - self._progress.epoch - 1
        total = self._progress.step
        if later_epochs >= 0:
            total += self._reader.num_steps(self._progress.consumed)
            total += later_epochs * self._reader.num_steps()
        return min(total, training.max_steps or total)

    def _done(self) -> bool:
        max_steps = self._session.config.training.max_steps
        return max_steps is not None and self._progress.step >= max_steps

    def _run_epoch(self) -> None:
        config = self._session.config
        epoch, consumed_before = self._progress.epoch, self._progress.consumed
        self._read = []
        self._interval.restart()
        batches = self._reader.batches(epoch, consumed_before)
        for batch, wait_s in stream(batches, self._context.device):
            self._step(batch, wait_s)
            step = self._progress.step
            if step % config.training.log_every_steps == 0:
                self._log_interval()
            if _due(step, config.training.eval_every_steps):
                self._evaluate()
            if _due(step, config.checkpoint.every_steps):
                self._mark_position(consumed_before)
                self._save()
            if self._done():
                break
        self._log_interval()
        self._mark_position(consumed_before)
        if not remaining(self._reader.rows, self._progress.consumed):
            self._update(epoch=epoch + 1, consumed=())
            self._evaluate()
            self._save()

    def _step(self, batch: RankingBatch, wait_s: float) -> None:
        loss, output = train_step(
            self._sharded,
            batch,
            self._session.config,
            step=self._progress.step,
            total_steps=self._total_steps,
        )
        self._interval.add(loss, output.task_loss_K, batch, wait_s)
        self._read += batch.rows.intervals
        self._update(step=self._progress.step + 1)

    def _update(self, **changes: Any) -> None:
        self._progress = self._progress.model_copy(update=changes)

    def _mark_position(self, consumed_before: Sequence[Interval]) -> None:
        """Note what all ranks together have read of the epoch."""
        every = [i for read in self._context.gather(merge(self._read)) for i in read]
        self._update(consumed=tuple(merge([*consumed_before, *every])))

    def _log_interval(self) -> None:
        """Reduce the interval over ranks, check it, and track it. The loop's only wait."""
        if self._interval.steps == 0:
            return
        totals = self._interval.reduce(self._context)
        self._interval.restart()
        if self._pace.steps == 0:
            self._say_table_bytes()
        self._pace.add(totals)
        self._update(examples=self._progress.examples + totals.rows)
        step = self._progress.step
        if not math.isfinite(totals.loss):
            raise UserError(
                f"the loss is {totals.loss} between steps {step - totals.steps + 1} and {step}; "
                f"lower dense_optimizer.learning_rate or sparse_optimizer.learning_rate; the "
                f"checkpoints in {self._folder} are untouched"
            )
        metrics = {"train/loss/total": totals.loss}
        for task, value in zip(self._session.schema.tasks, totals.task_losses, strict=True):
            kind = "log_loss" if task.kind == "binary" else "watch_loss"
            metrics[f"train/{kind}/{task.name}"] = value
        metrics["perf/samples_per_s"] = totals.rows / totals.seconds
        metrics["perf/input_wait_share"] = totals.wait_s / totals.seconds
        metrics["memory/rss_gib"] = psutil.Process().memory_info().rss / 2**30
        self._tracker.log(metrics, step=step, examples=self._progress.examples)
        left = (self._total_steps - step) * self._pace.seconds / self._pace.steps
        self._say(
            f"step {step:,}/{self._total_steps:,} ({100 * step // self._total_steps} %)  "
            f"loss {totals.loss:.4f}  {metrics['perf/samples_per_s']:,.0f} samples/s  "
            f"input wait {metrics['perf/input_wait_share']:.0%}  {tqdm.format_interval(left)} left"
        )

    def _say_table_bytes(self) -> None:
        """Bytes of rows and optimizer state on each rank, beside the plan's."""
        own = table_bytes(self._sharded.model, self._sharded.sparse_optimizer)
        held = self._context.gather(own)
        planned = self._sharded.plan.ranks.stored_bytes
        ranks = ", ".join(
            f"{rank}: {size_text(got)} ({size_text(expected)})"
            for rank, (got, expected) in enumerate(zip(held, planned, strict=True))
        )
        self._say(f"tables by rank (and as planned): {ranks}")

    def _evaluate(self) -> None:
        if self._evaluated_step == self._progress.step:
            return
        self._log_interval()
        start = time.perf_counter()
        self._metrics = evaluate(self._session, "valid")["model"]
        step, examples = self._progress.step, self._progress.examples
        self._tracker.log(self._metrics, step=step, examples=examples)
        scores = "  ".join(
            f"{task.name} "
            + " ".join(
                f"{metric} {self._metrics[f'valid/{metric}/{task.name}']:.4f}"
                for metric in (("auc", "gauc") if task.kind == "binary" else ("mae_s", "r2"))
            )
            for task in self._session.schema.tasks
        )
        self._say(f"valid at step {step:,} ({time.perf_counter() - start:.1f} s)  {scores}")
        self._evaluated_step = step
        self._interval.restart()

    def _save(self) -> None:
        self._log_interval()
        path = checkpoint.save(
            self._folder,
            self._sharded,
            self._session.config,
            self._context,
            progress=self._progress,
            order=self._session.order,
            metrics=self._metrics,
        )
        self._saved_step = self._progress.step
        self._say(f"saved {path}")
        self._interval.restart()

    def _say(self, line: str) -> None:
        if self._context.is_first:
            log.info("%s", line)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON; NaN, which JSON doesn't know, becomes null."""
    path.write_text(json.dumps(_without_nan(value), indent=1) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
