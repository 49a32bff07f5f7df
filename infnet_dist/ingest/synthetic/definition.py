"""The transforms of rows whose raw columns are already those of the training set."""

from infnet_dist.data.transforms import model_inputs
from infnet_dist.features.definition import (
    Definition,
    GapsColumn,
    IdColumn,
    IdsColumn,
    IdTable,
    NumberColumn,
    RawType,
    SetColumn,
    VectorColumn,
    WeightsColumn,
)
from infnet_dist.schema import Schema


def prepared_definition(schema: Schema) -> Definition:
    """The definition: values are ids, and histories are lists, newest item first."""
    raw: dict[str, RawType] = {}
    columns: dict[str, SetColumn] = {}

    def add(name: str, kind: RawType, column: SetColumn) -> None:
        raw[name], columns[name] = kind, column

    for feature in schema.categorical:
        add(feature.column, "integer", IdColumn(feature.column, feature.table))
    for bag in schema.bags:
        add(bag.column, "integers", IdsColumn(bag.column, bag.table, bag.max_length))
        if (weights := bag.weight_column) is not None:
            add(weights, "floats", WeightsColumn(weights, bag.column, bag.max_length))
    for sequence in schema.sequences:
        for a in sequence.attributes:
            add(a.column, "integers", IdsColumn(a.column, a.table, sequence.max_length))
        if (gaps := sequence.time_gap_column) is not None:
            add(gaps, "integers", GapsColumn(gaps, sequence.max_length))
    for vector in schema.vectors:
        add(vector.column, "floats", VectorColumn(vector.column, vector.dim))
    for dense in schema.dense:
        number = NumberColumn(dense.column, null="error" if dense.boundaries is None else "keep")
        add(dense.column, "float", number)
    read = {column.table for column in columns.values() if isinstance(column, IdColumn | IdsColumn)}
    return Definition(
        generation=1,
        raw=raw,
        tables={
            table.name: IdTable("raw", 0) if table.raw else IdTable("ids", table.num_embeddings)
            for table in schema.tables
            if table.name in read
        },
        columns=columns,
        behaviours={},
        inputs=model_inputs(schema),
    )
