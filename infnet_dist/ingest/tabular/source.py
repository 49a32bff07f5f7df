"""Tables with one row per example, already split -> a training set without histories.

Text, flags and the listed columns become ids, named lists become bags, and named vectors stay as
they are; other columns become bucketised dense features.
Vocabularies and boundaries are fitted on train, one column in memory at a time; rows are written in
chunks.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from infnet_dist.config.ingest import TabularIngest
from infnet_dist.data.manifest import Manifest
from infnet_dist.errors import DataError, unknown_name
from infnet_dist.ingest.column_names import is_free
from infnet_dist.ingest.convert.arrays import as_vectors, list_items
from infnet_dist.ingest.tabular.columns import Columns, Source, kind_of_column, weights_name
from infnet_dist.ingest.tabular.definition import make_definition
from infnet_dist.ingest.tabular.encoders import (
    Encoder,
    as_lists,
    first_of,
    fit_encoders,
)
from infnet_dist.ingest.tabular.split_files import check_alike, split_files
from infnet_dist.ingest.writing.writer import TrainingSetWriter
from infnet_dist.schema import (
    BagFeature,
    CategoricalFeature,
    DenseFeature,
    Schema,
    Task,
    VectorFeature,
)

_ROW, _TIME = "row", "time_ms"  # placeholder columns for a missing group and the missing time
_WEIGHT = "sample_weight"
_DRIFT = 0.5  # minimum share of rows with values that don't occur in train, for a warning
log = logging.getLogger(__name__)


def make_training_set(
    config: TabularIngest, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Make a training set at `folder` from the files of `config.splits`.

    Args:
        config: files, columns and labels.
        folder: the training set to make; missing or empty.
        progress: called with (rows written, rows in total) after each chunk.

    Raises:
        DataError: a file is missing, unreadable or empty, lacks a column, or a value is invalid.
    """
    files, left_out = split_files(config.path, config.splits)
    check_alike(files, config.exclude)
    sources: dict[str, Source] = {
        split: Source.open(config.path / config.splits[split], found)
        for split, found in files.items()
    }
    columns = Columns.of(config, _check_columns(config, sources))
    with TrainingSetWriter(
        folder,
        rows_per_part=config.rows_per_part,
        row_group_rows=config.row_group_rows,
        source=config.model_dump(mode="json"),
    ) as writer:
        features = fit_encoders(config, sources["train"], columns)
        total = sum(source.rows for source in sources.values())
        done = 0
        for split, source in sources.items():
            unknown = dict.fromkeys((f.name for f in features), 0)
            for table in _encoded(config, features, source, columns, done):
                for name in unknown:
                    unknown[name] += _count_unknown(table[name])
                writer.write(split, table)
                done += len(table)
                if progress is not None:
                    progress(done, total)
            least = 1.0 if split == "train" else _DRIFT
            _warn_of_unknown(split, {n: c / source.rows for n, c in unknown.items()}, least)
        schema = _schema(config, features)
        definition = make_definition(config, schema, features, columns.kinds, writer.transforms)
        return writer.publish(schema, left_out, definition)


def _check_columns(config: TabularIngest, sources: dict[str, Source]) -> dict[str, str]:
    """Contents of all columns that are read, by name."""
    names = sources["train"].names
    labels = list(config.tasks.values())
    group = [config.group_column] if config.group_column else []
    lists = [*config.weight_columns.values(), *config.vectors]
    weight = [config.sample_weight] if config.sample_weight else []
    named = [*config.categorical, *config.exclude, *config.bags, *lists, *weight]
    for column in [*named, *labels, *group]:
        if column not in names:
            raise DataError(f"ingest: {unknown_name('column', column, names)}")
    kinds = {
        name: "labels"
        if name in labels
        else "lists"
        if name in lists
        else kind_of_column(name, sources, lists=name in config.bags)
        for name in names
        if name not in config.exclude
    }
    for name in [*labels, *lists]:
        for source in sources.values():
            source.types(name)
    for name in group:
        if kinds[name] != "integers":
            raise DataError(
                f"ingest.group_column: {name!r} contains {kinds[name]}, expected integers; set it "
                "to null if rows have no group"
            )
    taken = {_TIME, *(_label(task) for task in config.tasks), *(group or [_ROW])}
    taken |= {weights_name(name) for name in config.weight_columns}
    taken |= {_WEIGHT} if config.sample_weight else set()
    for name in (kinds.keys() - config.not_features) | config.vectors.keys():
        if name in taken or not is_free(name):
            raise DataError(
                f"column {name!r} can't be a feature: the name is reserved or has a dot; rename "
                "it, or name it in ingest.exclude"
            )
    return kinds


def _encoded(
    config: TabularIngest,
    features: list[Encoder],
    source: Source,
    columns: Columns,
    first_row: int,
) -> Iterator[pa.Table]:
    """Columns of the training set in chunks; `first_row` counts the rows of earlier splits."""
    columns.not_finite.clear()
    for path, row, batch in source.batches(list(columns.kinds), columns.rows_at_once):
        chunk = {
            name: columns.convert(name, batch.column(name), path, row) for name in columns.kinds
        }
        columns.check_parallel(chunk, path, row)
        encoded = {f.name: f.encode(chunk[f.name]) for f in features}
        encoded |= {_label(task): chunk[column] for task, column in config.tasks.items()}
        encoded |= _weights_and_vectors(config, chunk)
        encoded |= _group(config, chunk, first_row, path)
        encoded[_TIME] = pa.array(np.zeros(len(batch), np.int64))
        first_row += len(batch)
        yield pa.table(encoded)
    for name, number in (+columns.not_finite).items():
        log.warning(
            "%s: column %r: %s values are infinite or out of range of float32, treated as missing",
            source.path,
            name,
            f"{number:,}",
        )


def _weights_and_vectors(
    config: TabularIngest, chunk: Mapping[str, pa.Array]
) -> dict[str, pa.Array]:
    found: dict[str, pa.Array] = {}
    for name, column in config.weight_columns.items():
        weights = first_of(chunk[column], config.bags[name].max_length)
        found[weights_name(name)] = as_lists(*weights)
    for name, vector in config.vectors.items():
        found[name] = as_vectors(chunk[name], vector.dim)
    if config.sample_weight:
        found[_WEIGHT] = chunk[config.sample_weight].cast(pa.float32())
    return found


def _group(
    config: TabularIngest, chunk: Mapping[str, pa.Array], first_row: int, path: str
) -> dict[str, pa.Array]:
    name = config.group_column
    if not name:
        rows = len(next(iter(chunk.values())))
        return {_ROW: pa.array(np.arange(first_row, first_row + rows))}
    if chunk[name].null_count:
        raise DataError(
            f"{path}: ingest.group_column: {name!r} has nulls, expected none; fill them, or set "
            "the key to null if rows have no group"
        )
    return {name: chunk[name]}


def _count_unknown(values: pa.ChunkedArray) -> int:
    """Number of unknown values: id 0, null, or lists without a known id."""
    if pa.types.is_list(values.type):
        items, lengths = list_items(values.combine_chunks())
        rows = np.repeat(np.arange(len(lengths)), lengths)
        return int(len(lengths) - len(np.unique(rows[items.to_numpy() != 0])))
    if pa.types.is_integer(values.type):
        return int(np.count_nonzero(values.to_numpy() == 0))
    return int(values.null_count)


def _warn_of_unknown(split: str, shares: dict[str, float], least: float) -> None:
    """Warn of features that are unknown in a large share of the rows."""
    drifted = [f"{name} ({share:.0%})" for name, share in shares.items() if share >= least]
    if drifted:
        log.warning(
            "%s: null, or missing in train: %s of the rows; name them in ingest.exclude unless "
            "this is intended",
            split,
            ", ".join(drifted),
        )


def _label(task: str) -> str:
    return f"label_{task}"


def _schema(config: TabularIngest, encoders: list[Encoder]) -> Schema:
    features = [encoder.feature for encoder in encoders]
    return Schema(
        tables=tuple(encoder.table for encoder in encoders),
        categorical=tuple(f for f in features if isinstance(f, CategoricalFeature)),
        bags=tuple(f for f in features if isinstance(f, BagFeature)),
        vectors=tuple(
            VectorFeature(name=name, column=name, dim=vector.dim)
            for name, vector in config.vectors.items()
        ),
        dense=tuple(f for f in features if isinstance(f, DenseFeature)),
        tasks=tuple(Task(name=name, column=_label(name)) for name in config.tasks),
        group_column=config.group_column or _ROW,
        time_column=_TIME,
        weight_column=_WEIGHT if config.sample_weight else None,
    )
