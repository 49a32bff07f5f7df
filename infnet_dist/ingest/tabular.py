"""Tables with one row per example, already split -> a training set without histories.

Text, flags and the listed columns become ids; other numbers are bucketised. Vocabularies and
boundaries come from train alone, one column in memory at a time; rows are written chunk by chunk.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from infnet_dist.data.manifest import Manifest
from infnet_dist.errors import DataError, unknown_name
from infnet_dist.ingest.encode import Vocabulary, float_column, quantile_boundaries
from infnet_dist.ingest.names import is_free
from infnet_dist.ingest.raw_files import check_flags
from infnet_dist.ingest.split_files import check_alike, split_files
from infnet_dist.ingest.writer import TrainingSetWriter
from infnet_dist.ingest_config import TabularIngest
from infnet_dist.schema import CategoricalFeature, DenseFeature, Schema, Table, Task

ROWS_PER_CHUNK = 65_536
_ROW, _TIME = "row", "time_ms"  # columns that stand in where the table has no group and no time
_DRIFT = 0.5  # share of a split's rows with values that train doesn't know, from which it is told
_TYPES = {
    "text": pa.large_string(),
    "flags": pa.bool_(),
    "integers": pa.int64(),
    "numbers": pa.float64(),
}

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
        DataError: a file is missing, unreadable or empty, lacks a column, or a value doesn't fit.
    """
    places: dict[str, Path] = {split: config.path / file for split, file in config.splits.items()}
    files, left_out = split_files(places)
    check_alike(files, config.exclude)
    sources = {split: _Source.open(places[split], found) for split, found in files.items()}
    kinds = _check_columns(config, sources)
    with TrainingSetWriter(
        folder,
        rows_per_part=config.rows_per_part,
        row_group_rows=config.row_group_rows,
        source=config.model_dump(mode="json"),
    ) as writer:
        features = _fit(config, sources["train"], kinds)
        total = sum(source.rows for source in sources.values())
        done = 0
        for split, source in sources.items():
            unknown = dict.fromkeys((f.name for f in features), 0)
            for table in _encoded(config, features, source, kinds, done):
                for name in unknown:
                    unknown[name] += _count_unknown(table[name])
                writer.write(split, table)
                done += len(table)
                if progress is not None:
                    progress(done, total)
            if split != "train":
                _warn_of_drift(split, {name: n / source.rows for name, n in unknown.items()})
        return writer.publish(_schema(config, features), left_out)


@dataclass(frozen=True)
class _Source:
    """A Parquet file, or a folder of them."""

    path: Path
    dataset: ds.Dataset
    rows: int

    @classmethod
    def open(cls, path: Path, files: list[Path]) -> "_Source":
        try:
            dataset = ds.dataset([str(file) for file in files], format="parquet")
            rows = dataset.count_rows()
        except (FileNotFoundError, pa.ArrowException) as error:
            raise DataError(
                f"{path} can't be read as Parquet ({_reason(error)}); change ingest.path or "
                "ingest.splits"
            ) from None
        if not rows:
            raise DataError(f"{path} has no rows; change ingest.path or ingest.splits")
        return cls(path, dataset, rows)

    @contextlib.contextmanager
    def errors_named(self) -> Iterator[None]:
        """Arrow's errors within, as one line that names the file."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.path} can't be read ({_reason(error)}); mend it, or name the column in "
                "ingest.exclude"
            ) from None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())


def _check_columns(config: TabularIngest, sources: dict[str, _Source]) -> dict[str, str]:
    """The kind of every column that is read, by name."""
    names = sources["train"].dataset.schema.names
    labels = list(config.tasks.values())
    group = [config.group_column] if config.group_column else []
    for column in [*config.categorical, *config.exclude, *labels, *group]:
        if column not in names:
            raise DataError(f"ingest: {unknown_name('column', column, names)}")
    kinds = {name: _kind(name, sources) for name in names if name not in config.exclude}
    for name in labels:
        if kinds[name] == "text":
            raise DataError(f"label column {name!r} is text, expected 0 and 1; convert it")
    for name in group:
        if kinds[name] != "integers":
            raise DataError(
                f"ingest.group_column: {name!r} holds {kinds[name]}, expected integers; set it to "
                "null if rows have no group"
            )
    taken = {_TIME, *(_label(task) for task in config.tasks), *(group or [_ROW])}
    for name in kinds.keys() - set(labels) - set(group):
        if name in taken or not is_free(name):
            raise DataError(
                f"column {name!r} can't be a feature: the name is taken or has a dot; rename it, "
                "or name it in ingest.exclude"
            )
    return kinds


def _kind(name: str, sources: dict[str, _Source]) -> str:
    """What a column holds in every split: a key of `_TYPES`; integers and numbers are numbers."""
    kinds = {}
    for split, source in sources.items():
        found = source.dataset.schema.field(name).type
        if pa.types.is_dictionary(found):
            found = found.value_type
        kinds[split] = _kind_of_type(found)
        if kinds[split] is None:
            raise DataError(
                f"column {name!r} is {found}, expected text, flags or numbers; name it in "
                "ingest.exclude"
            )
    distinct = set(kinds.values())
    if distinct == {"integers", "numbers"}:
        return "numbers"
    if len(distinct) > 1:
        shown = ", ".join(f"{kind} in {split}" for split, kind in kinds.items())
        raise DataError(f"column {name!r} holds {shown}; make them alike, or exclude it")
    return str(distinct.pop())


def _kind_of_type(found: pa.DataType) -> str | None:
    tests = {
        "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        "flags": (pa.types.is_boolean,),
        "integers": (pa.types.is_integer,),
        "numbers": (pa.types.is_floating, pa.types.is_decimal),
    }
    return next((k for k, checks in tests.items() if any(test(found) for test in checks)), None)


def _column(table: pa.Table, name: str, kind: str) -> pa.Array:
    """A column in its kind's type; NaN and infinite numbers become null."""
    values = table[name].combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    values = values.cast(_TYPES[kind], safe=kind != "numbers")
    if kind != "numbers":
        return values
    floats = values.to_numpy(zero_copy_only=False)
    return pa.array(floats, mask=~(np.abs(floats) <= np.finfo(np.float32).max))


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
        return pa.array(self.vocabulary.encode(values))


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


def _as_floats(values: pa.Array) -> npt.NDArray[np.float64]:
    floats = values.cast(pa.float64(), safe=False)
    return pc.fill_null(floats, np.nan).to_numpy(zero_copy_only=False)


def _fit(config: TabularIngest, train: _Source, kinds: dict[str, str]) -> list[_Encoder]:
    """One encoder per feature column, in the file's order."""
    beside = {*config.tasks.values(), config.group_column}
    encoders: list[_Encoder] = []
    for name, kind in kinds.items():
        if name in beside:
            continue
        with train.errors_named():
            values = _column(train.dataset.to_table(columns=[name]), name, kind)
        if kind in ("integers", "numbers") and name not in config.categorical:
            boundaries = quantile_boundaries(_as_floats(values), config.num_buckets)
            encoders.append(_Numbers(name, boundaries))
        else:
            encoders.append(_Categories(name, Vocabulary.fit(values)))
    if not encoders:
        raise DataError("no column is left for a feature; take some out of ingest.exclude")
    return encoders


def _encoded(
    config: TabularIngest,
    features: list[_Encoder],
    source: _Source,
    kinds: dict[str, str],
    first_row: int,
) -> Iterator[pa.Table]:
    """The training set's columns, chunk by chunk; `first_row` counts the rows of earlier splits."""
    row = 0  # of the source
    with source.errors_named():
        for batch in source.dataset.to_batches(columns=list(kinds), batch_size=ROWS_PER_CHUNK):
            if not batch.num_rows:
                continue
            chunk = pa.table({name: _column(pa.table(batch), name, k) for name, k in kinds.items()})
            columns = {f.name: f.encode(chunk[f.name].combine_chunks()) for f in features}
            columns |= _labels(config, chunk, source.path, row)
            columns |= _group(config, chunk, first_row + row)
            columns[_TIME] = pa.array(np.zeros(len(chunk), np.int64))
            row += len(chunk)
            yield pa.table(columns)


def _labels(
    config: TabularIngest, chunk: pa.Table, path: Path, first_row: int
) -> dict[str, pa.ChunkedArray]:
    for name in config.tasks.values():
        if pa.types.is_boolean(chunk[name].type):
            place = chunk.column_names.index(name)
            chunk = chunk.set_column(place, name, chunk[name].cast(pa.int8()))
    labels = check_flags(chunk, config.tasks.values(), path, first_row=first_row)
    return {_label(task): labels[column] for task, column in config.tasks.items()}


def _group(config: TabularIngest, chunk: pa.Table, first_row: int) -> dict[str, pa.Array]:
    name = config.group_column
    if not name:
        return {_ROW: pa.array(np.arange(first_row, first_row + len(chunk)))}
    if chunk[name].null_count:
        raise DataError(
            f"ingest.group_column: {name!r} has nulls, expected none; fill them, or set the key to "
            "null if rows have no group"
        )
    return {name: chunk[name]}


def _count_unknown(values: pa.ChunkedArray) -> int:
    """Rows that nothing is known about: id 0, or null."""
    if pa.types.is_integer(values.type):
        return int(np.count_nonzero(values.to_numpy() == 0))
    return int(values.null_count)


def _warn_of_drift(split: str, shares: dict[str, float]) -> None:
    drifted = [f"{name} ({share:.0%})" for name, share in shares.items() if share > _DRIFT]
    if drifted:
        log.warning(
            "%s: null or unseen in train: %s of the rows; name them in ingest.exclude unless that "
            "is meant",
            split,
            ", ".join(drifted),
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
