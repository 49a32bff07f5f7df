"""Tables with one row per example, already split -> a training set without histories.

Text, flags and the listed columns become ids; other numbers are bucketised. Vocabularies and
boundaries come from train alone, one column in memory at a time; rows are written chunk by chunk.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from infnet_dist.config import TabularIngest
from infnet_dist.data.manifest import Manifest
from infnet_dist.errors import DataError, unknown_name
from infnet_dist.ingest.encode import Vocabulary, float_column, quantile_boundaries
from infnet_dist.ingest.raw_files import check_flags
from infnet_dist.ingest.writer import TrainingSetWriter
from infnet_dist.schema import CategoricalFeature, DenseFeature, Schema, Table, Task

ROWS_PER_CHUNK = 65_536
_ROW, _TIME = "row", "time_ms"  # columns that stand in where the table has no group and no time

log = logging.getLogger(__name__)


def make_training_set(
    config: TabularIngest, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Turn the files of `config.splits` into a training set at `folder`.

    Args:
        config: which files, columns and labels.
        folder: the training set to make; must not hold anything yet.
        progress: called with (rows written, rows in all) after each chunk.

    Raises:
        DataError: a file is missing or unreadable, lacks a column, or a value doesn't fit it.
    """
    paths: dict[str, Path] = {split: config.path / file for split, file in config.splits.items()}
    sources = {split: _open(path) for split, path in paths.items()}
    _check_columns(config, sources)
    with TrainingSetWriter(
        folder,
        rows_per_part=config.rows_per_part,
        row_group_rows=config.row_group_rows,
        source=config.model_dump(mode="json"),
    ) as writer:
        features = _fit(config, sources["train"])
        total = sum(source.count_rows() for source in sources.values())
        done = 0
        for split, source in sources.items():
            unknown: Counter[str] = Counter()
            rows = 0
            for chunk in _chunks(source, paths[split]):
                columns = {f.name: f.encode(chunk[f.name].combine_chunks()) for f in features}
                for name, values in columns.items():
                    unknown[name] += _count_unknown(values)
                writer.write(split, pa.table(columns | _other_columns(config, chunk, done)))
                rows, done = rows + len(chunk), done + len(chunk)
                if progress is not None:
                    progress(done, total)
            _warn_of_drift(split, [name for name in unknown if rows and unknown[name] == rows])
        return writer.publish(_schema(config, features))


def _open(path: Path) -> ds.Dataset:
    """A Parquet file, or a folder of them."""
    try:
        return ds.dataset(path, format="parquet")
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} can't be read as Parquet ({reason}); change ingest.path or ingest.splits"
        ) from None


def _check_columns(config: TabularIngest, sources: dict[str, ds.Dataset]) -> None:
    named = [*config.categorical, *config.exclude, *config.tasks.values()]
    named += [config.group_column] if config.group_column else []
    found = sources["train"].schema
    for column in named:
        if column not in found.names:
            raise DataError(f"ingest: {unknown_name('column', column, found.names)}")
    for split, source in sources.items():
        for column in (f.name for f in found if f.name not in config.exclude):
            if column not in source.schema.names:
                raise DataError(
                    f"{split} lacks column {column!r}, which train has; add it, or name it in "
                    "ingest.exclude"
                )


class _Encoder(Protocol):
    """One column that became a feature; learned from train."""

    @property
    def name(self) -> str: ...
    @property
    def table(self) -> Table: ...
    def encode(self, values: pa.Array) -> pa.Array: ...


@dataclass(frozen=True)
class _Categories:
    """Values -> int64 ids, 0 where null or never seen in train."""

    name: str
    vocabulary: Vocabulary

    @property
    def table(self) -> Table:
        return Table(name=self.name, num_embeddings=self.vocabulary.num_embeddings)

    def encode(self, values: pa.Array) -> pa.Array:
        return pa.array(self.vocabulary.encode(values.cast(self.vocabulary.values.type)))


@dataclass(frozen=True)
class _Numbers:
    """Numbers -> float32, null where missing; the reader bucketises them."""

    name: str
    boundaries: tuple[float, ...]

    @property
    def table(self) -> Table:
        return Table(name=self.name, num_embeddings=len(self.boundaries) + 2)

    def encode(self, values: pa.Array) -> pa.Array:
        return float_column(_as_floats(values))


def _fit(config: TabularIngest, train: ds.Dataset) -> list[_Encoder]:
    """One encoder per feature column, in the file's order."""
    beside = {*config.exclude, *config.tasks.values(), config.group_column}
    encoders: list[_Encoder] = []
    for field in train.schema:
        if field.name in beside:
            continue
        is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        if not is_number and not _is_category(field.type):
            raise DataError(
                f"column {field.name!r} is {field.type}, expected text, flags or numbers; name it "
                "in ingest.exclude"
            )
        values = train.to_table(columns=[field.name])[field.name].combine_chunks()
        if is_number and field.name not in config.categorical:
            boundaries = quantile_boundaries(_as_floats(values), config.num_buckets)
            encoders.append(_Numbers(field.name, boundaries))
        else:
            encoders.append(_Categories(field.name, Vocabulary.fit(values)))
    if not encoders:
        raise DataError("no column is left for a feature; take some out of ingest.exclude")
    return encoders


def _is_category(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind)


def _as_floats(values: pa.Array) -> np.ndarray:
    return pc.fill_null(values.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)


def _chunks(source: ds.Dataset, path: Path) -> Iterator[pa.Table]:
    try:
        for batch in source.to_batches(batch_size=ROWS_PER_CHUNK):
            if batch.num_rows:
                yield pa.table(batch)
    except (pa.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} can't be read ({reason}); fetch or export it again") from None


def _other_columns(config: TabularIngest, chunk: pa.Table, first_row: int) -> dict[str, pa.Array]:
    """Labels, group and time of a chunk whose first row has this number."""
    labels = check_flags(chunk, config.tasks.values(), config.path)
    columns = {_label(task): labels[column] for task, column in config.tasks.items()}
    if config.group_column:
        columns[config.group_column] = _groups(chunk[config.group_column], config.group_column)
    else:
        columns[_ROW] = pa.array(np.arange(first_row, first_row + len(chunk)))
    columns[_TIME] = pa.array(np.zeros(len(chunk), np.int64))
    return columns


def _groups(values: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if not pa.types.is_integer(values.type) or values.null_count:
        raise DataError(
            f"ingest.group_column: {name!r} is {values.type} with {values.null_count} nulls, "
            "expected integers without nulls; set it to null if rows have no group"
        )
    return values.cast(pa.int64())


def _count_unknown(values: pa.Array) -> int:
    """Rows that nothing is known about: id 0, or null."""
    if pa.types.is_integer(values.type):
        return int(np.count_nonzero(values.to_numpy() == 0))
    return int(values.null_count)


def _warn_of_drift(split: str, names: list[str]) -> None:
    if names:
        log.warning(
            "%s: null or unseen in train in every row: %s; name them in ingest.exclude unless "
            "that is meant",
            split,
            ", ".join(names),
        )


def _label(task: str) -> str:
    return f"label_{task}"


def _schema(config: TabularIngest, features: list[_Encoder]) -> Schema:
    return Schema(
        tables=tuple(f.table for f in features),
        categorical=tuple(
            CategoricalFeature(name=f.name, table=f.name, column=f.name)
            for f in features
            if isinstance(f, _Categories)
        ),
        dense=tuple(
            DenseFeature(name=f.name, column=f.name, boundaries=f.boundaries)
            for f in features
            if isinstance(f, _Numbers)
        ),
        tasks=tuple(Task(name=name, column=_label(name)) for name in config.tasks),
        group_column=config.group_column or _ROW,
        time_column=_TIME,
    )
