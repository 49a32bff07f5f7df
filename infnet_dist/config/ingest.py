"""The `ingest` section of a run file: one class per source."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from infnet_dist.config.limits import (
    MAX_BUCKETS,
    MAX_GROUP_ROWS,
    MAX_LENGTH,
    MAX_TABLE_ROWS,
    MAX_VECTOR,
)
from infnet_dist.config.log_columns import ListOptions, Pooling, VectorColumn
from infnet_dist.config.logs import LogsIngest
from infnet_dist.config.model import Section
from infnet_dist.errors import unknown_name

_MAX_ROWS = 10**10
TableRows = Annotated[int, Field(ge=1, le=MAX_TABLE_ROWS)]
SplitName = Literal["train", "valid", "test"]


class SyntheticIngest(Section):
    """Synthetic logs with known click probabilities (`infnet_dist.ingest.synthetic`)."""

    source: Literal["synthetic"]
    num_rows: int = Field(
        200_000, ge=100, le=_MAX_ROWS, description="number of impressions in all splits"
    )
    num_users: int = Field(2_000, ge=2, le=10**8, description="number of users")
    num_items: int = Field(2_000, ge=2, le=10**8, description="number of items")
    num_authors: int = Field(200, ge=1, le=10**8, description="number of authors")
    num_topics: int = Field(
        12, ge=2, le=10_000, description="number of latent topics of items and users"
    )
    own_favourites: bool = Field(
        False, description="users have different favourite topics for each task, so tasks conflict"
    )
    history_length: int = Field(
        20, ge=1, le=MAX_LENGTH, description="maximum number of history items per behaviour"
    )
    extra_fields: tuple[TableRows, ...] = Field(
        (), description="numbers of ids of additional features; each hashes the item or the user"
    )
    num_tags: int = Field(
        0,
        ge=0,
        le=10**8,
        description="number of tags, of which items have a bag with an effect on the labels; 0: "
        "no tags",
    )
    num_interests: int = Field(
        0,
        ge=0,
        le=10**8,
        description="number of interests, of which users have a weighted bag with an effect; 0: "
        "no interests",
    )
    content_dim: int = Field(
        0,
        ge=0,
        le=MAX_VECTOR,
        description="size of a vector that most items have, with an effect; 0: no vectors",
    )
    num_cities: int = Field(
        0,
        ge=0,
        le=3_000,
        description="number of cities, of which a row has one; each combination of city and "
        "device has an effect; 0: no cities and devices",
    )
    num_devices: int = Field(
        0, ge=0, le=3_000, description="number of devices, of which a row has one; see num_cities"
    )
    sample_weights: bool = Field(False, description="rows have weights, from 0 to 2")
    num_days: int = Field(14, ge=1, le=3_650, description="number of days of the logs")
    drift: float = Field(
        0.0,
        ge=0,
        le=10,
        description="standard deviation of the daily steps (log odds) by which the quality of each "
        "item, and the taste of each age group for each topic, drift; 0: no drift",
    )
    items_born_daily: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of all items that first appear on each day after the first; 0: all "
        "exist from the start",
    )
    valid_share: float = Field(
        0.1, gt=0, lt=0.5, description="share of all rows in valid, before those of test"
    )
    test_share: float = Field(
        0.1, ge=0, lt=0.5, description="share of all rows in test, the last ones"
    )
    rows_per_part: int = Field(
        1_000_000, ge=1, le=_MAX_ROWS, description="number of rows per Parquet file"
    )
    row_group_rows: int = Field(
        16_384, ge=1, le=MAX_GROUP_ROWS, description="number of rows per Parquet row group"
    )
    seed: int = Field(0, ge=0, description="random seed of users, items and logs")

    @model_validator(mode="after")
    def _check(self) -> "SyntheticIngest":
        if bool(self.num_cities) != bool(self.num_devices):
            raise ValueError("num_cities and num_devices: one is 0; set both, or neither")
        born = self.items_born_daily * (self.num_days - 1)
        if born >= 1:
            raise ValueError(
                f"items_born_daily: {self.items_born_daily:g} on each of {self.num_days - 1} days "
                "leaves no item for the first day; lower it, or num_days"
            )
        return self


class KuaiRandIngest(Section):
    """KuaiRand logs as published (CSV) or as a Parquet slice; the layout is detected."""

    source: Literal["kuairand"]
    path: Path = Field(description="folder of the raw files")
    valid_from: str = Field("2022-05-04", description="first day of valid, in Beijing time")
    test_from: str | None = Field(
        None, description="first day of test, in Beijing time; null: no test split"
    )
    min_base_rate: float = Field(
        0.01,
        ge=0,
        le=1,
        description="minimum share of positives in train for a signal to become a task",
    )
    history_length: int = Field(
        50, ge=1, le=MAX_LENGTH, description="maximum number of history items per behaviour"
    )
    refresh: Literal["daily", "live"] = Field(
        "daily",
        description="histories and counters contain events before the last midnight in Beijing "
        "(daily), or before the row itself (live)",
    )
    watch_time: bool = Field(False, description="add the watch time as a task")
    past_exposures: int = Field(
        0,
        ge=0,
        le=MAX_LENGTH,
        description="maximum number of past exposures per user that become training rows, newest "
        "first (slice only)",
    )
    rows_per_part: int = Field(
        1_000_000, ge=1, le=_MAX_ROWS, description="number of rows per Parquet file"
    )
    row_group_rows: int = Field(
        16_384, ge=1, le=MAX_GROUP_ROWS, description="number of rows per Parquet row group"
    )


class BagColumn(ListOptions):
    """A column of lists of values: a bag, one token for all items."""

    pooling: Pooling = Field("mean", description="sum or mean of the rows of the items")


class TabularIngest(Section):
    """Parquet tables with one row per example, already split, without histories."""

    source: Literal["tabular"]
    path: Path = Field(description="folder of the files")
    splits: dict[SplitName, str] = Field(
        {"train": "train.parquet", "valid": "valid.parquet"},
        description="by split, a Parquet file or a folder of Parquet files, relative to path",
    )
    tasks: dict[str, str] = Field(
        min_length=1, description="by task, the column of its labels (0 or 1)"
    )
    categorical: tuple[str, ...] = Field(
        (), description="numeric columns whose values are categories"
    )
    bags: dict[str, BagColumn] = Field(
        default_factory=dict, description="lists of values, by column"
    )
    vectors: dict[str, VectorColumn] = Field(
        default_factory=dict, description="vectors of numbers, by column"
    )
    sample_weight: str | None = Field(
        None,
        min_length=1,
        description="column of the weights of the rows in losses and metrics, numbers >= 0; null: "
        "all rows weigh 1",
    )
    exclude: tuple[str, ...] = Field((), description="columns that are left out")
    group_column: str | None = Field(
        None,
        min_length=1,
        description="integer column that gAUC groups by, e.g. the user; null: no gAUC",
    )
    num_buckets: int = Field(
        32, ge=2, le=MAX_BUCKETS, description="maximum number of quantile buckets per dense feature"
    )
    rows_per_part: int = Field(
        1_000_000, ge=1, le=_MAX_ROWS, description="number of rows per Parquet file"
    )
    row_group_rows: int = Field(
        16_384, ge=1, le=MAX_GROUP_ROWS, description="number of rows per Parquet row group"
    )

    @model_validator(mode="after")
    def _check(self) -> "TabularIngest":
        if missing := {"train", "valid"} - self.splits.keys():
            raise ValueError(f"splits: {' and '.join(sorted(missing))} missing; add it")
        roles = Counter([*self.tasks.values(), *self.categorical, *self.exclude])
        roles.update([self.group_column] if self.group_column else [])
        roles.update([self.sample_weight] if self.sample_weight else [])
        roles.update([*self.bags, *self.vectors, *set(self.weight_columns.values())])
        for column, times in roles.items():
            if times > 1:
                raise ValueError(f"column {column!r} has {times} roles; keep one")
        return self

    @property
    def weight_columns(self) -> dict[str, str]:
        """By column of a weighted bag, the column of its weights."""
        return {name: bag.weights for name, bag in self.bags.items() if bag.weights is not None}

    @property
    def not_features(self) -> frozenset[str]:
        """Columns that aren't read as ids or numbers: labels, groups, weights and vectors."""
        others = [name for name in (self.group_column, self.sample_weight) if name is not None]
        weights = self.weight_columns.values()
        return frozenset([*self.tasks.values(), *others, *weights, *self.vectors])


class PetastormSequence(Section):
    """One behaviour: parallel 1-D arrays in each row, newest item first."""

    attributes: dict[str, str] = Field(
        min_length=1, description="by id column, the table of its ids"
    )
    max_length: int = Field(
        50, ge=1, le=MAX_LENGTH, description="maximum number of items per row, newest first"
    )
    time_gap_column: str | None = Field(
        None, description="column of the ages of the items in whole seconds; null: none"
    )


class PetastormIngest(Section):
    """Data sets written with Petastorm, used in place: no row is copied."""

    source: Literal["petastorm"]
    path: Path = Field(description="folder of the data sets")
    splits: dict[SplitName, str] = Field(
        {"train": "train", "valid": "valid"},
        description="by split, the folder of a data set, relative to path",
    )
    tables: dict[str, TableRows] = Field(
        default_factory=dict,
        description="number of rows by table; default: the largest id in the data, plus 1",
    )
    raw_tables: tuple[str, ...] = Field(
        (),
        description="tables whose ids are arbitrary integers, which the reader hashes to rows",
    )
    categorical: dict[str, str] = Field(
        min_length=1, description="by id column, the table of its ids"
    )
    sequences: dict[str, PetastormSequence] = Field(
        default_factory=dict, description="columns of histories, by behaviour"
    )
    dense: tuple[str, ...] = Field((), description="columns of dense features")
    num_buckets: int = Field(
        32, ge=2, le=MAX_BUCKETS, description="maximum number of quantile buckets per dense feature"
    )
    tasks: dict[str, str] = Field(
        min_length=1, description="by task, the column of its labels (0 or 1)"
    )
    watch_times: dict[str, str] = Field(
        default_factory=dict, description="by watch-time task, its column of whole milliseconds"
    )
    group_column: str = Field(min_length=1, description="integer column that gAUC groups by")
    time_column: str | None = Field(
        None,
        min_length=1,
        description="column of epoch milliseconds or timestamps; null: times are unknown",
    )

    @model_validator(mode="after")
    def _check(self) -> "PetastormIngest":
        if missing := {"train", "valid"} - self.splits.keys():
            raise ValueError(f"splits: {' and '.join(sorted(missing))} missing; add it")
        sequences = self.sequences.values()
        read = {*self.categorical.values()}.union(*(s.attributes.values() for s in sequences))
        for table in self.tables.keys() - read:
            raise ValueError(f"tables: {unknown_name('table', table, read)}")
        for table in self.raw_tables:
            if table not in self.tables:
                raise ValueError(f"raw_tables: {table!r} requires a number of rows in tables")
        roles = Counter([*self.categorical, *self.dense])
        roles.update([*self.tasks.values(), *self.watch_times.values()])
        for sequence in sequences:
            roles.update([*sequence.attributes])
            roles.update([sequence.time_gap_column] if sequence.time_gap_column else [])
        for column, times in roles.items():
            if times > 1:
                raise ValueError(f"column {column!r} has {times} roles; keep one")
        group = self.group_column
        if group in roles and group not in self.categorical:
            raise ValueError(
                f"group_column: {group!r} has another role than id; choose an id column or an "
                "unused one"
            )
        return self


IngestConfig = Annotated[
    SyntheticIngest | KuaiRandIngest | TabularIngest | LogsIngest | PetastormIngest,
    Field(discriminator="source"),
]
