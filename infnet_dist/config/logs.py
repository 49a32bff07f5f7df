"""The `ingest` section of logs: columns and their roles, checks, tables, histories, splits."""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from infnet_dist.config.model import Section
from infnet_dist.errors import unknown_name


def day_text(day: object) -> object:
    """A day or time as text; times in one spelling, e.g. 2026-05-04T06:00:00."""
    if isinstance(day, date):
        return day.isoformat()
    if isinstance(day, str) and len(day) > len("2026-05-04"):
        try:
            return datetime.fromisoformat(day).isoformat()
        except ValueError:
            return day  # refused with the section
    return day


Day = Annotated[str, BeforeValidator(day_text)]
MAX_TABLE_ROWS = 10**14
MAX_GROUP_ROWS = 100_000_000  # memory for a row group is taken before its rows are there
MAX_LENGTH = 10_000  # items of a history or list of one row
MAX_BUCKETS = 100_000
_MAX_HOURS = 1_000_000.0
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # of a feature; in keys and in modules


class TimeColumn(Section):
    """When an impression happened."""

    column: str = Field("time_ms", min_length=1, description="column of the time")
    unit: Literal["s", "ms", "us", "ns"] = Field(
        "ms", description="unit of integers, since 1970 in UTC; timestamps know theirs"
    )
    monotone: bool = Field(
        False, description="quarantine rows that are earlier than one before them in their file"
    )
    max_ahead_h: float | None = Field(
        24.0,
        ge=0,
        le=_MAX_HOURS,
        description="quarantine rows so much later than their file; null: don't",
    )


class IdTable(Section):
    """How the values of columns become rows of an embedding table."""

    encoding: Literal["dense", "hash", "raw"] = Field(
        "dense",
        description="dense: a vocabulary; hash: rows by hash; raw: for the reader to hash",
    )
    num_embeddings: int | None = Field(
        None,
        ge=2,
        le=MAX_TABLE_ROWS,
        description="rows; null (dense alone): as many as there are values, and one",
    )
    min_count: int = Field(1, ge=1, description="dense: rarer values, before valid, get id 0")
    num_hashes: int = Field(
        1, ge=1, le=4, description="hash: rows that a value is looked up in, each a feature"
    )

    @model_validator(mode="after")
    def _check(self) -> "IdTable":
        if self.encoding != "dense" and self.num_embeddings is None:
            raise ValueError(f"encoding {self.encoding} needs num_embeddings, the table's rows")
        if self.encoding != "dense" and self.min_count > 1:
            raise ValueError(f"min_count is of encoding dense, this table's is {self.encoding}")
        if self.encoding != "hash" and self.num_hashes > 1:
            raise ValueError(f"num_hashes is of encoding hash, this table's is {self.encoding}")
        return self


class ListColumn(Section):
    """A column of lists of values, e.g. a video's tags."""

    table: str = Field(description="the table that its values are rows of")
    separator: str = Field("|", min_length=1, description="between the items where lists are text")
    max_length: int = Field(20, ge=1, le=MAX_LENGTH, description="items kept: the first ones")


class NumberColumn(Section):
    """A number; buckets, mean and deviation come from the rows before valid alone."""

    buckets: Literal["quantile", "log"] | None = Field(
        "quantile",
        description="equally many rows each, or equally wide on a log scale; null: standardised",
    )
    num_buckets: int = Field(32, ge=2, le=MAX_BUCKETS, description="most buckets")

    @model_validator(mode="after")
    def _check(self) -> "NumberColumn":
        if self.buckets is None and self.num_buckets != 32:
            raise ValueError("num_buckets has no effect where buckets is null; leave it out")
        return self


class Behaviour(Section):
    """One kind of event; a row's history holds its user's last ones before the row."""

    where: str | None = Field(None, description="column of 0 and 1: the events; null: every row")
    ids: tuple[str, ...] = Field(min_length=1, description="id columns that describe an item")
    actions: tuple[str, ...] = Field(
        (), max_length=12, description="columns of 0 and 1; together one more id of an item"
    )
    length: int = Field(50, ge=1, le=MAX_LENGTH, description="items kept: the newest ones")
    time_gaps: bool = Field(True, description="keep the seconds between an item and the row")


class CsvFormat(Section):
    """How CSV files are written."""

    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="between fields; null: tab in .tsv, else comma",
    )
    nulls: tuple[str, ...] = Field(
        ("", "NaN", "nan", "NULL", "null", "None"), description="fields that are null"
    )


class Join(Section):
    """A Parquet or CSV file with one row per key, small enough for the memory of each task."""

    path: str = Field(min_length=1, description="file or URL of the side table")
    key: str = Field(description="column of the keys, in the logs and in the side table")
    columns: tuple[str, ...] = Field(min_length=1, description="its columns that rows get")
    csv: CsvFormat = CsvFormat()


class CounterFeature(Section):
    """Events so far, as of each row's time, with the same values in some columns."""

    by: tuple[str, ...] = Field(min_length=1, description="id columns that must be the same")
    where: str | None = Field(None, description="column of 0 and 1: the events; null: every row")


class Check(Section):
    """What the values of a column must be; rows that break it are quarantined."""

    type: Literal["int", "text"] | None = Field(
        None, description="of ids; null: text if a file says so, or if its CSV values do, else int"
    )
    min: int | float | None = Field(None, description="smallest number")
    max: int | float | None = Field(None, description="largest number")
    allowed: tuple[int | float | str, ...] | None = Field(
        None, min_length=1, description="the only values"
    )
    nulls: Literal["keep", "quarantine"] | None = Field(
        None, description="null: keep them in ids and numbers, quarantine them elsewhere"
    )

    @model_validator(mode="after")
    def _check(self) -> "Check":
        bounds = {"min": (self.min,), "max": (self.max,), "allowed": self.allowed or ()}
        for key, values in bounds.items():
            for value in values:
                if isinstance(value, int) and not -(2**63) <= value < 2**64:
                    raise ValueError(f"{key}: {value} doesn't fit 64 bits, so no id can be it")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}: no value would be left")
        return self


class LogsIngest(Section):
    """Logs with a row per impression, in many files: cleaned, encoded, sorted, joined, shuffled."""

    source: Literal["logs"]
    path: str = Field(
        min_length=1, description="folder, file, pattern with * or URL (s3://...) of the logs"
    )
    joins: dict[str, Join] = Field(default_factory=dict, description="side tables, by name")
    format: Literal["parquet", "csv", "petastorm"] = Field("parquet", description="of the files")
    csv: CsvFormat = CsvFormat()
    user: str = Field("user_id", description="column of the user; histories and gAUC go by it")
    time: TimeColumn = TimeColumn()
    tables: dict[str, IdTable] = Field(default_factory=dict, description="tables that need more")
    ids: dict[str, str] = Field(min_length=1, description="by column, the table of its values")
    lists: dict[str, ListColumn] = Field(default_factory=dict, description="by column")
    numbers: dict[str, NumberColumn] = Field(default_factory=dict, description="by column")
    behaviours: dict[str, Behaviour] = Field(default_factory=dict, description="by name")
    counters: dict[str, CounterFeature] = Field(default_factory=dict, description="by name")
    tasks: dict[str, str] = Field(
        default_factory=dict, description="by task, its column of 0 and 1"
    )
    watch_time: str | None = Field(None, description="column of ms watched, as a task; null: none")
    checks: dict[str, Check] = Field(default_factory=dict, description="by column")
    unique: tuple[str, ...] = Field(
        (), description="columns that tell the rows of one ingest apart, the user's among them"
    )
    max_bad_share: float = Field(0.01, ge=0, le=1, description="share of bad rows that stops it")
    skip_bad_files: bool = Field(False, description="leave out unreadable files, and count them")
    train_from: Day | None = Field(
        None, description="first day of train; rows before it serve histories; null: all"
    )
    valid_from: Day = Field(description="first day of valid, e.g. 2026-05-04, or a time of it")
    test_from: Day | None = Field(None, description="first day of test; null: none")
    gap_h: float = Field(
        0.0, ge=0, le=_MAX_HOURS, description="hours left out before valid and before test"
    )
    refresh: Literal["daily", "live"] = Field(
        "live", description="histories and counters know events up to midnight, or up to the row"
    )
    utc_offset_h: float = Field(0.0, ge=-14, le=14, description="hours that local time is ahead")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the shuffle")
    row_group_rows: int = Field(
        16_384, ge=1, le=MAX_GROUP_ROWS, description="rows per Parquet row group"
    )
    memory_mib: int = Field(512, ge=16, le=2**24, description="MiB that a task may hold, about")
    extendable: bool = Field(True, description="keep what adding later logs needs")

    @model_validator(mode="after")
    def _check(self) -> "LogsIngest":
        if not self.tasks and self.watch_time is None:
            raise ValueError("tasks: none; name at least one, or watch_time")
        self._check_names()
        self._check_columns()
        starts = self.split_starts_ms
        if sorted(starts.values()) != list(starts.values()):
            raise ValueError("train_from, valid_from and test_from must follow one another")
        if self.refresh == "daily" and not (self.behaviours or self.counters):
            raise ValueError("refresh: daily has no effect without behaviours and counters")
        return self

    def _check_names(self) -> None:
        for name, count in Counter(self._feature_names()).items():
            if count > 1:
                raise ValueError(f"{name!r} is the name of {count} features; rename one")
        for name, count in Counter(self._hashed_names()).items():
            if count > 1:
                raise ValueError(
                    f"{name!r} is the name of {count} features, as num_hashes of a table adds _1, "
                    "_2, ... to its columns; rename one"
                )
        for name in [*self._feature_names(), *self.tasks, *self.table_names]:
            if not _PLAIN_NAME.fullmatch(name):
                raise ValueError(f"{name!r} can't be a name: use letters, digits and _")
        for place, column in self._ids_named():
            if column not in self.ids:
                raise ValueError(f"{place}: {unknown_name('id column', column, self.ids)}")
        for table in self.tables:
            if table not in self.table_names:
                raise ValueError(f"tables: {unknown_name('table', table, self.table_names)}")
        for column in self.checks:
            if column not in self.columns:
                raise ValueError(f"checks: {unknown_name('column', column, self.columns)}")

    def _check_columns(self) -> None:
        if self.unique and self.user not in self.unique:
            raise ValueError(f"unique: {self.user!r}, the user, must be among the columns")
        inputs = [*self.ids, *self.lists, *self.numbers]
        labels = [*self.tasks.values(), *([self.watch_time] if self.watch_time else [])]
        for column in labels:
            if column in inputs:
                raise ValueError(f"column {column!r} is a label, it can't be a feature")
        for column in self.lists:
            if column in (*self.flags, *self.unique, self.user):
                raise ValueError(f"lists: column {column!r} has another role that can't be a list")
        for column in self.columns:
            if column.startswith("_"):
                raise ValueError(f"column {column!r}: names that begin with _ are ours; rename it")
        if self.user in self.checks and self.checks[self.user].nulls == "keep":
            raise ValueError(f"checks.{self.user}: a row without a user can't be kept")
        self._check_joins()

    def _check_joins(self) -> None:
        used = {*self.columns, *(join.key for join in self.joins.values())}
        for name, join in self.joins.items():
            for column in join.columns:
                if column not in used:
                    raise ValueError(f"joins.{name}: column {column!r} is joined, but never used")
        for column, count in Counter(self.joined).items():
            if count > 1 or column in (self.user, self.time.column):
                raise ValueError(f"joins: column {column!r} comes from two places; leave one out")
        missing = set(self.joined)
        for name, join in self.joins.items():
            if join.key in missing:
                raise ValueError(f"joins.{name}: key {join.key!r} is joined later; move it up")
            missing -= set(join.columns)

    def _feature_names(self) -> list[str]:
        return [*self.ids, *self.lists, *self.numbers, *self.behaviours, *self.counters]

    def _hashed_names(self) -> list[str]:
        """Names of all features, with those of columns that are hashed more than once."""
        tables = self.ids | {name: column.table for name, column in self.lists.items()}
        found = []
        for name in self._feature_names():
            number = self.table(tables[name]).num_hashes if name in tables else 1
            found += [name] if number == 1 else [f"{name}_{i + 1}" for i in range(number)]
        return found

    def _ids_named(self) -> Iterator[tuple[str, str]]:
        for name, behaviour in self.behaviours.items():
            yield from ((f"behaviours.{name}.ids", column) for column in behaviour.ids)
        for name, counter in self.counters.items():
            yield from ((f"counters.{name}.by", column) for column in counter.by)

    @property
    def table_names(self) -> tuple[str, ...]:
        """Tables that columns name, in order."""
        named = [*self.ids.values(), *(column.table for column in self.lists.values())]
        return tuple(dict.fromkeys(named))

    @property
    def flags(self) -> tuple[str, ...]:
        """Columns of 0 and 1: labels, what tells events, actions."""
        flags = [*self.tasks.values()]
        for behaviour in self.behaviours.values():
            flags += [behaviour.where] if behaviour.where else []
            flags += behaviour.actions
        flags += [counter.where for counter in self.counters.values() if counter.where]
        return tuple(dict.fromkeys(flags))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the logs that is read."""
        named = [self.user, self.time.column, *self.ids, *self.lists, *self.numbers, *self.flags]
        watch_time = [self.watch_time] if self.watch_time is not None else []
        return tuple(dict.fromkeys([*named, *watch_time, *self.unique]))

    @property
    def joined(self) -> tuple[str, ...]:
        """Columns that side tables add."""
        return tuple(column for join in self.joins.values() for column in join.columns)

    @property
    def in_files(self) -> tuple[str, ...]:
        """Columns that the files of the logs must have."""
        keys = [join.key for join in self.joins.values() if join.key not in self.joined]
        named = [column for column in self.columns if column not in self.joined]
        return tuple(dict.fromkeys([*named, *keys]))

    def table(self, name: str) -> IdTable:
        """How the values of a table are encoded."""
        return self.tables.get(name, IdTable())

    @property
    def split_starts_ms(self) -> dict[str, int]:
        """First millisecond of each split that has one, epoch ms in UTC, in order.

        Raises:
            ValueError: not a day or time.
        """
        days = {"train": self.train_from, "valid": self.valid_from, "test": self.test_from}
        return {k: self._start_ms(f"{k}_from", day) for k, day in days.items() if day is not None}

    def _start_ms(self, key: str, day: str) -> int:
        try:
            start = datetime.fromisoformat(day)
        except ValueError:
            raise ValueError(f"{key}: got {day!r}, expected a day such as 2026-05-04") from None
        if start.tzinfo is None:
            start = start.replace(tzinfo=timezone(timedelta(hours=self.utc_offset_h)))
        return round(start.timestamp() * 1000)
