"""Writes a synthetic training set with known probabilities: rows, labels, histories, P(label = 1).

The AUC of the true probabilities against the drawn labels (truth columns) is the optimum. In
expectation no model exceeds or fully reaches it, because the probabilities depend on variables that
the columns show only indirectly: qualities of items, tendencies and current favourites of users. On
a finite split a model may exceed it by chance.

Rows are made in chunks of at most CHUNK_ROWS that depend only on the config and their position;
only histories and a few sums are carried from one chunk to the next. Memory doesn't grow with the
log.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.data.manifest import Manifest
from infnet_dist.ingest.histories import HistoryBuilder
from infnet_dist.ingest.synthetic.definition import prepared_definition
from infnet_dist.ingest.synthetic.population import build_world
from infnet_dist.ingest.synthetic.signals import sample_weights
from infnet_dist.ingest.synthetic.world import (
    NUM_AGE_GROUPS,
    NUM_TABS,
    TASKS,
    Features,
    Impressions,
    World,
)
from infnet_dist.ingest.writing.writer import TrainingSetWriter
from infnet_dist.schema import (
    CategoricalFeature,
    DenseFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
)

CHUNK_ROWS = 50_000
NUM_DURATION_BUCKETS = 20
_WEIGHT = "sample_weight"
_ATTRIBUTES = ("item", "author", "topic")
_CATEGORICAL = ("user", *_ATTRIBUTES, "age_group", "tab")


def make_training_set(
    config: SyntheticIngest,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write a synthetic log as a training set with known probabilities.

    Args:
        config: sizes, split and seed; the same config gives the same rows.
        folder: the training set to make.
        progress: called with (rows written, rows in total) after each chunk.

    Raises:
        DataError: `folder` exists and isn't empty.
    """
    world = build_world(config)
    window = _TrainWindow(config.num_items)
    train_rows = split_rows(config)["train"]
    source = config.model_dump(mode="json")
    with TrainingSetWriter(
        folder,
        rows_per_part=config.rows_per_part,
        row_group_rows=config.row_group_rows,
        source=source,
    ) as writer:
        done = 0
        for chunk in log_chunks(world, config):
            window.add(chunk.slice(0, max(train_rows - done, 0)))
            for split, part in _cut(chunk, done, config):
                writer.write(split, part)
            done += chunk.num_rows
            if progress is not None:
                progress(done, config.num_rows)
        schema = _schema(config, window, world)
        return writer.publish(schema, definition=prepared_definition(schema))


def split_rows(config: SyntheticIngest) -> dict[str, int]:
    """Rows of each split, in time order; no test if `test_share` is 0."""
    valid = max(1, int(config.num_rows * config.valid_share))
    test = max(1, int(config.num_rows * config.test_share)) if config.test_share else 0
    rows = {"train": config.num_rows - valid - test, "valid": valid, "test": test}
    return {split: count for split, count in rows.items() if count}


def log_chunks(world: World, config: SyntheticIngest) -> Iterator[pa.Table]:
    """The log in time order, in chunks of at most CHUNK_ROWS, with labels and histories."""
    builders = [
        HistoryBuilder(
            num_users=config.num_users + 1,
            length=config.history_length,
            num_attributes=len(_ATTRIBUTES),
        )
        for _ in TASKS
    ]
    for first_row in range(0, config.num_rows, CHUNK_ROWS):
        num_rows = min(CHUNK_ROWS, config.num_rows - first_row)
        yield _chunk(world, range(first_row, first_row + num_rows), builders, config)


def _chunk(
    world: World, places: range, builders: list[HistoryBuilder], config: SyntheticIngest
) -> pa.Table:
    first_row = places.start
    rows = world.impressions(first_row, len(places))
    truth = world.truth(rows)
    labels = world.labels(first_row, truth)
    columns = impression_columns(world, rows, config)
    attributes = np.stack([rows.items, columns["author_id"], columns["topic_id"]], axis=1)
    for number, task in enumerate(TASKS):
        happened = labels[:, number]
        columns |= label_columns(task, happened, truth[:, number])
        histories = builders[number].read_then_add(rows.users, rows.times_ms, attributes, happened)
        for place, attribute in enumerate(_ATTRIBUTES):
            columns[f"{task}_{attribute}_ids"] = histories.column(place)
        columns[f"{task}_gaps_s"] = histories.gap_column()
    return pa.table(columns | signal_columns(world, rows, config))


def impression_columns(
    world: World, rows: Impressions, config: SyntheticIngest
) -> dict[str, npt.NDArray | pa.Array]:
    """Ids, numbers and times of impressions."""
    columns: dict[str, npt.NDArray | pa.Array] = {
        "user_id": rows.users,
        "item_id": rows.items,
        "author_id": world.item_author[rows.items],
        "topic_id": world.item_topic[rows.items],
        "age_group_id": world.user_age_group[rows.users],
        "tab_id": rows.tabs,
        "duration_s": world.item_duration_s[rows.items],
        "item_age_days": world.item_age_days(rows).astype(np.float32),
        "time_ms": rows.times_ms,
    }
    for number, num_ids in enumerate(config.extra_fields):
        owner = rows.users if number % 2 else rows.items
        columns[f"{_extra(number)}_id"] = 1 + _hashed(owner, number) % num_ids
    return columns


def label_columns(
    task: str, happened: npt.NDArray[np.bool_], truth: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray]:
    """The labels of a task and their probabilities."""
    return {task: happened.astype(np.int8), f"truth_{task}": truth.astype(np.float32)}


def signal_columns(
    world: World, rows: Impressions, config: SyntheticIngest
) -> dict[str, npt.NDArray | pa.Array]:
    """The columns of signals, and weights."""
    columns: dict[str, npt.NDArray | pa.Array] = {}
    for signal in world.signals:
        columns |= signal.columns(rows)
    if config.sample_weights:
        columns[_WEIGHT] = sample_weights(config.seed, rows)
    return columns


def _extra(number: int) -> str:
    return f"extra_{number}"


def _hashed(ids: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.int64]:
    """A deterministic hash >= 0 of each id (finaliser of SplitMix64)."""
    mixed = (ids.astype(np.uint64) << np.uint64(16)) + np.uint64(number)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed >> np.uint64(1)).astype(np.int64)


def _cut(
    chunk: pa.Table, first_row: int, config: SyntheticIngest
) -> Iterator[tuple[str, pa.Table]]:
    """Slices of a chunk by split; its first row is row `first_row` of the log."""
    start = 0
    for split, count in split_rows(config).items():
        low = max(start - first_row, 0)
        high = min(start + count - first_row, chunk.num_rows)
        if low < high:
            yield split, chunk.slice(low, high - low)
        start += count


class _TrainWindow:
    """Running statistics of the train split for the dense features; keeps no rows."""

    def __init__(self, num_items: int) -> None:
        self.item_counts = np.zeros(num_items + 1, np.int64)
        self._age_sum = 0.0
        self._age_square_sum = 0.0

    def add(self, rows: pa.Table) -> None:
        """Add the rows."""
        items = rows.column("item_id").to_numpy()
        self.item_counts += np.bincount(items, minlength=len(self.item_counts))
        age = rows.column("item_age_days").to_numpy().astype(np.float64)
        self._age_sum += float(age.sum())
        self._age_square_sum += float(np.square(age).sum())

    def item_age_mean_and_std(self) -> tuple[float, float]:
        """Mean and std of `item_age_days`; std is 1 if all rows are equal."""
        rows = self.item_counts.sum()
        mean = self._age_sum / rows
        variance = self._age_square_sum / rows - mean**2
        return mean, float(np.sqrt(variance)) if variance > 0 else 1.0

    def duration_boundaries(self, duration_s: npt.NDArray[np.float32]) -> tuple[float, ...]:
        """Durations that split the rows into equal shares, ascending, without duplicates."""
        order = np.argsort(duration_s, kind="stable")
        cumulated = np.cumsum(self.item_counts[order])
        wanted = cumulated[-1] * np.arange(1, NUM_DURATION_BUCKETS) / NUM_DURATION_BUCKETS
        found = duration_s[order][np.searchsorted(cumulated, wanted)]
        return tuple(float(boundary) for boundary in np.unique(found))


def _schema(config: SyntheticIngest, window: _TrainWindow, world: World) -> Schema:
    boundaries = window.duration_boundaries(world.item_duration_s)
    age_mean, age_std = window.item_age_mean_and_std()
    counts = {
        "user": config.num_users,
        "item": config.num_items,
        "author": config.num_authors,
        "topic": config.num_topics,
        "age_group": NUM_AGE_GROUPS,
        "tab": NUM_TABS,
        "duration": len(boundaries) + 1,
    }
    extra = {_extra(number): num_ids for number, num_ids in enumerate(config.extra_fields)}
    counts |= extra
    added: list[Features] = [signal.features() for signal in world.signals]
    return Schema(
        tables=(
            *(Table(name=name, num_embeddings=n + 1) for name, n in counts.items()),
            *(table for features in added for table in features.tables),
        ),
        categorical=(
            *(
                CategoricalFeature(name=name, table=name, column=f"{name}_id")
                for name in (*_CATEGORICAL, *extra)
            ),
            *(feature for features in added for feature in features.categorical),
        ),
        bags=tuple(bag for features in added for bag in features.bags),
        vectors=tuple(vector for features in added for vector in features.vectors),
        sequences=tuple(_sequence(task, config.history_length) for task in TASKS),
        dense=(
            DenseFeature(name="duration", column="duration_s", boundaries=boundaries),
            DenseFeature(name="item_age", column="item_age_days", mean=age_mean, std=age_std),
        ),
        tasks=tuple(Task(name=t, column=t, truth_column=f"truth_{t}") for t in TASKS),
        group_column="user_id",
        time_column="time_ms",
        weight_column=_WEIGHT if config.sample_weights else None,
    )


def _sequence(task: str, max_length: int) -> SequenceFeature:
    return SequenceFeature(
        name=task,
        attributes=tuple(
            SequenceAttribute(name=name, table=name, column=f"{task}_{name}_ids")
            for name in _ATTRIBUTES
        ),
        max_length=max_length,
        time_gap_column=f"{task}_gaps_s",
    )
