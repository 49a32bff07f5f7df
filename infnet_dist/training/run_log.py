"""The log of a run: lines on the console, and metrics for the tracker."""

import logging
from collections.abc import Mapping
from pathlib import Path

import psutil
from tqdm import tqdm

from infnet_dist.checkpoint import SavedCheckpoint, SavedProgress, Throughput
from infnet_dist.deltas.live.publishing import Published
from infnet_dist.io.console import Line, show_progress
from infnet_dist.io.filesystem import size_text
from infnet_dist.planning.review.facts import facts
from infnet_dist.planning.review.render import summary_lines
from infnet_dist.sharding.build import table_bytes
from infnet_dist.tracking.tracker import Tracker
from infnet_dist.training.meters import TrainMeter
from infnet_dist.training.run_folder import PLAN_TEXT
from infnet_dist.training.setup import TrainingSetup
from infnet_dist.training.trained_parts import trained_parts

log = logging.getLogger("infnet_dist")


class RunLog:
    """The log of a run; all ranks make the same calls, rank 0 writes.

    Args:
        setup: the run.
        tracker: receives the metrics.
        total_steps: of the whole run.
        throughput: of earlier attempts.

    Attributes:
        throughput: over all attempts, up to the last log line.
    """

    def __init__(
        self, setup: TrainingSetup, tracker: Tracker, total_steps: int, throughput: Throughput
    ) -> None:
        self.throughput = throughput
        self._is_new = True  # no interval was logged in this attempt
        self._setup = setup
        self._tracker = tracker
        self._total_steps = total_steps

    def start(self, run_folder: Path) -> None:
        """Log the plan in three lines, and the number of dense parameters."""
        sharded = self._setup.sharded
        dense = sum(p.numel() for p in sharded.dense_optimizer.params.values())
        for line in summary_lines(sharded.plan):
            self.say(line)
        self.say(
            Line(
                f"plan: all of it in {run_folder / PLAN_TEXT}",
                short=(f"plan: all of it in {PLAN_TEXT} in the run folder",),
            )
        )
        self.say("dense parameters: %s", f"{dense:,}")

    def trained_parts(self) -> None:
        """Log what is frozen, and what has another learning rate than the optimizer's."""
        for line in trained_parts(self._setup.sharded):
            self.say("%s", line)

    def interval(self, meter: TrainMeter, progress: SavedProgress) -> None:
        """Log losses and throughput since the last line, if there was a step; reset the meter."""
        if meter.steps == 0:
            return
        stats = meter.reduce(self._setup.context)
        meter.reset()
        if self._is_new:
            self._say_table_bytes()
            self._is_new = False
        self.throughput = self.throughput.plus(stats.rows, stats.seconds, stats.steps)
        metrics = {"train/loss/total": stats.loss}
        for task, value in zip(self._setup.schema.tasks, stats.task_losses, strict=True):
            kind = "log_loss" if task.kind == "binary" else "watch_loss"
            metrics[f"train/{kind}/{task.name}"] = value
        metrics["perf/samples_per_s"] = stats.rows / stats.seconds
        metrics["perf/input_wait_share"] = stats.wait_s / stats.seconds
        metrics["memory/rss_gib"] = psutil.Process().memory_info().rss / 2**30
        self._tracker.log(metrics, step=progress.step, examples=progress.examples)
        left = (self._total_steps - progress.step) * self.throughput.seconds / self.throughput.steps
        share = 100 * progress.step // self._total_steps
        self.say(
            Line(
                f"step {progress.step:,}/{self._total_steps:,} ({share} %)",
                f"loss {stats.loss:.4f}",
                f"{metrics['perf/samples_per_s']:,.0f} samples/s",
                f"{tqdm.format_interval(left)} left",
                f"input wait {metrics['perf/input_wait_share']:.0%}",
            )
        )

    def evaluation(
        self, metrics: Mapping[str, float], progress: SavedProgress, seconds: float
    ) -> None:
        """Log the metrics on the valid split."""
        self._tracker.log(dict(metrics), step=progress.step, examples=progress.examples)
        scores, first_scores = [], []
        for task in self._setup.schema.tasks:
            first, second = (
                f"{metric} {metrics[f'valid/{metric}/{task.name}']:.4f}"
                for metric in (("auc", "gauc") if task.kind == "binary" else ("mae_s", "r2"))
            )
            scores.append(f"{task.name} {first} {second}")
            first_scores.append(f"{task.name} {first}")
        head = f"valid at step {progress.step:,}"
        self.say(Line(f"{head} ({seconds:.1f} s)", *scores, short=(head, *first_scores)))

    def saved(self, saved: SavedCheckpoint, stall_s: float) -> None:
        """Log that a checkpoint is complete."""
        size = f"{size_text(saved.num_bytes)} in {saved.seconds:.1f} s"
        self.say(
            Line(
                f"saved {saved.folder} ({size}, of which training waited {stall_s:.1f} s)",
                short=(f"saved {saved.folder.name}", size, f"training waited {stall_s:.1f} s"),
            )
        )

    def published(self, done: Published, stall_s: float) -> None:
        """Log that a publication is complete."""
        size = f"{size_text(done.num_bytes)} in {done.seconds:.1f} s"
        rows = done.changed_rows
        kind = "all rows" if rows is None else f"{rows:,} changed rows"
        self.say(
            Line(
                f"published {done.folder} ({kind}, {size}, of which training waited "
                f"{stall_s:.1f} s)",
                short=(f"published {done.folder.name}", kind, size),
            )
        )

    def step(self, step: int) -> None:
        """Show the progress."""
        if self._setup.context.is_first:
            show_progress("train", "step", step, self._total_steps)

    def say(self, line: str | Line, *values: object) -> None:
        """Log a line on rank 0."""
        if self._setup.context.is_first:
            log.info(line, *values)

    def warn(self, line: str, *values: object) -> None:
        """Log a warning on rank 0."""
        if self._setup.context.is_first:
            log.warning(line, *values)

    def _say_table_bytes(self) -> None:
        """Log the bytes of rows and optimizer state on each rank, measured and planned.

        Buffers and the copies for saves are temporary, so only their planned bytes are logged.
        """
        sharded = self._setup.sharded
        held = self._setup.context.gather(table_bytes(sharded.model, sharded.sparse_optimizer))
        ranks = [
            f"{rank}: {size_text(got)} ({size_text(planned)})"
            for rank, (got, planned) in enumerate(
                zip(held, sharded.plan.ranks.stored_bytes, strict=True)
            )
        ]
        head = "rows and optimizer state by rank (and as planned)"
        self.say(Line(f"{head}:", *ranks, short=("bytes of tables (as planned)", *ranks)))
        background = self._setup.config.checkpoint.background
        buffers = size_text(facts(sharded.plan)["buffer_bytes"])
        copies = size_text(sum(sharded.plan.save_copy_bytes) if background else 0)
        self.say(
            Line(
                f"planned beside them, all ranks: {buffers} of buffers, {copies} of copies for "
                "background saves",
                short=(f"planned beside them: {buffers} of buffers, {copies} of copies",),
            )
        )
