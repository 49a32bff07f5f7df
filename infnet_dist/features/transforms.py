"""Raw rows -> the arrays that the reader makes of the training set's columns, by a definition."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from infnet_dist.errors import DataError, unknown_name
from infnet_dist.features.definition import (
    BucketInput,
    CrossInput,
    Definition,
    GapsInput,
    HistoryActions,
    HistoryGaps,
    HistoryIds,
    IdInput,
    IdsInput,
    IdTable,
    Input,
    SetColumn,
    StandardisedInput,
    VectorInput,
    WeightsInput,
)
from infnet_dist.features.hashing import cross_ids, known_ids, raw_rows
from infnet_dist.features.histories import check_parallel
from infnet_dist.features.ids import (
    HashEncoder,
    IdEncoder,
    KeyMap,
    UnchangedEncoder,
    VocabularyEncoder,
)
from infnet_dist.features.lists import Lists
from infnet_dist.features.numbers import bucketise, standardise, time_gap_buckets
from infnet_dist.features.raw_values import Column
from infnet_dist.features.rows import RawRows, Values

IntArray = npt.NDArray[np.int64]


class Transforms:
    """The transforms of a training set, ready to encode raw rows.

    Args:
        definition: what is made of what.
        key_maps: the vocabularies, by table.
    """

    def __init__(self, definition: Definition, key_maps: Mapping[str, KeyMap]) -> None:
        self.definition = definition
        self._key_maps = key_maps
        self._encoders: dict[str, IdEncoder] = {
            name: make_encoder(table, key_maps.get(name))
            for name, table in definition.tables.items()
        }

    def select(self, keys: Iterable[str]) -> "Transforms":
        """The transforms of some inputs alone; others needn't be given.

        Raises:
            DataError: an unknown input.
        """
        wanted, known = set(keys), [i.key for i in self.definition.inputs]
        for key in sorted(wanted - set(known)):
            raise DataError(unknown_name("input", key, known))
        kept = tuple(i for i in self.definition.inputs if i.key in wanted)
        return Transforms(replace(self.definition, inputs=kept), self._key_maps)

    @cached_property
    def columns(self) -> dict[str, SetColumn]:
        """The columns of the training set that the inputs need."""
        inputs = self.definition.inputs
        names = dict.fromkeys(i.column for i in inputs if not isinstance(i, CrossInput))
        return {name: self.definition.columns[name] for name in names}

    def encode(
        self, columns: Mapping[str, Any], prepared: Mapping[str, Any] | None = None
    ) -> dict[str, Values]:
        """What a model reads of N rows, by key of the input, in order.

        Args:
            columns: by raw column, a list or array of N values; None is null. By behaviour, its
                events as columns of lists: {"click": {"item_id": [[7, 3], []], "time_ms": ...}}.
            prepared: by column of the training set, values as they are there (ids, not raw values);
                raw columns that only these need may be missing. Histories may be given so.

        Returns:
            Ids and buckets: int64 [N]; standardised numbers: float32 [N]; bags, histories, time-gap
            buckets, weights and vectors: `Lists`. Exactly what the reader makes of the same row of
            the training set.

        Raises:
            DataError: a column is missing or unknown, or a value has the wrong type or isn't
                allowed; names column, row and value.
        """
        return self.read(self.prepare(columns, prepared))

    def prepare(
        self, columns: Mapping[str, Any], prepared: Mapping[str, Any] | None = None
    ) -> dict[str, Values]:
        """The columns of the training set; arguments and errors as of `encode`."""
        prepared = prepared or {}
        self._check_names(columns, prepared)
        rows = RawRows(self.definition, self._encoders, self.columns, columns, prepared)
        return {
            name: rows.given(name, column) if name in prepared else rows.made(name, column)
            for name, column in self.columns.items()
        }

    def read(self, prepared: Mapping[str, Values]) -> dict[str, Values]:
        """What a model reads of columns of the training set (`prepare`), by key."""
        made: dict[str, Values] = {}
        ids: dict[str, IntArray] = {}  # of crosses: before raw ids are hashed
        inputs = self.definition.inputs
        _check_parallel(inputs, prepared)
        for one in inputs:
            if isinstance(one, CrossInput):
                continue
            found = prepared[one.column]
            if isinstance(found, Lists):
                made[one.key] = _read_lists(found, one)
            elif isinstance(one, StandardisedInput):
                made[one.key] = standardise(found, one.mean, one.std)
            elif isinstance(one, BucketInput):
                ids[one.key] = made[one.key] = bucketise(found, one.boundaries)
            else:
                assert isinstance(one, IdInput)
                ids[one.key] = found if one.raw else known_ids(found, one.num_embeddings)
                made[one.key] = _rows(found, one)
        for one in inputs:
            if isinstance(one, CrossInput):
                made[one.key] = cross_ids([ids[key] for key in one.of], one.num_embeddings)
        return {one.key: made[one.key] for one in inputs}

    def _check_names(self, columns: Mapping[str, Any], prepared: Mapping[str, Any]) -> None:
        known = [*self._row_columns, *self.definition.behaviours]
        for name in columns:
            if name not in known:
                raise DataError(unknown_name("raw column or behaviour", str(name), known))
        for name in prepared:
            if name not in self.definition.columns:
                known = list(self.definition.columns)
                raise DataError(unknown_name("column of the training set", str(name), known))

    @cached_property
    def _row_columns(self) -> list[str]:
        """All raw columns that rows may give."""
        found = [self.definition.time.raw] if self.definition.time is not None else []
        for column in self.definition.columns.values():
            if not isinstance(column, HistoryIds | HistoryActions | HistoryGaps):
                found.append(column.raw)
        return list(dict.fromkeys(found))


def make_encoder(table: IdTable, key_map: KeyMap | None) -> IdEncoder:
    """The encoder of a table; the key map is that of its vocabulary, if it has one."""
    if table.encoding == "vocabulary":
        assert key_map is not None
        return VocabularyEncoder(key_map)
    return HashEncoder(table.num_ids) if table.encoding == "hash" else UnchangedEncoder()


def _rows(ids: Any, one: IdInput | IdsInput) -> IntArray:
    return (raw_rows if one.raw else known_ids)(ids, one.num_embeddings)


def _read_lists(lists: Lists, one: Input) -> Values:
    if isinstance(one, VectorInput):
        return lists
    assert isinstance(one, IdsInput | WeightsInput | GapsInput)
    values, lengths = lists.first(one.max_length)
    if isinstance(one, IdsInput):
        values = _rows(values, one)
    elif isinstance(one, GapsInput):
        values = time_gap_buckets(values)
    return Lists(values, lengths)


def _check_parallel(inputs: Sequence[Input], prepared: Mapping[str, Values]) -> None:
    """Check that the lists of a feature, as `click.item` and `click`, have equal lengths."""
    first: dict[str, Column] = {}
    for one in inputs:
        found = None if isinstance(one, CrossInput) else prepared[one.column]
        if isinstance(found, Lists):
            column = Column(one.key, found.values, found.lengths)
            check_parallel(first.setdefault(one.key.partition(".")[0], column), column)
