"""A part of which only some rows are read."""

from collections.abc import Sequence
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.data.manifest import Moment, Part, Rows
from infnet_dist.errors import DataError


class SelectedPart(Part):
    """A part of which only some rows are read; made in memory, never in a manifest.

    `row_groups` has the number of rows that are read of each row group: the first ones among those
    within `times_ms`. The rows of a row group are in random order, so the first ones are a random
    sample.

    Attributes:
        in_file: number of rows of each row group of the file.
        in_window: number of these within `times_ms`; `in_file` without times.
        times_ms: first and last epoch millisecond of the rows that are read; None: any.
        time_column: column of these times.
    """

    in_file: tuple[Rows, ...]
    in_window: tuple[Rows, ...]
    times_ms: tuple[Moment, Moment] | None = None
    time_column: str = ""

    @classmethod
    def of(cls, part: Part, row_groups: Sequence[int]) -> Self:
        """The first rows of each row group of a whole part."""
        update = {"rows": sum(row_groups), "row_groups": tuple(row_groups)}
        whole = {"in_file": part.row_groups, "in_window": part.row_groups}
        return cls(**part.model_dump() | update | whole)

    @classmethod
    def within(
        cls, part: Part, times_ms: tuple[int, int], time_column: str, counts: Sequence[int]
    ) -> Self:
        """The rows of a part within these times, `counts` of each row group."""
        update = {"rows": sum(counts), "row_groups": tuple(counts), "in_window": tuple(counts)}
        cut = {"times_ms": times_ms, "time_column": time_column, "in_file": part.rows_in_file}
        assert part.time_range_ms is not None, "parts without times aren't cut"
        first, last = part.time_range_ms
        times = {"time_range_ms": (max(first, times_ms[0]), min(last, times_ms[1]))}
        return cls(**part.model_dump() | update | cut | times)

    @property
    def rows_in_file(self) -> tuple[int, ...]:
        """Number of rows of each row group of the file."""
        return self.in_file

    @property
    def identity(self) -> str:
        """Text that differs for other rows."""
        return f"{self.fingerprint} {self.times_ms} {self.row_groups}"

    @property
    def selects_by(self) -> tuple[str, ...]:
        """Columns that `select` needs."""
        return (self.time_column,) if self.times_ms is not None else ()

    def select(self, table: pa.Table, index: int) -> pa.Table:
        """The rows of a row group that are read.

        Raises:
            DataError: another number of rows is within the times than when they were counted.
        """
        if self.times_ms is not None:
            first, last = self.times_ms
            times = table[self.time_column]
            inside = pc.and_(pc.greater_equal(times, first), pc.less_equal(times, last))
            table = table.filter(inside)
        if len(table) != self.in_window[index]:
            raise DataError(
                f"{self.file}, row group {index}: {len(table)} rows are in the window, "
                f"{self.in_window[index]} were counted before; restore the file"
            )
        return table.slice(0, self.row_groups[index])
