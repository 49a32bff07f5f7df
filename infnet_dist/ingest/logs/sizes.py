"""How many rows a task takes, so that it holds about `memory_mib`."""

import math
from dataclasses import dataclass

from infnet_dist.config.logs import LogsIngest
from infnet_dist.ingest.logs.features import id_features, item_features

_COPIES = 6  # of its rows that a task holds at its peak, about
_ASKED_BYTES = 100  # of a row in stage count, about


@dataclass(frozen=True)
class Sizes:
    """Rows per task.

    Attributes:
        partition: rows of the logs in a partition.
        chunk: rows of the training set made at once.
        part: rows of a part.
        counting: rows of a counting task.
    """

    partition: int
    chunk: int
    part: int
    counting: int

    @classmethod
    def of(cls, config: LogsIngest) -> "Sizes":
        """What fits the config's memory."""
        room = config.memory_mib * 2**20 // _COPIES
        lists = sum(column.max_length for column in config.lists.values())
        raw = 16 * len(config.columns) + 8 * lists
        made = _made_bytes(config)
        return cls(
            partition=min(max(room // raw, 10_000), 500_000),
            chunk=min(max(room // made, 1_000), 131_072),
            part=min(max(room // made, config.row_group_rows), 1_000_000),
            counting=max(room // _ASKED_BYTES, 10_000),
        )


def _made_bytes(config: LogsIngest) -> int:
    """Bytes of a row of the training set, histories full."""
    ids = [f for column, table in config.ids.items() for f in id_features(config, column, table)]
    plain = len(ids) + len(config.dense) + len(config.counters) + len(config.tasks) + 3
    items = sum(column.max_length for column in config.lists.values())
    for behaviour in config.behaviours.values():
        attributes = len(item_features(config, behaviour)) + bool(behaviour.actions)
        items += behaviour.length * (attributes + behaviour.time_gaps)
    return 8 * (plain + items)


def power_of_two(number: int) -> int:
    """The least one that isn't below a number."""
    return 1 << (number - 1).bit_length()


def how_many(rows: int, each: int) -> int:
    """Tasks for so many rows, at least one."""
    return max(math.ceil(rows / each), 1)
