"""Allowed ranges of the integer columns of a training set."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.errors import DataError
from infnet_dist.schema import Schema

_ANY = (-(2**63), 2**63 - 1)
_FIX = "fix the data or the ingest section, and ingest again"


@dataclass(frozen=True)
class AllowedRange:
    """Allowed values of an integer column, both ends included."""

    column: str
    low: int
    high: int
    meaning: str
    nullable: bool = False

    @property
    def is_any(self) -> bool:
        """Whether the range allows all integers."""
        return (self.low, self.high) == _ANY

    def check(self, found: tuple[int | None, int | None, int], where: str) -> None:
        """Check the values of a column.

        Args:
            found: smallest value, largest value and number of nulls of the column.
            where: file and row group, for messages.

        Raises:
            DataError: a value is out of range; names the column and the value.
        """
        low, high, nulls = found
        where = f"{where}, column {self.column!r}"
        if nulls and not self.nullable:
            raise DataError(f"{where}: {nulls} nulls, {self.meaning}; {_FIX}")
        for value in (low, high):
            if value is not None and not self.low <= value <= self.high:
                raise DataError(f"{where}: got {value}, {self.meaning}; {_FIX}")


def allowed_ranges(schema: Schema) -> Iterator[AllowedRange]:
    """The range of each integer column that the reader needs."""
    for feature in schema.categorical:
        yield _ids(schema, feature.column, feature.table)
    for bag in schema.bags:
        yield _ids(schema, bag.column, bag.table)
    for sequence in schema.sequences:
        for attribute in sequence.attributes:
            yield _ids(schema, attribute.column, attribute.table)
        if sequence.time_gap_column is not None:
            yield AllowedRange(sequence.time_gap_column, 0, _ANY[1], "a time gap must be >= 0 s")
    yield AllowedRange(schema.group_column, *_ANY, "a group must be an integer")
    for task in schema.tasks:
        if task.kind == "watch_time":
            high, meaning = _ANY[1], f"watch time {task.name!r} must be >= 0 ms"
        else:
            high, meaning = 1, f"a label of task {task.name!r} must be 0 or 1"
        yield AllowedRange(task.column, 0, high, meaning, task.nullable)


def value_bounds(values: pa.ChunkedArray) -> tuple[int | None, int | None, int]:
    """Smallest value, largest value and number of nulls; for lists, of their items."""
    if pa.types.is_list(values.type):
        values = pc.list_flatten(values)
    found = pc.min_max(values).as_py()
    return found["min"], found["max"], values.null_count


def _ids(schema: Schema, column: str, table: str) -> AllowedRange:
    if schema.table(table).raw:
        return AllowedRange(column, *_ANY, "a raw id must be an integer, 0 if unknown")
    found = schema.table(table)
    last = (found.num_ids or found.num_embeddings) - 1
    return AllowedRange(column, 0, last, f"ids of table {table!r} must be 0 (unknown) to {last}")
