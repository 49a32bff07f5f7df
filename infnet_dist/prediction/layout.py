"""Which rows each part of the output has, and which rank predicts it.

A part has the rows of consecutive row groups of the input. That depends on the input alone: the
same parts come from any number of workers, and a run that was lost resumes with those it lacks.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from infnet_dist.errors import DataError
from infnet_dist.prediction.sources.source import InputFile, InputGroup

_MOST_ROWS = 1_000_000  # of a part by default: a rank holds its predictions in memory
_LEAST_BATCHES = 16  # of a part by default, since the last one of a part is padded
_SHARES = 256  # of the input, so that many workers have about equally many
_MOST_PARTS = 1_000_000  # names have six digits, and are in the order of the input


class OutputPart(NamedTuple):
    """A part of the output.

    Attributes:
        number: from 0.
        groups: row groups of the input, each with rows.
    """

    number: int
    groups: tuple[InputGroup, ...]

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"part-{self.number:06d}.parquet"

    @property
    def rows(self) -> int:
        """Number of its rows."""
        return sum(group.rows for group in self.groups)

    def num_batches(self, batch_size: int) -> int:
        """Number of its batches."""
        return math.ceil(self.rows / batch_size)


def default_part_rows(rows: int, batch_size: int) -> int:
    """Rows of a part by default, for an input of `rows` rows."""
    return min(max(rows // _SHARES, _LEAST_BATCHES * batch_size), _MOST_ROWS)


def cut_parts(files: Sequence[InputFile], rows_per_part: int) -> tuple[OutputPart, ...]:
    """Parts of the fewest row groups with at least `rows_per_part` rows; the last may have fewer.

    Raises:
        DataError: there are too many.
    """
    parts: list[OutputPart] = []
    groups: list[InputGroup] = []
    rows = 0
    for number, file in enumerate(files):
        for index, size in enumerate(file.row_groups):
            if size:
                groups.append(InputGroup(number, index, size))
                rows += size
            if rows >= rows_per_part:
                parts.append(OutputPart(len(parts), tuple(groups)))
                groups, rows = [], 0
    if groups:
        parts.append(OutputPart(len(parts), tuple(groups)))
    if len(parts) > _MOST_PARTS:
        raise DataError(
            f"--rows-per-part {rows_per_part}: {len(parts):,} parts, at most {_MOST_PARTS:,}; "
            "choose a larger number"
        )
    return tuple(parts)


def shares(
    parts: Iterable[OutputPart], world_size: int, batch_size: int
) -> list[tuple[OutputPart, ...]]:
    """The parts of each rank, in the order of the input, with about equally many batches."""
    chosen: list[list[OutputPart]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for part in sorted(parts, key=lambda part: (-part.num_batches(batch_size), part.number)):
        load, rank = heapq.heappop(loads)
        chosen[rank].append(part)
        heapq.heappush(loads, (load + part.num_batches(batch_size), rank))
    return [tuple(sorted(mine)) for mine in chosen]


def num_steps(shared: Sequence[Sequence[OutputPart]], batch_size: int) -> int:
    """Number of steps of every rank: the batches of the rank that has most."""
    return max(sum(part.num_batches(batch_size) for part in mine) for mine in shared)
