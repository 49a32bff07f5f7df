"""Training progress counts the rows that steps consumed, also when the set grew between epochs."""

from types import SimpleNamespace
from typing import Any

import pytest

from infnet_dist.batch import BatchRows
from infnet_dist.checkpoint import SavedProgress
from infnet_dist.config.run import TrainingConfig
from infnet_dist.data.epoch_order import num_steps, remaining_intervals
from infnet_dist.training.progress import TrainingProgress

BATCH = 8


class FakeReader:
    """Rows in order, one rank."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.left_out: dict[Any, int] = {}

    def num_steps(self, consumed: Any = ()) -> int:
        return num_steps(remaining_intervals(self.rows, consumed), world_size=1, batch_size=BATCH)

    def batches(self, epoch: int, consumed: Any) -> Any:
        for start, stop in remaining_intervals(self.rows, consumed):
            for first in range(start, stop, BATCH):
                rows = BatchRows(epoch, ((first, min(first + BATCH, stop)),))
                yield SimpleNamespace(rows=rows)


def progress(rows: int, epochs: int, start: SavedProgress) -> TrainingProgress:
    context: Any = SimpleNamespace(rank=0, world_size=1, gather=lambda value: [value])
    reader: Any = FakeReader(rows)
    return TrainingProgress(reader, TrainingConfig(epochs=epochs), context, start)


def train(progress: TrainingProgress, *, most_steps: int = 10**6) -> list[int]:
    """Make steps; the examples that each of them adds, by the progress's own count."""
    added = []
    while not progress.at_end and len(added) < most_steps:
        for batch in progress.batches():
            before = progress.saved.examples
            progress.advance(batch)
            progress.sync()
            added.append(progress.saved.examples - before)
            if len(added) == most_steps:
                break
    return added


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 7, 10])
def test_examples_are_those_of_the_steps(stop: int) -> None:
    """5 steps an epoch of 37 rows; stopped after any of them, and resumed."""
    first = progress(37, 3, SavedProgress())
    added = train(first, most_steps=stop) if stop else []
    second = progress(37, 3, first.saved)
    added += train(second)
    assert added == [8, 8, 8, 8, 5] * 3
    assert second.saved.examples == 3 * 37


@pytest.mark.parametrize("stop", [5, 10])
def test_a_set_that_grew_between_epochs(stop: int) -> None:
    first = progress(37, 3, SavedProgress())
    train(first, most_steps=stop)
    epochs = stop // 5
    assert first.saved.examples == epochs * 37
    second = progress(101, 3, first.saved)
    assert train(second, most_steps=2) == [8, 8]
    third = progress(101, 3, second.saved)
    train(third)
    assert third.saved.examples == epochs * 37 + (3 - epochs) * 101


def test_last_steps_of_epochs_and_of_the_run() -> None:
    context: Any = SimpleNamespace(rank=0, world_size=1, gather=lambda value: [value])
    reader: Any = FakeReader(37)  # 5 steps
    training = TrainingConfig(epochs=2, max_steps=8)
    found = TrainingProgress(reader, training, context, SavedProgress())
    last = []
    while not found.at_end:
        for batch in found.batches():
            if found.is_last_step:
                last.append(found.step)
            found.advance(batch)
            if found.at_end:
                break
    assert last == [4, 7]
