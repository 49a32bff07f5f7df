"""Training progress: the step, the epoch, and the rows of the epoch that all ranks consumed."""

from collections.abc import Iterator, Sequence
from typing import Any

from infnet_dist.batch import RankingBatch
from infnet_dist.checkpoint import MAX_LEFT_OUT, SavedProgress
from infnet_dist.config.run import TrainingConfig
from infnet_dist.data.epoch_order import Interval, merge_intervals
from infnet_dist.data.reader import Reader
from infnet_dist.distributed.context import WorkerContext


class TrainingProgress:
    """The progress of a run, on one rank; all ranks make the same calls.

    Args:
        reader: of this rank and the train split.
        training: how long to train.
        context: this worker.
        start: of the checkpoint that the run resumes from.

    Attributes:
        saved: progress and reader state for a checkpoint; rows as of the last `sync`.
        total_steps: of the whole run.
    """

    def __init__(
        self, reader: Reader, training: TrainingConfig, context: WorkerContext, start: SavedProgress
    ) -> None:
        self.saved = start
        self._reader, self._training, self._context = reader, training, context
        for before in start.left_out[context.rank :: context.world_size]:
            reader.left_out.update({(file, group): rows for file, group, rows in before})
        self._before: Sequence[Interval] = start.consumed  # when this attempt began the epoch
        self._read: list[Interval] = []  # since then, by this rank
        self._examples_before = start.examples - _rows(start.consumed)  # of earlier epochs
        self._steps_left = reader.num_steps(start.consumed) if start.consumed else 0
        self.total_steps = self._count_steps()

    @property
    def step(self) -> int:
        """Steps done."""
        return self.saved.step

    @property
    def between_epochs(self) -> bool:
        """Whether an epoch has ended, and none has begun."""
        return self._steps_left == 0

    @property
    def is_last_step(self) -> bool:
        """Whether the next step is the last of its epoch or of the run."""
        return self._steps_left == 1 or self.step + 1 == self._training.max_steps

    @property
    def at_end(self) -> bool:
        """Whether the run has trained all its steps."""
        most = self._training.max_steps
        enough = most is not None and self.step >= most
        return enough or self.saved.epoch >= self._training.epochs

    def batches(self) -> Iterator[RankingBatch]:
        """This rank's batches of the rest of the epoch."""
        self._steps_left = self._reader.num_steps(self._before)
        return self._reader.batches(self.saved.epoch, self._before)

    def advance(self, batch: RankingBatch) -> None:
        """Count a step with this batch, whether it updates the model or is skipped."""
        self._read += batch.rows.intervals
        self._steps_left -= 1
        self._update(step=self.step + 1)
        if self.between_epochs:
            self._examples_before += self._reader.rows
            self._update(epoch=self.saved.epoch + 1)
            self._before, self._read = (), []

    def skip(self) -> None:
        """Count a step, made before, as skipped."""
        self._update(skipped=self.saved.skipped + 1)

    def sync(self) -> None:
        """Update `saved` with the rows that all ranks consumed, and those that none could read."""
        self._read = merge_intervals(self._read)
        left_out = [(*place, rows) for place, rows in self._reader.left_out.copy().items()]
        every = self._context.gather((self._read, tuple(left_out[:MAX_LEFT_OUT])))
        read = [interval for intervals, _ in every for interval in intervals]
        consumed = tuple(merge_intervals([*self._before, *read]))
        examples = self._examples_before + _rows(consumed)
        left_out_by_rank = tuple(left_out for _, left_out in every)
        self._update(consumed=consumed, examples=examples, left_out=left_out_by_rank)

    def unreadable_rows(self) -> dict[str, int]:
        """Rows of the row groups that no rank could read."""
        by_place: dict[tuple[str, int], int] = {}
        for here in self._context.gather(self._reader.left_out):
            by_place |= here
        return {f"{file}, row group {group}": rows for (file, group), rows in by_place.items()}

    def _update(self, **changes: Any) -> None:
        self.saved = self.saved.model_copy(update=changes)

    def _count_steps(self) -> int:
        later_epochs = self._training.epochs - self.saved.epoch - 1
        total = self.step
        if later_epochs >= 0:
            total += self._reader.num_steps(self._before)
            total += later_epochs * self._reader.num_steps()
        return min(total, self._training.max_steps or total)


def _rows(intervals: Sequence[Interval]) -> int:
    return sum(stop - start for start, stop in intervals)
