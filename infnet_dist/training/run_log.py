"""What a run says while it goes: lines on the console, and metrics to the tracker."""

import logging
from collections.abc import Mapping

import psutil
from tqdm import tqdm

from infnet_dist.checkpoint import SavedCheckpoint, SavedProgress, Throughput
from infnet_dist.io.filesystem import size_text
from infnet_dist.planning.review.facts import facts
from infnet_dist.planning.review.render import describe
from infnet_dist.sharding.build import table_bytes
from infnet_dist.tracking.tracker import Tracker
from infnet_dist.training.meters import TrainMeter
from infnet_dist.training.setup import TrainingSetup

log = logging.getLogger("infnet_dist")


class RunLog:
    """The log of a run; all ranks make the same calls, rank 0 speaks.

    Args:
        setup: the run.
        tracker: where metrics go.
        total_steps: that the run will make.
        throughput: of earlier attempts.

    Attributes:
        throughput: over all attempts, up to the last log line.
    """

    def __init__(
        self, setup: TrainingSetup, tracker: Tracker, total_steps: int, throughput: Throughput
    ) -> None:
        self.throughput = throughput
        self._is_new = True  # nothing was logged in this attempt
        self._setup = setup
        self._tracker = tracker
        self._total_steps = total_steps

    def start(self) -> None:
        """What the run is."""
        sharded = self._setup.sharded
        dense = sum(p.numel() for p in sharded.dense_optimizer.params.values())
        self.say("plan:\n%s", describe(sharded.plan))
        self.say("dense parameters: %s", f"{dense:,}")

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
        self.say(
            "step %s/%s (%s %%)  loss %.4f  %s samples/s  input wait %s  %s left",
            f"{progress.step:,}",
            f"{self._total_steps:,}",
            100 * progress.step // self._total_steps,
            stats.loss,
            f"{metrics['perf/samples_per_s']:,.0f}",
            f"{metrics['perf/input_wait_share']:.0%}",
            tqdm.format_interval(left),
        )

    def evaluation(
        self, metrics: Mapping[str, float], progress: SavedProgress, seconds: float
    ) -> None:
        """The scores on the valid split."""
        self._tracker.log(dict(metrics), step=progress.step, examples=progress.examples)
        scores = "  ".join(
            f"{task.name} "
            + " ".join(
                f"{metric} {metrics[f'valid/{metric}/{task.name}']:.4f}"
                for metric in (("auc", "gauc") if task.kind == "binary" else ("mae_s", "r2"))
            )
            for task in self._setup.schema.tasks
        )
        self.say("valid at step %s (%.1f s)  %s", f"{progress.step:,}", seconds, scores)

    def saved(self, saved: SavedCheckpoint, stall_s: float) -> None:
        """A checkpoint is complete."""
        self.say(
            "saved %s (%s in %.1f s, of which training waited %.1f)",
            saved.folder,
            size_text(saved.num_bytes),
            saved.seconds,
            stall_s,
        )

    def say(self, line: str, *values: object) -> None:
        """A line on the console."""
        if self._setup.context.is_first:
            log.info(line, *values)

    def warn(self, line: str, *values: object) -> None:
        """A warning on the console."""
        if self._setup.context.is_first:
            log.warning(line, *values)

    def _say_table_bytes(self) -> None:
        """Bytes of rows and optimizer state on each rank beside the plan's, and what else it has.

        Buffers and the copy for saves come and go, so that they aren't measured.
        """
        sharded = self._setup.sharded
        held = self._setup.context.gather(table_bytes(sharded.model, sharded.sparse_optimizer))
        ranks = ", ".join(
            f"{rank}: {size_text(got)} ({size_text(planned)})"
            for rank, (got, planned) in enumerate(
                zip(held, sharded.plan.ranks.stored_bytes, strict=True)
            )
        )
        self.say("rows and optimizer state by rank (and as planned): %s", ranks)
        background = self._setup.config.checkpoint.background
        self.say(
            "planned beside them, all ranks: %s of buffers, %s of copies for background saves",
            size_text(facts(sharded.plan)["buffer_bytes"]),
            size_text(sum(sharded.plan.ranks.stored_bytes) if background else 0),
        )
