"""The parts of a rank -> batches, read ahead in a thread.

A batch has rows of one part, so that its scores depend neither on the other parts nor on who
predicts them. A rank whose parts are done gives batches without rows: all ranks make the same
number of steps, since each of them is a collective.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infnet_dist.batch import BatchRows, RankingBatch
from infnet_dist.data.collate import Collator
from infnet_dist.data.decode import Columns, decode
from infnet_dist.data.manifest import arrow_type
from infnet_dist.data.row_views import Rows, RowShuffler, concatenate
from infnet_dist.errors import DataError
from infnet_dist.prediction.layout import OutputPart
from infnet_dist.prediction.sources.source import InputGroup, InputRows, Source
from infnet_dist.schema import Schema

FILE, ROW = "source_file", "source_row"  # columns of the output: where a row is in the input


class Counts(NamedTuple):
    """Number of ids by key, int64 [F], and of those that are unknown (0)."""

    ids_F: npt.NDArray[np.int64]
    unknown_F: npt.NDArray[np.int64]


class PredictionBatch(NamedTuple):
    """A batch and where its rows come from.

    Attributes:
        batch: rows of one part; without labels.
        part: the part; None in a batch without rows.
        rows: key columns, `FILE` and `ROW` of each row.
        counts: of its ids, in the order of `Schema.table_features`.
        is_last: whether it is the last one of its part.
    """

    batch: RankingBatch
    part: OutputPart | None
    rows: pa.Table | None
    counts: Counts
    is_last: bool


class PartReader:
    """Reads the parts of a rank.

    Args:
        source: the input.
        schema: the columns to read, without labels.
        batch_size: rows of a batch.
    """

    def __init__(self, source: Source, schema: Schema, batch_size: int) -> None:
        self._source = source
        self._schema = schema
        self._batch_size = batch_size
        self._collate = Collator(schema, batch_size)
        self._shuffle = RowShuffler()
        self._keys = [feature.key for feature in schema.table_features]

    def batches(self, parts: Sequence[OutputPart], steps: int) -> Iterator[PredictionBatch]:
        """The batches of these parts, in order, then as many without rows as make up `steps`.

        Raises:
            DataError: a file can't be read or has changed, or a value isn't allowed; names file,
                row group, column and value.
        """
        groups = [group for part in parts for group in part.groups]
        found = zip(groups, self._source.read(groups), strict=True)
        for part in parts:
            done = 0
            for rows, places in self._pieces(part, found):
                done += len(rows)
                batch = self._collated(rows, done)
                steps -= 1
                is_last = done == part.rows
                yield PredictionBatch(batch, part, places, self._count(batch), is_last)
        next(found, None)  # ends the last file, which is compared with its state before
        for _ in range(steps):
            batch = self._collated(self._in_order(_no_rows(self._schema)), 0)
            yield PredictionBatch(batch, None, None, self._count(batch), False)

    def _collated(self, rows: Rows, done: int) -> RankingBatch:
        interval = ((done - len(rows), done),) if len(rows) else ()
        return self._collate(rows, BatchRows(epoch=0, intervals=interval))

    def _pieces(
        self, part: OutputPart, found: Iterator[tuple[InputGroup, InputRows]]
    ) -> Iterator[tuple[Rows, pa.Table]]:
        """The rows of each batch of a part, with their places."""
        taken: list[Rows] = []
        places: list[pa.Table] = []
        missing = self._batch_size
        for _ in part.groups:
            group, read = next(found)
            rows, place = self._in_order(self._decode(group, read)), self._places(group, read)
            start = 0
            while start < group.rows:
                count = min(missing, group.rows - start)
                picked = rows[start : start + count]
                # An incomplete batch outlives the memory of this row group.
                taken.append(picked if count == missing else picked.own())
                places.append(place.slice(start, count))
                start, missing = start + count, missing - count
                if not missing:
                    yield concatenate(taken), pa.concat_tables(places)
                    taken, places, missing = [], [], self._batch_size
            del rows, picked  # their memory is reused by the next row group
        if taken:
            yield concatenate(taken), pa.concat_tables(places)

    def _decode(self, group: InputGroup, read: InputRows) -> Columns:
        where = f"{self._source.files[group.file].name}, row group {group.number}"
        try:
            return decode(read.features, self._schema, where)
        except DataError as error:
            raise DataError(f"{error}{self._source.advice}") from None

    def _in_order(self, columns: Columns) -> Rows:
        return self._shuffle([columns], np.arange(len(columns)))

    def _places(self, group: InputGroup, read: InputRows) -> pa.Table:
        """Key columns and position of each row of a row group."""
        name = pa.array([self._source.files[group.file].name])
        names = pa.DictionaryArray.from_arrays(np.zeros(group.rows, np.int32), name)
        columns = dict(zip(read.keys.column_names, read.keys.columns, strict=True))
        return pa.table(columns | {FILE: names.cast(pa.string()), ROW: read.numbers})

    def _count(self, batch: RankingBatch) -> Counts:
        """Ids of each key; a key that is looked up twice counts once."""
        ids, unknown = (dict.fromkeys(self._keys, 0) for _ in range(2))
        for jagged in filter(None, (batch.weighted_features, batch.sparse_features)):
            ends = np.cumsum([0, *jagged.length_per_key()])
            zeros = np.concatenate([[0], np.cumsum(jagged.values().numpy() == 0)])
            for key, start, end in zip(jagged.keys(), ends[:-1], ends[1:], strict=True):
                ids[key], unknown[key] = int(end - start), int(zeros[end] - zeros[start])
        return Counts(np.array([*ids.values()]), np.array([*unknown.values()]))


def _no_rows(schema: Schema) -> Columns:
    types = {column: arrow_type(schema, column) for column in schema.columns}
    return decode(pa.schema(types).empty_table(), schema, "no rows")
