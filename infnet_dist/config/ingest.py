"""The `ingest` section of a run file: one class per kind of source."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from infnet_dist.config.logs import (
    MAX_BUCKETS,
    MAX_GROUP_ROWS,
    MAX_LENGTH,
    MAX_TABLE_ROWS,
    LogsIngest,
)
from infnet_dist.config.model import Section
from infnet_dist.errors import unknown_name

_MAX_ROWS = 10**10
TableRows = Annotated[int, Field(ge=1, le=MAX_TABLE_ROWS)]
SplitName = Literal["train", "valid", "test"]


class SyntheticIngest(Section):
    """Logs made up with a planted truth (`infnet_dist.ingest.synthetic`)."""

    source: Literal["synthetic"]
    num_rows: int = Field(200_000, ge=100, le=_MAX_ROWS, description="impressions over all splits")
    num_users: int = Field(2_000, ge=2, le=10**8, description="users")
    num_items: int = Field(2_000, ge=2, le=10**8, description="items")
    num_authors: int = Field(200, ge=1, le=10**8, description="authors")
    num_topics: int = Field(12, ge=2, le=10_000, description="latent topics of items and users")
    own_favourites: bool = Field(
        False, description="users have favourites of their own for each task: the tasks conflict"
    )
    history_length: int = Field(20, ge=1, le=MAX_LENGTH, description="items kept per behaviour")
    extra_fields: tuple[TableRows, ...] = Field(
        (), description="ids of each further field, a hash of the item or of the user"
    )
    valid_share: float = Field(0.1, gt=0, lt=0.5, description="last share of rows: valid")
    test_share: float = Field(0.1, ge=0, lt=0.5, description="share of rows after valid: test")
    rows_per_part: int = Field(1_000_000, ge=1, le=_MAX_ROWS, description="rows per Parquet file")
    row_group_rows: int = Field(
        16_384, ge=1, le=MAX_GROUP_ROWS, description="rows per Parquet row group"
    )
    seed: int = Field(0, ge=0, description="seed of the world and its logs")


class KuaiRandIngest(Section):
    """KuaiRand logs, as published (CSV) or as our Parquet slice; the layout is recognised."""

    source: Literal["kuairand"]
    path: Path = Field(description="folder of the raw files")
    valid_from: str = Field("2022-05-04", description="first day of valid, Beijing time")
    test_from: str | None = Field(None, description="first day of test, Beijing time; null: none")
    min_base_rate: float = Field(
        0.01, ge=0, le=1, description="signals rarer than this in train make no task"
    )
    history_length: int = Field(50, ge=1, le=MAX_LENGTH, description="items kept per behaviour")
    refresh: Literal["daily", "live"] = Field(
        "daily",
        description="histories and counters of all splits know events up to the row's last "
        "midnight in Beijing, or up to the row",
    )
    watch_time: bool = Field(False, description="make the watch time a task as well")
    past_exposures: int = Field(
        0,
        ge=0,
        le=MAX_LENGTH,
        description="newest exposures of each user's history to train on as well (slice)",
    )
    rows_per_part: int = Field(1_000_000, ge=1, le=_MAX_ROWS, description="rows per Parquet file")
    row_group_rows: int = Field(
        16_384, ge=1, le=MAX_GROUP_ROWS, description="rows per Parquet row group"
    )


class TabularIngest(Section):
    """Parquet tables with one row per example, already split; no histories."""

    source: Literal["tabular"]
    path: Path = Field(description="folder of the files")
    splits: dict[SplitName, str] = Field(
        {"train": "train.parquet", "valid": "valid.parquet"},
        description="by split, a Parquet file of that folder or a folder of them",
    )
    tasks: dict[str, str] = Field(min_length=1, description="by task, the column of its 0 and 1")
    categorical: tuple[str, ...] = Field((), description="columns of numbers that are codes")
    exclude: tuple[str, ...] = Field((), description="columns that are no features")
    group_column: str | None = Field(
        None, min_length=1, description="integers that gAUC groups by, e.g. the user; null: no gAUC"
    )
    num_buckets: int = Field(
        32, ge=2, le=MAX_BUCKETS, description="most buckets of a number, cut at its quantiles"
    )
    rows_per_part: int = Field(1_000_000, ge=1, le=_MAX_ROWS, description="rows per Parquet file")
    row_group_rows: int = Field(
        16_384, ge=1, le=MAX_GROUP_ROWS, description="rows per Parquet row group"
    )

    @model_validator(mode="after")
    def _check(self) -> "TabularIngest":
        if missing := {"train", "valid"} - self.splits.keys():
            raise ValueError(f"splits: {' and '.join(sorted(missing))} missing; name its file")
        roles = Counter([*self.tasks.values(), *self.categorical, *self.exclude])
        roles.update([self.group_column] if self.group_column else [])
        for column, times in roles.items():
            if times > 1:
                raise ValueError(f"column {column!r} is named {times} times; keep one role for it")
        return self


class PetastormSequence(Section):
    """One behaviour: parallel 1-D arrays of a row, newest item first."""

    attributes: dict[str, str] = Field(min_length=1, description="by column of ids, their table")
    max_length: int = Field(50, ge=1, le=MAX_LENGTH, description="items used per row")
    time_gap_column: str | None = Field(
        None, description="column of the items' ages in whole seconds; null: none"
    )


class PetastormIngest(Section):
    """Data sets written with Petastorm, described where they lie: no row is copied."""

    source: Literal["petastorm"]
    path: Path = Field(description="folder of the data sets")
    splits: dict[SplitName, str] = Field(
        {"train": "train", "valid": "valid"}, description="by split, a data set of that folder"
    )
    tables: dict[str, TableRows] = Field(
        default_factory=dict, description="rows of a table; of others: largest id seen + 1"
    )
    raw_tables: tuple[str, ...] = Field(
        (),
        description="tables whose ids are any integers, hashed by the reader to the table's rows",
    )
    categorical: dict[str, str] = Field(min_length=1, description="by column of ids, its table")
    sequences: dict[str, PetastormSequence] = Field(
        default_factory=dict, description="by behaviour, its columns"
    )
    dense: tuple[str, ...] = Field((), description="columns of numbers")
    num_buckets: int = Field(
        32, ge=2, le=MAX_BUCKETS, description="most buckets of a number, cut at its quantiles"
    )
    tasks: dict[str, str] = Field(min_length=1, description="by task, the column of its 0 and 1")
    watch_times: dict[str, str] = Field(
        default_factory=dict, description="by task, a column of whole milliseconds"
    )
    group_column: str = Field(min_length=1, description="integers that gAUC groups by")
    time_column: str | None = Field(
        None, min_length=1, description="epoch milliseconds, or timestamps; null: unknown"
    )

    @model_validator(mode="after")
    def _check(self) -> "PetastormIngest":
        if missing := {"train", "valid"} - self.splits.keys():
            raise ValueError(f"splits: {' and '.join(sorted(missing))} missing; name its folder")
        sequences = self.sequences.values()
        read = {*self.categorical.values()}.union(*(s.attributes.values() for s in sequences))
        for table in self.tables.keys() - read:
            raise ValueError(f"tables: {unknown_name('table', table, read)}")
        for table in self.raw_tables:
            if table not in self.tables:
                raise ValueError(f"raw_tables: {table!r} needs a number of rows in tables")
        roles = Counter([*self.categorical, *self.dense])
        roles.update([*self.tasks.values(), *self.watch_times.values()])
        for sequence in sequences:
            roles.update([*sequence.attributes])
            roles.update([sequence.time_gap_column] if sequence.time_gap_column else [])
        for column, times in roles.items():
            if times > 1:
                raise ValueError(f"column {column!r} is named {times} times; keep one role for it")
        group = self.group_column
        if group in roles and group not in self.categorical:
            raise ValueError(f"group_column: {group!r} has another role, and isn't an id")
        return self


IngestConfig = Annotated[
    SyntheticIngest | KuaiRandIngest | TabularIngest | LogsIngest | PetastormIngest,
    Field(discriminator="source"),
]
