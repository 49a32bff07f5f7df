"""Column sections of logs: time, ids, lists, vectors, dense, histories, counters, joins, checks."""

from typing import Literal

from pydantic import Field, model_validator

from infnet_dist.config.limits import (
    MAX_BUCKETS,
    MAX_HOURS,
    MAX_LENGTH,
    MAX_TABLE_ROWS,
    MAX_VECTOR,
)
from infnet_dist.config.model import Section

Pooling = Literal["sum", "mean"]


class TimeColumn(Section):
    """Time of an impression."""

    column: str = Field("time_ms", min_length=1, description="column of the time")
    unit: Literal["s", "ms", "us", "ns"] = Field(
        "ms",
        description="unit of integers since 1970 in UTC; timestamp columns have their own unit",
    )
    monotone: bool = Field(
        False, description="quarantine rows that are earlier than a previous row of the same file"
    )
    max_ahead_h: float | None = Field(
        24.0,
        ge=0,
        le=MAX_HOURS,
        description="hours after the last change of the file from which a row is quarantined; "
        "null: no limit",
    )


class IdTable(Section):
    """Encoding of column values as rows of an embedding table."""

    encoding: Literal["vocabulary", "hash", "raw"] = Field(
        "vocabulary",
        description="vocabulary: a row per value; hash: rows by hash; raw: hashed by the reader",
    )
    num_embeddings: int | None = Field(
        None,
        ge=2,
        le=MAX_TABLE_ROWS,
        description="number of rows; null (vocabulary only): number of distinct values, plus 1",
    )
    min_count: int = Field(
        1, ge=1, description="vocabulary: values with fewer occurrences before valid get id 0"
    )
    num_hashes: int = Field(
        1, ge=1, le=4, description="hash: number of hash functions; each adds a feature"
    )

    @model_validator(mode="after")
    def _check(self) -> "IdTable":
        if self.encoding != "vocabulary" and self.num_embeddings is None:
            raise ValueError(
                f"encoding {self.encoding} requires num_embeddings, the number of rows"
            )
        if self.encoding != "vocabulary" and self.min_count > 1:
            raise ValueError(f"min_count requires encoding vocabulary, got {self.encoding}")
        if self.encoding != "hash" and self.num_hashes > 1:
            raise ValueError(f"num_hashes requires encoding hash, got {self.encoding}")
        return self


class ListOptions(Section):
    """What all columns of lists of values have."""

    separator: str = Field(
        "|",
        min_length=1,
        description="separator between the items of lists that are text, and of their weights",
    )
    max_length: int = Field(
        20,
        ge=1,
        le=MAX_LENGTH,
        description="maximum number of items per row; the first ones are kept",
    )
    weights: str | None = Field(
        None,
        min_length=1,
        description="column of the weights of a bag's items, as many numbers >= 0 as items; null: "
        "all items weigh 1",
    )


class ListColumn(ListOptions):
    """A column of lists of values, e.g. the tags of a video: a bag, or a sequence of items."""

    table: str = Field(description="table of the values")
    pooling: Pooling | None = Field(
        None,
        description="sum, mean: a bag, one token for all items; null: a sequence, one token per "
        "item",
    )

    @model_validator(mode="after")
    def _check(self) -> "ListColumn":
        if self.weights is not None and self.pooling is None:
            raise ValueError("weights has no effect if pooling is null; set pooling: sum or mean")
        return self


class VectorColumn(Section):
    """A column of vectors of one size, e.g. embeddings of images by another model."""

    dim: int = Field(ge=1, le=MAX_VECTOR, description="numbers per row; a null row has no vector")
    separator: str = Field(
        " ", min_length=1, description="separator between the numbers of vectors that are text"
    )


class DenseColumn(Section):
    """A dense feature; buckets, mean and deviation are fitted on the rows before valid only."""

    buckets: Literal["quantile", "log"] | None = Field(
        "quantile",
        description="quantile: equal numbers of rows; log: equal widths on a log scale; null: "
        "standardised, no buckets",
    )
    num_buckets: int = Field(32, ge=2, le=MAX_BUCKETS, description="maximum number of buckets")

    @model_validator(mode="after")
    def _check(self) -> "DenseColumn":
        if self.buckets is None and self.num_buckets != 32:
            raise ValueError("num_buckets has no effect if buckets is null; remove it")
        return self


class Behaviour(Section):
    """One kind of event; the history of a row contains the last such events of its user."""

    where: str | None = Field(
        None, description="column that is 1 for events, otherwise 0; null: every row is an event"
    )
    ids: tuple[str, ...] = Field(min_length=1, description="id columns of an item")
    actions: tuple[str, ...] = Field(
        (),
        max_length=12,
        description="columns of 0 and 1 that are combined into one more id of an item",
    )
    length: int = Field(
        50,
        ge=1,
        le=MAX_LENGTH,
        description="maximum number of items per row; the newest ones are kept",
    )
    time_gaps: bool = Field(True, description="add the seconds between the item and the row")


class CsvFormat(Section):
    """Format of CSV files."""

    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="separator between fields; null: tab in .tsv, otherwise comma",
    )
    nulls: tuple[str, ...] = Field(
        ("", "NaN", "nan", "NULL", "null", "None"), description="texts that mean null"
    )


class Join(Section):
    """A Parquet or CSV side table with one row per key; each task loads all of it."""

    path: str = Field(min_length=1, description="path or URL of the side table")
    key: str = Field(description="key column, of the same name in the logs and in the side table")
    columns: tuple[str, ...] = Field(
        min_length=1, description="columns of the side table that are added to the rows"
    )
    csv: CsvFormat = CsvFormat()


class CounterFeature(Section):
    """Number of earlier events with the same values in some columns, as of the time of each row."""

    by: tuple[str, ...] = Field(min_length=1, description="id columns whose values must be equal")
    where: str | None = Field(
        None, description="column that is 1 for events, otherwise 0; null: every row is an event"
    )


class Negatives(Section):
    """The share of the negative rows of train that is kept; valid and test keep all rows."""

    task: str = Field(
        min_length=1,
        description="binary task; its negative rows are those with a label of 0 for it, and for "
        "all other tasks 0 or unknown",
    )
    share: float = Field(gt=0, lt=1, description="share of them that is kept")


class Check(Section):
    """Conditions on the values of a column; rows that violate them are quarantined."""

    type: Literal["int", "text"] | None = Field(
        None,
        description="type of an id column; null: text if any file has text or its CSV values "
        "aren't integers, otherwise int",
    )
    min: int | float | None = Field(None, description="minimum value")
    max: int | float | None = Field(None, description="maximum value")
    allowed: tuple[int | float | str, ...] | None = Field(
        None, min_length=1, description="allowed values; null: all"
    )
    nulls: Literal["keep", "quarantine"] | None = Field(
        None,
        description="keep or quarantine rows whose value is null; null: keep for ids and dense "
        "features, quarantine for other columns",
    )

    @model_validator(mode="after")
    def _check(self) -> "Check":
        bounds = {"min": (self.min,), "max": (self.max,), "allowed": self.allowed or ()}
        for key, values in bounds.items():
            for value in values:
                if isinstance(value, int) and not -(2**63) <= value < 2**64:
                    raise ValueError(f"{key}: got {value}, expected a number of 64 bits")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is greater than max {self.max}; no value is allowed")
        return self
