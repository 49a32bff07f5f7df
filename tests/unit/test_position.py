"""Progress counts the rows that steps consumed, also when the training set grew between epochs."""

from types import SimpleNamespace
from typing import Any

import pytest

from infnet_dist.batch import BatchRows
from infnet_dist.checkpoint import Progress
from infnet_dist.config.run import TrainingConfig
from infnet_dist.data.epoch_order import num_steps, remaining
from infnet_dist.training.progress import Position

BATCH = 8


class FakeReader:
    """Rows in order, one rank."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.left_out: dict[Any, int] = {}

    def num_steps(self, consumed: Any = ()) -> int:
        return num_steps(remaining(self.rows, consumed), world_size=1, batch_size=BATCH)

    def batches(self, epoch: int, consumed: Any) -> Any:
        for start, stop in remaining(self.rows, consumed):
            for first in range(start, stop, BATCH):
                rows = BatchRows(epoch, ((first, min(first + BATCH, stop)),))
                yield SimpleNamespace(rows=rows)


def position(rows: int, epochs: int, start: Progress) -> Position:
    context: Any = SimpleNamespace(rank=0, world_size=1, gather=lambda value: [value])
    reader: Any = FakeReader(rows)
    return Position(reader, TrainingConfig(epochs=epochs), context, start)


def train(place: Position, *, most_steps: int = 10**6) -> list[int]:
    """Make steps; the examples that each of them adds, by the position's own count."""
    added = []
    while not place.at_end and len(added) < most_steps:
        for batch in place.batches():
            before = place.progress.examples
            place.advance(batch, skipped=False)
            place.mark()
            added.append(place.progress.examples - before)
            if len(added) == most_steps:
                break
    return added


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 7, 10])
def test_examples_are_those_of_the_steps(stop: int) -> None:
    """5 steps an epoch of 37 rows; stopped after any of them, and resumed."""
    first = position(37, 3, Progress())
    added = train(first, most_steps=stop) if stop else []
    second = position(37, 3, first.progress)
    added += train(second)
    assert added == [8, 8, 8, 8, 5] * 3
    assert second.progress.examples == 3 * 37


@pytest.mark.parametrize("stop", [5, 10])
def test_a_set_that_grew_between_epochs(stop: int) -> None:
    first = position(37, 3, Progress())
    train(first, most_steps=stop)
    epochs = stop // 5
    assert first.progress.examples == epochs * 37
    second = position(101, 3, first.progress)
    assert train(second, most_steps=2) == [8, 8]
    third = position(101, 3, second.progress)
    train(third)
    assert third.progress.examples == epochs * 37 + (3 - epochs) * 101
