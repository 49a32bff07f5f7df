"""The schema of a training set: columns -> features -> tables, and tasks.

A *table* holds embedding rows. A *feature* reads columns and looks up rows of a table; several
features may share one (the candidate item and the items of a history).

    categorical  int64 column                         one id per row           one token
    dense        float column with `boundaries`       bucketised to an id      one token
    cross        2 or 3 of the features above         hashed to an id          one token
    bag          list<int64> column, may be weighted  rows summed or averaged  one token
    vector       fixed_size_list<float32> column      a given embedding        one token
    dense        float column without `boundaries`    standardised             one token for all
    sequence     list<int64> columns, newest first    items of one behaviour   one token per item
"""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from infnet_dist.errors import DataError, unknown_name
from infnet_dist.io.parsing import Name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Table(_Part):
    """Embedding rows; ids are in [0, num_embeddings).

    If `raw`, columns hold any int64 (0: unknown), and the reader hashes them to rows.

    `num_ids` is set where a trained model reads a training set that has gained ids since: columns
    hold ids in [0, num_ids), and those without a row are unknown to the model. It describes a
    reading, so it is never saved.
    """

    name: Name
    num_embeddings: int = Field(ge=1, lt=2**63)
    raw: bool = False
    num_ids: int | None = Field(None, exclude=True)


class CategoricalFeature(_Part):
    """One int64 id per row; id 0 means unknown or missing."""

    name: Name
    table: Name
    column: Name


class CrossFeature(_Part):
    """The combination of the values of two or three categorical or bucketised features as one id.

    Made by the reader (`data.crosses`), not a column. The id is 0 where one of them is unknown,
    else a hash in [1, num_embeddings) of the table, which may be the cross's alone.
    """

    name: Name
    features: tuple[Name, ...] = Field(min_length=2, max_length=3)
    table: Name


class BagFeature(_Part):
    """Several ids per row, whose rows are summed or averaged: a list<int64> column.

    `weight_column` (list<float>, parallel, finite and not negative) multiplies each row by its
    weight; the mean is then divided by the sum of the weights. Lists are cut after `max_length`
    ids. An empty or null list gives zeros.
    """

    name: Name
    table: Name
    column: Name
    pooling: Literal["sum", "mean"] = "mean"
    max_length: int = Field(ge=1, le=2**20)
    weight_column: Name | None = None


class VectorFeature(_Part):
    """An embedding that another model made, `dim` floats per row; null: a default is learned.

    A column of type fixed_size_list<float32>[dim]; its values are finite, and aren't trained.
    """

    name: Name
    column: Name
    dim: int = Field(ge=1, le=2**16)


class SequenceAttribute(_Part):
    """One attribute of the items of a behaviour, e.g. the author: a list<int64> column."""

    name: Name
    table: Name
    column: Name


class SequenceFeature(_Part):
    """One behaviour (click, like, ...): parallel lists, newest item first.

    `time_gap_column` (list<int64>) holds the seconds between the item's event and the row, > 0.
    """

    name: Name
    attributes: tuple[SequenceAttribute, ...] = Field(min_length=1)
    max_length: int = Field(ge=1, le=2**20)
    time_gap_column: Name | None = None


class DenseFeature(_Part):
    """A float per row, bucketised by `boundaries` if it has any, else standardised by mean and std.

    A bucketised feature reads the table of its own name: row 0 for null, row 1 + i for bucket i.
    `boundaries`, `mean` and `std` are computed from the training window only.
    """

    name: Name
    column: Name
    boundaries: tuple[float, ...] | None = None
    mean: float = 0.0
    std: float = Field(1.0, gt=0)


class Task(_Part):
    """A binary target in {0, 1}, or a watch time in integer milliseconds.

    `truth_column` holds P(label = 1) if it is known. Watch times are trained in units of `mean_ms`,
    the training window's mean. If `nullable`, a null label is unknown: the row counts only for
    the other tasks.
    """

    name: Name
    column: Name
    truth_column: Name | None = None
    kind: Literal["binary", "watch_time"] = "binary"
    mean_ms: float = Field(1.0, gt=0)
    nullable: bool = False


FEATURES = ("categorical", "crosses", "bags", "vectors", "sequences", "dense")  # of a Schema


class TableFeature(_Part):
    """One key of the KeyedJaggedTensor and the table it reads."""

    key: str
    table: Name


class Schema(_Part):
    """The features, tables and tasks of a training set.

    `weight_column` (float, finite and not negative) is the weight of a row in losses and metrics;
    None: all rows weigh 1.

    Raises:
        DataError: a name appears twice, a feature reads an unknown table or a table that is too
            small for its ids, or a cross combines unknown features.
    """

    tables: tuple[Table, ...]
    categorical: tuple[CategoricalFeature, ...] = ()
    crosses: tuple[CrossFeature, ...] = ()
    bags: tuple[BagFeature, ...] = ()
    vectors: tuple[VectorFeature, ...] = ()
    sequences: tuple[SequenceFeature, ...] = ()
    dense: tuple[DenseFeature, ...] = ()
    tasks: tuple[Task, ...]
    group_column: Name
    time_column: Name
    weight_column: Name | None = None

    @model_validator(mode="after")
    def _check(self) -> "Schema":
        names = self.feature_names
        _check_unique("feature", names)
        _check_unique("table", [table.name for table in self.tables])
        _check_unique("task", [task.name for task in self.tasks])
        tables = {table.name for table in self.tables}
        for feature in self.table_features:
            if feature.table not in tables:
                message = unknown_name("table", feature.table, tables)
                raise DataError(f"feature {feature.key!r} reads an {message}")
        self._check_crosses()
        self._check_sizes()
        return self

    def _check_crosses(self) -> None:
        """Check that crosses combine features with one id per row, into tables of their own."""
        single = [f.name for f in self.categorical] + [f.name for f in self.bucketised]
        for cross in self.crosses:
            for name in cross.features:
                if name not in single:
                    message = unknown_name("categorical or bucketised feature", name, single)
                    raise DataError(f"cross {cross.name!r}: {message}")
            if len(set(cross.features)) < len(cross.features):
                raise DataError(f"cross {cross.name!r} combines a feature with itself")
            readers = [f.key for f in self.table_features if f.table == cross.table]
            if len(readers) > 1 or self.table(cross.table).raw:
                raise DataError(
                    f"cross {cross.name!r} needs a table of its own that isn't raw; table "
                    f"{cross.table!r} is read by {', '.join(readers)}"
                )
            if self.table(cross.table).num_embeddings < 2:
                raise DataError(f"table {cross.table!r} has 1 row; a cross needs at least 2")

    def _check_sizes(self) -> None:
        """Check that ids made by bucketising or hashing are rows of their tables."""
        for table in self.tables:
            if table.raw and table.num_embeddings < 2:
                raise DataError(
                    f"table {table.name!r} has 1 row; raw ids need at least 2, since row 0 is for "
                    "unknown ids"
                )
        for feature in self.bucketised:
            cuts = feature.boundaries or ()
            if list(cuts) != sorted(cuts):
                raise DataError(f"feature {feature.name!r}: boundaries must be ascending")
            rows = self.table(feature.name).num_embeddings
            if rows < len(cuts) + 2:
                raise DataError(
                    f"table {feature.name!r} has {rows} rows, expected {len(cuts) + 2} for "
                    f"{len(cuts)} boundaries and null"
                )

    @property
    def feature_names(self) -> list[str]:
        """Names of all features."""
        parts = (self.categorical, self.crosses, self.bags, self.vectors, self.sequences)
        return [f.name for part in (*parts, self.dense) for f in part]

    @property
    def bucketised(self) -> tuple[DenseFeature, ...]:
        """Dense features with boundaries: they become ids."""
        return tuple(f for f in self.dense if f.boundaries is not None)

    @property
    def standardised(self) -> tuple[DenseFeature, ...]:
        """Dense features without boundaries: they stay floats."""
        return tuple(f for f in self.dense if f.boundaries is None)

    @property
    def fields(self) -> tuple[TableFeature, ...]:
        """The one-id-per-row features in token order: categorical, bucketised, crosses."""
        return tuple(
            [TableFeature(key=f.name, table=f.table) for f in self.categorical]
            + [TableFeature(key=f.name, table=f.name) for f in self.bucketised]
            + [TableFeature(key=f.name, table=f.table) for f in self.crosses]
        )

    @property
    def table_features(self) -> tuple[TableFeature, ...]:
        """All keys that look up rows, in order: fields, bags, then sequence attributes."""
        bags = [TableFeature(key=f.name, table=f.table) for f in self.bags]
        attributes = [
            TableFeature(key=sequence_key(s, a), table=a.table)
            for s in self.sequences
            for a in s.attributes
        ]
        return (*self.fields, *bags, *attributes)

    @property
    def weighted_bags(self) -> tuple[BagFeature, ...]:
        """The bags whose ids have weights."""
        return tuple(bag for bag in self.bags if bag.weight_column is not None)

    @property
    def weighted_tables(self) -> frozenset[str]:
        """Tables of the weighted EmbeddingBagCollection: all of their ids travel with weights.

        Those that a weighted bag reads and no sequence.
        """
        of_sequences = {a.table for s in self.sequences for a in s.attributes}
        return frozenset({bag.table for bag in self.weighted_bags} - of_sequences)

    @property
    def unweighted_keys(self) -> tuple[str, ...]:
        """Keys of `RankingBatch.sparse_features`: features of tables outside `weighted_tables`."""
        weighted = self.weighted_tables
        return tuple(f.key for f in self.table_features if f.table not in weighted)

    @property
    def weighted_keys(self) -> tuple[str, ...]:
        """Keys of `RankingBatch.weighted_features`: all features of `weighted_tables`.

        Also weighted bags over a sequence's table, which are in `unweighted_keys` too: their rows
        are looked up without weights and pooled afterwards.
        """
        tables, bags = self.weighted_tables, {bag.name for bag in self.weighted_bags}
        return tuple(f.key for f in self.table_features if f.table in tables or f.key in bags)

    def target_fields(self, sequence: SequenceFeature) -> tuple[int | None, ...]:
        """For each attribute of a sequence, the index of the candidate's field of the same kind.

        That field reads the same table; of several, the one with the attribute's name, else the
        first. None: the candidate has no such attribute, e.g. no action yet.
        """
        found: list[int | None] = []
        for attribute in sequence.attributes:
            same = [i for i, field in enumerate(self.fields) if field.table == attribute.table]
            named = [i for i in same if self.fields[i].key == attribute.name]
            found.append(next(iter([*named, *same]), None))
        return tuple(found)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of the training set that the reader needs, without duplicates."""
        columns = [f.column for f in self.categorical] + [f.column for f in self.dense]
        columns += [f.column for f in self.bags] + [f.column for f in self.vectors]
        columns += [bag.weight_column for bag in self.weighted_bags if bag.weight_column]
        columns += [self.weight_column] if self.weight_column else []
        for sequence in self.sequences:
            columns += [a.column for a in sequence.attributes]
            columns += [sequence.time_gap_column] if sequence.time_gap_column else []
        for task in self.tasks:
            columns += [task.column] + ([task.truth_column] if task.truth_column else [])
        return tuple(dict.fromkeys([*columns, self.group_column]))

    def table(self, name: str) -> Table:
        """The table `name`; DataError if there is none."""
        for table in self.tables:
            if table.name == name:
                return table
        raise DataError(unknown_name("table", name, (t.name for t in self.tables)))

    def select(
        self, features: Iterable[str] | None = None, tasks: Iterable[str] | None = None
    ) -> "Schema":
        """The schema with only these features and tasks (None: all) and the tables that they read.

        Raises:
            DataError: a feature or task is unknown, or none is left.
        """
        kept_features = _pick("feature", features, self.feature_names)
        kept_tasks = _pick("task", tasks, [t.name for t in self.tasks])
        picked = self.model_copy(
            update={
                **{
                    part: tuple(f for f in getattr(self, part) if f.name in kept_features)
                    for part in FEATURES
                },
                "tasks": tuple(t for t in self.tasks if t.name in kept_tasks),
            }
        )
        for cross in picked.crosses:
            for name in sorted(set(cross.features) - kept_features):
                raise DataError(
                    f"cross {cross.name!r} combines {name!r}, which isn't selected; select it too"
                )
        if not picked.fields:
            raise DataError("no categorical or bucketised feature is selected; select at least one")
        read = {feature.table for feature in picked.table_features}
        tables = tuple(table for table in self.tables if table.name in read)
        return picked.model_copy(update={"tables": tables})


def sequence_key(sequence: SequenceFeature, attribute: SequenceAttribute) -> str:
    """Key of a sequence attribute in the KeyedJaggedTensor, e.g. `click.item`."""
    return f"{sequence.name}.{attribute.name}"


def sequence_keys(sequence: SequenceFeature) -> tuple[str, ...]:
    """Keys of all attributes of a sequence."""
    return tuple(sequence_key(sequence, attribute) for attribute in sequence.attributes)


def _check_unique(kind: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{kind} {twice[0]!r} is declared twice; rename one")


def _pick(kind: str, wanted: Iterable[str] | None, known: list[str]) -> set[str]:
    if wanted is None:
        return set(known)
    names = set(wanted)
    for name in sorted(names - set(known)):
        raise DataError(unknown_name(kind, name, known))
    if not names:
        raise DataError(f"no {kind} is selected; known: {', '.join(known)}")
    return names
