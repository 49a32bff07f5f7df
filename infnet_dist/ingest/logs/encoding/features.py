"""Features, tables and tasks of logs, and the schema of the training set."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infnet_dist.config.log_columns import Behaviour, DenseColumn
from infnet_dist.config.logs import LogsIngest
from infnet_dist.errors import ConfigError, DataError
from infnet_dist.features.numbers import COUNT_BOUNDARIES
from infnet_dist.ingest.column_names import is_free
from infnet_dist.ingest.encode import quantile_boundaries
from infnet_dist.schema import (
    BagFeature,
    CategoricalFeature,
    DenseFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
    VectorFeature,
)

FloatArray = npt.NDArray[np.float64]
GROUP, TIME, WEIGHT = "group", "time_ms", "sample_weight"


@dataclass(frozen=True)
class IdFeature:
    """One id of a column; columns of tables with several hash functions have several."""

    name: str
    column: str
    table: str
    seed: int = 0


def id_features(config: LogsIngest, column: str, table: str) -> list[IdFeature]:
    """The ids of a column: `num_hashes` of them."""
    number = config.table(table).num_hashes
    if number == 1:
        return [IdFeature(column, column, table)]
    return [IdFeature(f"{column}_{i + 1}", column, table, i) for i in range(number)]


def item_features(config: LogsIngest, behaviour: Behaviour) -> list[IdFeature]:
    """The ids of an item of a behaviour, without its actions."""
    return [f for column in behaviour.ids for f in id_features(config, column, config.ids[column])]


def actions_table(behaviour: str) -> str:
    """Name of the table of the actions of a behaviour: 1 plus one bit per action."""
    return f"{behaviour}_actions"


def fit_dense(config: LogsIngest, sample: pa.Table) -> tuple[DenseFeature, ...]:
    """Dense features with boundaries, or mean and deviation, of a sample of rows before valid."""
    found = []
    for name, column in config.dense.items():
        values = sample[name].drop_null().to_numpy()
        if column.buckets is None:
            mean, std = (float(values.mean()), float(values.std())) if len(values) else (0.0, 1.0)
            found.append(DenseFeature(name=name, column=name, mean=mean, std=std or 1.0))
        else:
            boundaries = _boundaries(values, column)
            found.append(DenseFeature(name=name, column=name, boundaries=boundaries))
    return tuple(found)


def _boundaries(values: FloatArray, column: DenseColumn) -> tuple[float, ...]:
    if column.buckets == "quantile":
        return quantile_boundaries(values, column.num_buckets)
    positive = values[values > 0]
    if not len(positive):
        return ()
    ends = np.geomspace(positive.min(), positive.max(), column.num_buckets)
    return tuple(float(b) for b in np.unique(ends[:-1].astype(np.float32)))


def make_schema(
    config: LogsIngest,
    *,
    num_ids: Mapping[str, int],
    dense: tuple[DenseFeature, ...],
    mean_watch_ms: float,
) -> Schema:
    """The schema of the training set.

    Args:
        config: columns and their roles.
        num_ids: number of ids by table with a vocabulary.
        dense: the fitted dense features, without counters.
        mean_watch_ms: mean watch time before valid; unused without a watch-time task.

    Raises:
        ConfigError: two columns of the training set have the same name, or a name is reserved.
    """
    counters = [
        DenseFeature(name=name, column=name, boundaries=COUNT_BOUNDARIES)
        for name in config.counters
    ]
    ids = [f for column, table in config.ids.items() for f in id_features(config, column, table)]
    sequences = [_behaviour(config, name, b) for name, b in config.behaviours.items()]
    sequences += [_list(config, name) for name, c in config.lists.items() if c.pooling is None]
    bags = [bag for name in config.lists for bag in _bags(config, name)]
    schema = Schema(
        tables=tuple(_tables(config, num_ids)) + tuple(_bucket_tables([*dense, *counters])),
        categorical=tuple(
            CategoricalFeature(name=f.name, table=f.table, column=f.name) for f in ids
        ),
        bags=tuple(bags),
        vectors=tuple(
            VectorFeature(name=name, column=name, dim=column.dim)
            for name, column in config.vectors.items()
        ),
        sequences=tuple(sequences),
        dense=(*dense, *counters),
        tasks=tuple(_tasks(config, mean_watch_ms)),
        group_column=GROUP,
        time_column=TIME,
        weight_column=WEIGHT if config.sample_weight is not None else None,
    )
    for table in schema.tables:
        if not is_free(table.name):
            raise ConfigError(
                f"ingest: {table.name!r} can't be the name of a table or feature; rename it"
            )
    for name, count in Counter([*_columns(schema), GROUP, TIME]).items():
        if count > 1:
            raise ConfigError(
                f"ingest: {count} columns of the training set have the name {name!r}; rename a "
                "feature, a behaviour or a task"
            )
    return schema


def _columns(schema: Schema) -> list[str]:
    columns = [f.column for f in schema.categorical] + [f.column for f in schema.dense]
    columns += [task.column for task in schema.tasks]
    columns += [f.column for f in schema.bags] + [f.column for f in schema.vectors]
    columns += dict.fromkeys(f.weight_column for f in schema.weighted_bags if f.weight_column)
    columns += [schema.weight_column] if schema.weight_column else []
    for sequence in schema.sequences:
        columns += [attribute.column for attribute in sequence.attributes]
        columns += [sequence.time_gap_column] if sequence.time_gap_column else []
    return columns


def _tables(config: LogsIngest, num_ids: Mapping[str, int]) -> list[Table]:
    tables = []
    for name in config.table_names:
        table = config.table(name)
        rows = table.num_embeddings or num_ids[name] + 1
        tables.append(Table(name=name, num_embeddings=rows, raw=table.encoding == "raw"))
    for name, behaviour in config.behaviours.items():
        if behaviour.actions:
            rows = 1 + 2 ** len(behaviour.actions)
            tables.append(Table(name=actions_table(name), num_embeddings=rows))
    return tables


def _bucket_tables(dense: list[DenseFeature]) -> list[Table]:
    return [
        Table(name=f.name, num_embeddings=len(f.boundaries) + 2)
        for f in dense
        if f.boundaries is not None
    ]


def _behaviour(config: LogsIngest, name: str, behaviour: Behaviour) -> SequenceFeature:
    attributes = [
        SequenceAttribute(name=f.name, table=f.table, column=f"{name}_{f.name}")
        for f in item_features(config, behaviour)
    ]
    if behaviour.actions:
        attributes.append(
            SequenceAttribute(name="actions", table=actions_table(name), column=f"{name}_actions")
        )
    return SequenceFeature(
        name=name,
        attributes=tuple(attributes),
        max_length=behaviour.length,
        time_gap_column=f"{name}_gap_s" if behaviour.time_gaps else None,
    )


def _list(config: LogsIngest, name: str) -> SequenceFeature:
    column = config.lists[name]
    return SequenceFeature(
        name=name,
        attributes=tuple(
            SequenceAttribute(name=f.name, table=f.table, column=f.name)
            for f in id_features(config, name, column.table)
        ),
        max_length=column.max_length,
    )


def _bags(config: LogsIngest, name: str) -> list[BagFeature]:
    """The bags of a list: one per hash function of its table; none if it is a sequence."""
    column = config.lists[name]
    if column.pooling is None:
        return []
    return [
        BagFeature(
            name=f.name,
            table=f.table,
            column=f.name,
            pooling=column.pooling,
            max_length=column.max_length,
            weight_column=weights_name(name) if column.weights is not None else None,
        )
        for f in id_features(config, name, column.table)
    ]


def weights_name(name: str) -> str:
    """Column of the training set with the weights of a list."""
    return f"{name}_weights"


def _tasks(config: LogsIngest, mean_watch_ms: float) -> list[Task]:
    def nullable(column: str) -> bool:
        return column in config.checks and config.checks[column].nulls == "keep"

    tasks = [
        Task(name=name, column=f"label_{name}", nullable=nullable(column))
        for name, column in config.tasks.items()
    ]
    if config.watch_time is not None:
        if not mean_watch_ms > 0:
            raise DataError(
                "watch times before valid are all 0 or null; set ingest.watch_time to null"
            )
        tasks.append(
            Task(
                name="watch_time",
                column="label_watch_time",
                kind="watch_time",
                mean_ms=round(mean_watch_ms, 3),
                nullable=nullable(config.watch_time),
            )
        )
    return tasks
