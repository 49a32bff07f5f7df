"""Number of rows per task, so that a task needs about `memory_mib`."""

import math
from dataclasses import dataclass

from infnet_dist.config.logs import LogsIngest
from infnet_dist.ingest.logs.encoding.features import id_features, item_features

_COPIES = 6  # copies of its rows that a task holds at its peak, about
_COUNT_BYTES = 100  # bytes per row in stage count, about
_FLOAT_BYTES = 32  # bytes per number of a vector while it is read, joined and converted, about


@dataclass(frozen=True)
class TaskSizes:
    """Rows per task.

    Attributes:
        partition: rows of the logs per partition.
        chunk: rows of the training set that are made at once.
        part: rows per part.
        count: rows per task of stage count.
    """

    partition: int
    chunk: int
    part: int
    count: int

    @classmethod
    def of(cls, config: LogsIngest) -> "TaskSizes":
        """Sizes that fit the memory of the config."""
        room = config.memory_mib * 2**20 // _COPIES
        lists = sum(column.max_length for column in config.lists.values())
        vectors = _vector_bytes(config)
        raw = 16 * len(config.columns) + 8 * lists + _weight_bytes(config) + vectors
        made = _made_bytes(config)
        return cls(
            partition=min(max(room // raw, 1_000 if vectors else 10_000), 500_000),
            chunk=min(max(room // made, 1_000), 131_072),
            part=min(max(room // made, config.row_group_rows), 1_000_000),
            count=max(room // _COUNT_BYTES, 10_000),
        )


def _made_bytes(config: LogsIngest) -> int:
    """Bytes of a training row with full histories."""
    ids = [f for column, table in config.ids.items() for f in id_features(config, column, table)]
    scalars = len(ids) + len(config.dense) + len(config.counters) + len(config.tasks) + 3
    items = sum(column.max_length for column in config.lists.values())
    for behaviour in config.behaviours.values():
        attributes = len(item_features(config, behaviour)) + bool(behaviour.actions)
        items += behaviour.length * (attributes + behaviour.time_gaps)
    return 8 * (scalars + items) + _weight_bytes(config) + _vector_bytes(config)


def _weight_bytes(config: LogsIngest) -> int:
    return 4 * sum(config.lists[name].max_length for name in config.weight_columns)


def _vector_bytes(config: LogsIngest) -> int:
    return 4 * sum(column.dim for column in config.vectors.values())


def rows_at_once(config: LogsIngest) -> int | None:
    """Number of rows that are read, joined and converted at once; None: without wide columns."""
    numbers = sum(column.dim for column in config.vectors.values())
    if not numbers:
        return None
    return max(config.memory_mib * 2**20 // (2 * _FLOAT_BYTES * numbers), 64)


def power_of_two(number: int) -> int:
    """The smallest power of two that isn't below a number."""
    return 1 << (number - 1).bit_length()


def num_tasks(rows: int, each: int) -> int:
    """Number of tasks for some rows, at least one."""
    return max(math.ceil(rows / each), 1)
