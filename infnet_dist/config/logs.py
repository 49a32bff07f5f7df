"""The `ingest` section for logs: columns and their roles, checks, tables, histories, splits."""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from infnet_dist.config.limits import MAX_GROUP_ROWS, MAX_HOURS
from infnet_dist.config.log_columns import (
    Behaviour,
    Check,
    CounterFeature,
    CsvFormat,
    DenseColumn,
    IdTable,
    Join,
    ListColumn,
    Negatives,
    TimeColumn,
    VectorColumn,
)
from infnet_dist.config.model import Section
from infnet_dist.errors import unknown_name


def day_text(day: object) -> object:
    """Convert a day or time to text; times to one spelling, e.g. 2026-05-04T06:00:00."""
    if isinstance(day, date):
        return day.isoformat()
    if isinstance(day, str) and len(day) > len("2026-05-04"):
        try:
            return datetime.fromisoformat(day).isoformat()
        except ValueError:
            return day  # the validator of the section rejects it
    return day


Day = Annotated[str, BeforeValidator(day_text)]
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # of features: used as keys and module names


class LogsIngest(Section):
    """Logs in many files, one row per impression: cleaned, joined, sorted, encoded, shuffled."""

    source: Literal["logs"]
    path: str = Field(
        min_length=1, description="folder, file, pattern with *, or URL (s3://...) of the logs"
    )
    joins: dict[str, Join] = Field(default_factory=dict, description="side tables by name")
    format: Literal["parquet", "csv", "petastorm"] = Field(
        "parquet", description="format of the files"
    )
    csv: CsvFormat = CsvFormat()
    user: str = Field("user_id", description="user column, for histories and gAUC")
    time: TimeColumn = TimeColumn()
    tables: dict[str, IdTable] = Field(default_factory=dict, description="encodings by table name")
    ids: dict[str, str] = Field(min_length=1, description="by id column, the table of its values")
    lists: dict[str, ListColumn] = Field(
        default_factory=dict, description="lists of ids, by column"
    )
    vectors: dict[str, VectorColumn] = Field(
        default_factory=dict, description="vectors of numbers, by column"
    )
    dense: dict[str, DenseColumn] = Field(
        default_factory=dict, description="dense features, by column"
    )
    behaviours: dict[str, Behaviour] = Field(default_factory=dict, description="histories, by name")
    counters: dict[str, CounterFeature] = Field(
        default_factory=dict, description="event counters, by name"
    )
    tasks: dict[str, str] = Field(
        default_factory=dict, description="by task, the column of its labels (0 or 1)"
    )
    watch_time: str | None = Field(
        None, description="column of watched milliseconds, which adds a task; null: none"
    )
    sample_weight: str | None = Field(
        None,
        min_length=1,
        description="column of the weights of the rows in losses and metrics, numbers >= 0; null: "
        "all rows weigh 1",
    )
    checks: dict[str, Check] = Field(
        default_factory=dict, description="conditions on values, by column"
    )
    unique: tuple[str, ...] = Field(
        (),
        description="columns that identify a row within one ingest, the user column included; "
        "duplicates are quarantined",
    )
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="maximum share of bad rows; above it the ingest fails"
    )
    skip_bad_files: bool = Field(False, description="skip and report unreadable files")
    min_age_s: float = Field(
        0.0,
        ge=0,
        le=3600 * MAX_HOURS,
        description="seconds since the last change of a file before it is read, so that files that "
        "are still being written are left to the next ingest",
    )
    train_from: Day | None = Field(
        None,
        description="first day (or time) of train; earlier rows are used in histories only; null: "
        "no limit",
    )
    valid_from: Day | None = Field(
        None,
        description="first day (or time) of valid, e.g. 2026-05-04; null: all rows are train, and "
        "data.valid_from divides them when they are read",
    )
    test_from: Day | None = Field(
        None, description="first day (or time) of test; null: no test split"
    )
    negatives: Negatives | None = Field(
        None,
        description="sample the rows of train without any positive label; statistics, histories "
        "and counters use all rows; needs valid_from; null: all rows",
    )
    gap_h: float = Field(
        0.0, ge=0, le=MAX_HOURS, description="hours before valid and before test that are left out"
    )
    refresh: Literal["daily", "live"] = Field(
        "live",
        description="histories and counters contain events before the last midnight (daily), or "
        "before the row itself (live)",
    )
    utc_offset_h: float = Field(
        0.0, ge=-14, le=14, description="offset of local time from UTC, in hours"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="random seed of the shuffle")
    row_group_rows: int = Field(
        16_384, ge=1, le=MAX_GROUP_ROWS, description="number of rows per Parquet row group"
    )
    memory_mib: int = Field(
        512, ge=16, le=2**24, description="approximate memory of a task, in MiB"
    )
    extendable: bool = Field(True, description="keep the state that is needed to add later logs")

    @model_validator(mode="after")
    def _check(self) -> "LogsIngest":
        if not self.tasks and self.watch_time is None:
            raise ValueError("tasks: got none, expected at least one, or watch_time")
        self._check_names()
        self._check_columns()
        if self.test_from is not None and self.valid_from is None:
            raise ValueError("test_from needs valid_from; set both, or neither")
        self._check_negatives()
        starts = self.split_starts_ms
        if sorted(starts.values()) != list(starts.values()):
            raise ValueError("train_from, valid_from and test_from must be in ascending order")
        if self.refresh == "daily" and not (self.behaviours or self.counters):
            raise ValueError("refresh: daily has no effect without behaviours or counters")
        return self

    def _check_negatives(self) -> None:
        if self.negatives is None:
            return
        if self.negatives.task not in self.tasks:
            message = unknown_name("binary task", self.negatives.task, self.tasks)
            raise ValueError(f"negatives.task: {message}")
        if self.valid_from is None:
            raise ValueError(
                "negatives needs valid_from: rows that are divided later would be sampled in valid"
            )

    def _check_names(self) -> None:
        for name, count in Counter(self._feature_names()).items():
            if count > 1:
                raise ValueError(f"{count} features have the name {name!r}; rename one")
        for name, count in Counter(self._hashed_names()).items():
            if count > 1:
                raise ValueError(
                    f"{count} features have the name {name!r}, because num_hashes of a table adds "
                    "_1, _2, ... to its columns; rename one"
                )
        for name in [*self._feature_names(), *self.tasks, *self.table_names]:
            if not _PLAIN_NAME.fullmatch(name):
                raise ValueError(f"got the name {name!r}, expected letters, digits and _")
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
            raise ValueError(f"unique: the user column {self.user!r} is missing; add it")
        self._check_roles()
        inputs = [*self.ids, *self.lists, *self.dense]
        labels = [*self.tasks.values(), *([self.watch_time] if self.watch_time else [])]
        for column in labels:
            if column in inputs:
                raise ValueError(f"column {column!r} is both a label and a feature; keep one role")
        for column in self.lists:
            if column in (*self.flags, *self.unique, self.user):
                raise ValueError(
                    f"lists: column {column!r} also has a role that allows no lists; keep one role"
                )
        for column in self.columns:
            if column.startswith("_"):
                raise ValueError(
                    f"column {column!r}: names that begin with _ are reserved; rename it"
                )
        for needed in (self.user, self.sample_weight):
            if needed in self.checks and self.checks[needed].nulls == "keep":
                raise ValueError(
                    f"checks.{needed}.nulls: rows without a user or a weight can't be kept"
                )
        self._check_joins()

    def _check_roles(self) -> None:
        """Check that columns of vectors and of weights have no other role."""
        taken = {self.user, self.time.column, self.watch_time, *self.ids, *self.lists, *self.dense}
        taken |= {*self.flags, *self.unique}
        for key, columns in (
            ("vectors", {*self.vectors}),
            ("lists.<name>.weights", {*self.weight_columns.values()}),
            ("sample_weight", {self.sample_weight} if self.sample_weight else set[str]()),
        ):
            for column in sorted(columns & taken):
                raise ValueError(f"{key}: column {column!r} has another role too; keep one")
            taken |= columns

    def _check_joins(self) -> None:
        used = {*self.columns, *(join.key for join in self.joins.values())}
        for name, join in self.joins.items():
            for column in join.columns:
                if column not in used:
                    raise ValueError(f"joins.{name}: column {column!r} is never used; remove it")
        for column, count in Counter(self.joined).items():
            if count > 1 or column in (self.user, self.time.column):
                raise ValueError(f"joins: column {column!r} has two sources; remove one")
        missing = set(self.joined)
        for name, join in self.joins.items():
            if join.key in missing:
                raise ValueError(
                    f"joins.{name}: key {join.key!r} comes from a later join; move that join up"
                )
            missing -= set(join.columns)

    def _feature_names(self) -> list[str]:
        columns = [*self.ids, *self.lists, *self.vectors, *self.dense]
        return [*columns, *self.behaviours, *self.counters]

    def _hashed_names(self) -> list[str]:
        """Names of all features; columns with several hashes have several."""
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
        """Tables of all id columns, in order of appearance."""
        named = [*self.ids.values(), *(column.table for column in self.lists.values())]
        return tuple(dict.fromkeys(named))

    @property
    def flags(self) -> tuple[str, ...]:
        """Columns of 0 and 1: labels, event columns, actions."""
        flags = [*self.tasks.values()]
        for behaviour in self.behaviours.values():
            flags += [behaviour.where] if behaviour.where else []
            flags += behaviour.actions
        flags += [counter.where for counter in self.counters.values() if counter.where]
        return tuple(dict.fromkeys(flags))

    @property
    def weight_columns(self) -> dict[str, str]:
        """By column of a weighted bag, the column of its weights."""
        return {name: c.weights for name, c in self.lists.items() if c.weights is not None}

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read, joined ones included."""
        named = [self.user, self.time.column, *self.ids, *self.lists, *self.dense, *self.flags]
        numbers = [name for name in (self.watch_time, self.sample_weight) if name is not None]
        named += [*numbers, *self.unique, *self.weight_columns.values(), *self.vectors]
        return tuple(dict.fromkeys(named))

    @property
    def joined(self) -> tuple[str, ...]:
        """Columns that come from side tables."""
        return tuple(column for join in self.joins.values() for column in join.columns)

    @property
    def in_files(self) -> tuple[str, ...]:
        """Columns that the log files must have."""
        keys = [join.key for join in self.joins.values() if join.key not in self.joined]
        named = [column for column in self.columns if column not in self.joined]
        return tuple(dict.fromkeys([*named, *keys]))

    def table(self, name: str) -> IdTable:
        """The encoding of a table."""
        return self.tables.get(name, IdTable())

    @property
    def split_starts_ms(self) -> dict[str, int]:
        """First epoch millisecond of each split that has a start, in order.

        Raises:
            ValueError: a value isn't a day or time.
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
