"""The ingest section for data sets that exist already: nothing is made, only described."""

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from infnet_dist.errors import unknown_name
from infnet_dist.model_config import Section

SplitName = Literal["train", "valid", "test"]


class PetastormSequence(Section):
    """One behaviour: parallel 1-D arrays of a row, newest item first."""

    attributes: dict[str, str] = Field(min_length=1, description="by column of ids, their table")
    max_length: int = Field(50, ge=1, description="items used per row")
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
    tables: dict[str, PositiveInt] = Field(
        default_factory=dict, description="rows of a table; of others: largest id seen + 1"
    )
    categorical: dict[str, str] = Field(min_length=1, description="by column of ids, its table")
    sequences: dict[str, PetastormSequence] = Field(
        default_factory=dict, description="by behaviour, its columns"
    )
    dense: tuple[str, ...] = Field((), description="columns of numbers")
    num_buckets: int = Field(32, ge=2, description="most buckets of a number, cut at its quantiles")
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
