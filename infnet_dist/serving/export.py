"""Exports a checkpoint, of any plan and number of workers, to a bundle (`serving.manifest`)."""

import datetime
from dataclasses import replace
from pathlib import Path

from infnet_dist.checkpoint.inspection import table_tensor
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.errors import CheckpointError, ConfigError
from infnet_dist.features.numbers import NUM_TIME_GAP_BUCKETS
from infnet_dist.io.filesystem import Folder, published_folder, write_all
from infnet_dist.lookups import Lookups, TableLookups
from infnet_dist.model.build import sequences_read
from infnet_dist.serving.bundle import Bundle
from infnet_dist.serving.encoding import encode, row_bytes
from infnet_dist.serving.examples import write_example
from infnet_dist.serving.manifest import (
    TIME_GAP,
    Attribute,
    Behaviour,
    BundleManifest,
    DataType,
    Field,
    ScoredTask,
    Shard,
    StoredFile,
    StoredTable,
    Vector,
    sha256_of,
    write_manifest,
)
from infnet_dist.serving.model_card import write_model_card
from infnet_dist.serving.programs import load_dense, write_programs
from infnet_dist.training.provenance import versions
from infnet_dist.warm_start.start import Origin, read_origin

SHARD_BYTES = 2**30


def export_bundle(
    checkpoint: Folder, out: Path, data_type: DataType, *, shard_bytes: int = SHARD_BYTES
) -> BundleManifest:
    """Write a bundle; its folder appears when it is complete.

    Tables are read in parts, so memory doesn't grow with them.

    Args:
        checkpoint: its folder.
        out: a new folder on a local disk.
        data_type: of the rows of tables.
        shard_bytes: about the most bytes of a file of rows.

    Raises:
        CheckpointError: the checkpoint is damaged, or a value is too large for `data_type`.
        UserError: `out` exists or can't be made.
    """
    origin = read_origin(checkpoint, "infnet export")
    reader = TensorReader(checkpoint, origin.manifest)
    lookups = origin.lookups
    dense = load_dense(reader, origin.manifest, lookups)
    with published_folder(out) as folder:
        write_programs(folder, dense, lookups)
        tables = tuple(
            _write_table(folder, number, table, origin, reader, data_type, shard_bytes)
            for number, table in enumerate(lookups.tables)
        )
        made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        manifest = _describe(checkpoint, origin, tables, made)
        write_model_card(folder, checkpoint, origin, manifest, data_type)
        write_example(folder, Bundle(folder, manifest), lookups.schema)
        manifest = _with_files(folder, manifest)
        write_manifest(folder, manifest)
    return manifest


def _write_table(
    folder: Path,
    number: int,
    table: TableLookups,
    origin: Origin,
    reader: TensorReader,
    data_type: DataType,
    shard_bytes: int,
) -> StoredTable:
    """Write the shards of a table."""
    tensor = table_tensor(origin.manifest, table.name)
    rows, width = origin.manifest.tensors[tensor].shape
    per_shard = max(1, shard_bytes // row_bytes(data_type, width))
    shards: list[Shard] = []
    for first in range(0, rows, per_shard):
        end = min(first + per_shard, rows)
        shard = Shard(f"table-{number:03d}-{len(shards):05d}.bin", first, end - first)
        shards.append(shard)
        with open(folder / shard.file, "wb") as file:
            for start, stop in reader.ranges(tensor, first, end):
                try:
                    stored = encode(reader.rows(tensor, start, stop), data_type)
                except OverflowError as error:
                    raise CheckpointError(
                        f"table {table.name!r}, rows {start:,} to {stop - 1:,}: {error}; export "
                        "with --tables fp32, or from another checkpoint"
                    ) from None
                write_all(file, stored.contiguous().numpy().data)
    return StoredTable(table.name, rows, width, data_type, tuple(shards))


def _describe(
    checkpoint: Folder, origin: Origin, tables: tuple[StoredTable, ...], made: str
) -> BundleManifest:
    """The manifest, without files."""
    schema = origin.lookups.schema
    return BundleManifest(
        step=origin.manifest.progress.step,
        checkpoint={
            "name": checkpoint.name,
            "manifest_sha256": origin.digest,
            "training_set": origin.manifest.order.content_hash,
        },
        made=made,
        versions=versions(),
        num_buckets=NUM_TIME_GAP_BUCKETS,
        tasks=tuple(ScoredTask(task.name, task.kind, task.mean_ms) for task in schema.tasks),
        fields=_fields(origin.lookups),
        vectors=tuple(Vector(vector.name, vector.dim) for vector in schema.vectors),
        dense=tuple(feature.name for feature in schema.standardised),
        behaviours=_behaviours(origin.lookups),
        tables=tables,
        files=(),
    )


def _fields(lookups: Lookups) -> tuple[Field, ...]:
    lengths = {bag.name: bag.max_length for bag in lookups.schema.bags}
    return tuple(
        Field(
            name=one.feature,
            table=one.table,
            kind="bag" if one.kind == "bag" else "single",
            pooling=one.pooling,
            weighted=one.weighted,
            max_length=lengths.get(one.feature, 1),
        )
        for one in lookups.fields
    )


def _behaviours(lookups: Lookups) -> tuple[Behaviour, ...]:
    found = []
    for sequence in sequences_read(lookups.config.model, lookups.schema):
        names = [attribute.name for attribute in sequence.attributes]
        if sequence.time_gap_column and TIME_GAP in names:
            raise ConfigError(
                f"history {sequence.name!r} has an attribute {TIME_GAP!r}, which is the name of "
                "its time gaps in requests; rename the attribute"
            )
        found.append(
            Behaviour(
                sequence.name,
                sequence.max_length,
                tuple(Attribute(one.name, one.table) for one in sequence.attributes),
                sequence.time_gap_column is not None,
            )
        )
    return tuple(found)


def _with_files(folder: Path, manifest: BundleManifest) -> BundleManifest:
    """The manifest with all files that the folder has."""
    files = tuple(
        StoredFile(path.name, path.stat().st_size, sha256_of(path))
        for path in sorted(folder.iterdir())
    )
    return replace(manifest, files=files)
