"""The stored transforms of a training set: what a model reads, and how to open them."""

from pathlib import Path

from infnet_dist.data.decode import weights_key
from infnet_dist.data.manifest import Manifest
from infnet_dist.errors import DataError
from infnet_dist.features.definition import (
    BucketInput,
    CrossInput,
    GapsInput,
    IdInput,
    IdsInput,
    Input,
    StandardisedInput,
    VectorInput,
    WeightsInput,
)
from infnet_dist.features.ids import sha256
from infnet_dist.features.storage import load_transforms
from infnet_dist.features.transforms import Transforms
from infnet_dist.schema import Schema, sequence_key


def model_inputs(schema: Schema) -> tuple[Input, ...]:
    """What the reader makes of the columns of a schema, by the keys of its batches."""
    tables = {table.name: table for table in schema.tables}

    def row(key: str, column: str, name: str) -> IdInput:
        return IdInput(key, column, tables[name].num_embeddings, tables[name].raw)

    def rows(key: str, column: str, name: str, max_length: int) -> IdsInput:
        return IdsInput(key, column, tables[name].num_embeddings, max_length, tables[name].raw)

    inputs: list[Input] = [row(f.name, f.column, f.table) for f in schema.categorical]
    for dense in schema.dense:
        if dense.boundaries is not None:
            inputs.append(BucketInput(dense.name, dense.column, dense.boundaries))
        else:
            inputs.append(StandardisedInput(dense.name, dense.column, dense.mean, dense.std))
    for cross in schema.crosses:
        inputs.append(CrossInput(cross.name, cross.features, tables[cross.table].num_embeddings))
    for bag in schema.bags:
        inputs.append(rows(bag.name, bag.column, bag.table, bag.max_length))
        if bag.weight_column is not None:
            inputs.append(WeightsInput(weights_key(bag), bag.weight_column, bag.max_length))
    for sequence in schema.sequences:
        for a in sequence.attributes:
            key = sequence_key(sequence, a)
            inputs.append(rows(key, a.column, a.table, sequence.max_length))
        if (column := sequence.time_gap_column) is not None:
            inputs.append(GapsInput(sequence.name, column, sequence.max_length))
    inputs += [VectorInput(vector.name, vector.column) for vector in schema.vectors]
    return tuple(inputs)


def open_transforms(folder: str | Path, manifest: Manifest) -> Transforms:
    """The transforms that an ingest stored with a training set.

    Raises:
        DataError: the set has none, or a file is missing or damaged.
    """
    stored = manifest.transforms
    if stored is None:
        raise DataError(
            f"{folder} doesn't say how its rows are made of raw rows: it was made by an earlier "
            "version, or its source can't say it; ingest again, from logs or tables"
        )
    path = Path(folder) / stored.file
    if sha256(path) != stored.sha256:
        raise DataError(f"{path} isn't the one that the manifest names; restore it or ingest again")
    return load_transforms(path.parent)
