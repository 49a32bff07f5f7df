"""Encodes columns as features: values as ids, or numbers as they are; fitted on train."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.config.ingest import BagColumn, TabularIngest
from infnet_dist.errors import DataError
from infnet_dist.features.lists import cut, first_items
from infnet_dist.ingest.convert.arrays import list_items
from infnet_dist.ingest.encode import Vocabulary, float_column, quantile_boundaries
from infnet_dist.ingest.tabular.columns import Columns, Source, weights_name
from infnet_dist.schema import BagFeature, CategoricalFeature, DenseFeature, Table


class Encoder(Protocol):
    """Encodes one column as a feature that reads a table of its own."""

    @property
    def name(self) -> str:
        """Name of the column, the feature and the table."""
        ...

    @property
    def table(self) -> Table:
        """The table."""
        ...

    @property
    def feature(self) -> CategoricalFeature | BagFeature | DenseFeature:
        """The feature."""
        ...

    def encode(self, values: pa.Array) -> pa.Array:
        """Values of the column -> those of the training set."""
        ...


@dataclass(frozen=True)
class Categories:
    """Values -> int64 ids, 0 for null and values that don't occur in train."""

    name: str
    vocabulary: Vocabulary

    @property
    def table(self) -> Table:
        """One row per id."""
        return Table(name=self.name, num_embeddings=self.vocabulary.num_embeddings)

    @property
    def feature(self) -> CategoricalFeature:
        """One id per row."""
        return CategoricalFeature(name=self.name, table=self.name, column=self.name)

    def encode(self, values: pa.Array) -> pa.Array:
        """The ids."""
        return pa.array(self.vocabulary.encode(values))


@dataclass(frozen=True)
class Bag:
    """Lists of values -> lists of int64 ids, as `Categories`; null is an empty list."""

    name: str
    vocabulary: Vocabulary
    column: BagColumn

    @property
    def table(self) -> Table:
        """One row per id."""
        return Table(name=self.name, num_embeddings=self.vocabulary.num_embeddings)

    @property
    def feature(self) -> BagFeature:
        """Several ids per row."""
        return BagFeature(
            name=self.name,
            table=self.name,
            column=self.name,
            pooling=self.column.pooling,
            max_length=self.column.max_length,
            weight_column=None if self.column.weights is None else weights_name(self.name),
        )

    def encode(self, values: pa.Array) -> pa.Array:
        """The ids of the first items."""
        items, lengths = first_of(values, self.column.max_length)
        return as_lists(pa.array(self.vocabulary.encode(items)), lengths)


@dataclass(frozen=True)
class Dense:
    """Numbers -> float32, null if missing; the reader bucketises them."""

    name: str
    boundaries: tuple[float, ...]

    @property
    def table(self) -> Table:
        """One row per bucket."""
        return Table(name=self.name, num_embeddings=len(self.boundaries) + 2)

    @property
    def feature(self) -> DenseFeature:
        """A number per row."""
        return DenseFeature(name=self.name, column=self.name, boundaries=self.boundaries)

    def encode(self, values: pa.Array) -> pa.Array:
        """The numbers."""
        return float_column(_as_floats(values))


def first_of(lists: pa.Array, max_length: int) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The first `max_length` items of each list, and the number of them."""
    items, lengths = list_items(lists)
    kept = first_items(lengths, max_length)
    if kept.all():
        return items, lengths
    return items.filter(pa.array(kept)), cut(lengths, max_length)


def as_lists(items: pa.Array, lengths: npt.NDArray[np.int64]) -> pa.ListArray:
    """Lists of these lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)


def fit_encoders(config: TabularIngest, train: Source, columns: Columns) -> list[Encoder]:
    """One encoder per column of ids or numbers, in the order of the file; one column in memory.

    Raises:
        DataError: a value is invalid, or no column is left.
    """
    encoders: list[Encoder] = []
    for name, kind in columns.kinds.items():
        if name in config.not_features:
            continue
        chunks = [
            columns.convert(name, batch.column(0), path, row)
            for path, row, batch in train.batches([name])
        ]
        encoders.append(_fit(config, name, kind, chunks))
    if not encoders:
        raise DataError("no column is left for features; remove some from ingest.exclude")
    return encoders


def _fit(config: TabularIngest, name: str, kind: str, chunks: Sequence[pa.Array]) -> Encoder:
    if name in config.bags:
        column = config.bags[name]
        items = [first_of(chunk, column.max_length)[0] for chunk in chunks]
        return Bag(name, Vocabulary.fit(pa.chunked_array(items).combine_chunks()), column)
    values = pa.chunked_array(chunks).combine_chunks()
    if kind == "float":
        return Dense(name, quantile_boundaries(_as_floats(values), config.num_buckets))
    return Categories(name, Vocabulary.fit(values))


def _as_floats(values: pa.Array) -> npt.NDArray[np.float64]:
    return pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False)
