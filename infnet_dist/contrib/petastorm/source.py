"""Data sets written with Petastorm -> a manifest that refers to their files: no row is copied.

All rows are read once, to check them as the reader does (`data.reader: petastorm`) and to collect
facts for the manifest: the largest ids, label means, the time range, boundaries of dense features.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infnet_dist import __version__
from infnet_dist.config.ingest import PetastormIngest
from infnet_dist.contrib.petastorm.part import PetastormPart
from infnet_dist.contrib.petastorm.part_file import PetastormFile, fields_beside
from infnet_dist.data.checks.fingerprint import fingerprint
from infnet_dist.data.checks.ranges import value_bounds
from infnet_dist.data.decode import decode
from infnet_dist.data.manifest import Manifest, Part, Split, write_manifest
from infnet_dist.errors import ConfigError, DataError
from infnet_dist.ingest.column_names import is_free
from infnet_dist.ingest.convert.arrays import family
from infnet_dist.ingest.convert.kinds import convert
from infnet_dist.ingest.encode import quantile_boundaries
from infnet_dist.ingest.tabular.split_files import split_files
from infnet_dist.ingest.writing.parts import NO_TIME, content_hash
from infnet_dist.schema import (
    CategoricalFeature,
    DenseFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
)

_NO_LIMIT = 2**62


def make_training_set(
    config: PetastormIngest, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Write a manifest for Petastorm data sets to `folder`, so that they can be trained on.

    Args:
        config: paths of the data sets and roles of their columns.
        folder: the training set to make: `config.path` itself, or an empty or missing folder.
        progress: called with (rows read, rows in total) after each row group.

    Raises:
        ConfigError: the name of a column can't be the name of a feature.
        DataError: a data set is missing or corrupt, lacks a column, or has an invalid value.
    """
    folder, path = folder.absolute(), config.path.absolute()
    if folder != path and folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} already exists; choose another data.path or remove it")
    _check_names(config)
    files, left_out = split_files(path, config.splits)
    # Bucketised without boundaries: values may be null, as in the final schema.
    limits = defaultdict(lambda: _NO_LIMIT, config.tables)
    facts = _Facts(schema=_schema(config, limits, dict.fromkeys(config.dense, ())))
    total = sum(_rows(file) for found in files.values() for file in found)
    scan = _Scan(config, folder, facts, progress, total)
    splits: dict[str, Split] = {name: scan.split(name, found) for name, found in files.items()}
    schema = _learned_schema(config, facts, splits["train"])
    manifest = Manifest(
        schema_=schema,
        splits=splits,
        source=config.model_dump(mode="json"),
        code_version=__version__,
        content_hash=content_hash(folder, schema, splits),
        files_left_out=left_out,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, manifest)
    return manifest


def _check_names(config: PetastormIngest) -> None:
    """Check the names of features, which become names of modules."""
    for name in [*config.categorical, *config.dense, *config.sequences]:
        if not is_free(name):
            raise ConfigError(
                f"ingest: {name!r} can't be a feature: the name is reserved or has a dot; rename it"
            )


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"can't read {path}: {error}; write it again") from None


def _rows(path: Path) -> int:
    with _errors_named(path):
        return int(pq.read_metadata(path).num_rows)


@dataclass
class _Facts:
    """Facts from the rows. `schema` has no limit of ids for tables of unknown size."""

    schema: Schema
    largest_ids: dict[str, int] = field(default_factory=dict)
    unknown_labels: set[str] = field(default_factory=set)
    dense: dict[str, list[npt.NDArray[np.float32]]] = field(
        default_factory=lambda: defaultdict(list)
    )


class _Scan:
    """Reads data sets by row group."""

    def __init__(
        self,
        config: PetastormIngest,
        folder: Path,
        facts: _Facts,
        progress: Callable[[int, int], None] | None,
        total: int,
    ) -> None:
        self._config = config
        self._folder = folder
        self._facts = facts
        self._progress = progress
        self._total = total
        self._done = 0

    def split(self, name: str, files: list[Path]) -> Split:
        """Read all rows of a split."""
        labels: dict[str, list[tuple[float, int]]] = defaultdict(list)  # sum, number
        parts, times = [], list[int]()
        for path in files:
            with (
                _errors_named(path),
                pa.OSFile(str(path)) as source,
                PetastormPart(path, source, schema=self._facts.schema) as part,
            ):
                identity = fingerprint(source)
                rows = [part.metadata.row_group(i).num_rows for i in range(part.num_row_groups)]
                for index, count in enumerate(rows):
                    table = part.read_row_group(index, self._facts.schema.columns)
                    self._collect(table, name, f"{path}, row group {index}")
                    for task in self._facts.schema.tasks:
                        known = table[task.column].drop_null()
                        labels[task.name].append((pc.sum(known).as_py() or 0.0, len(known)))
                    times += self._times(path, index)
                    self._report(count)
            inside = path.is_relative_to(self._folder)
            file = str(path.relative_to(self._folder) if inside else path)
            parts.append(
                Part(file=file, rows=sum(rows), row_groups=tuple(rows), fingerprint=identity)
            )
        sums = {task: np.sum(pairs, axis=0) for task, pairs in labels.items()}
        if not sum(part.rows for part in parts):
            raise DataError(f"{files[0].parent} has no rows; change ingest.path or ingest.splits")
        return Split(
            rows=sum(part.rows for part in parts),
            time_range_ms=(min(times), max(times)) if times else NO_TIME,
            base_rates={task: float(s / max(n, 1)) for task, (s, n) in sums.items()},
            labels={task: int(n) for task, (_, n) in sums.items()},
            parts=tuple(parts),
        )

    def _collect(self, table: pa.Table, split: str, where: str) -> None:
        facts = self._facts
        decode(table, facts.schema, where)  # raises for invalid values
        for feature in facts.schema.categorical:
            self._see_ids(feature.table, table[feature.column])
        for sequence in facts.schema.sequences:
            for attribute in sequence.attributes:
                self._see_ids(attribute.table, table[attribute.column])
        for column in self._config.dense:
            if split == "train":
                facts.dense[column].append(table[column].drop_null().to_numpy())
        for task in facts.schema.tasks:
            if table[task.column].null_count:
                facts.unknown_labels.add(task.name)

    def _see_ids(self, table: str, ids: pa.ChunkedArray) -> None:
        largest = value_bounds(ids)[1]
        if largest is not None:
            known = self._facts.largest_ids
            known[table] = max(known.get(table, 0), largest)

    def _times(self, path: Path, index: int) -> list[int]:
        """First and last time of a row group, in epoch milliseconds."""
        column = self._config.time_column
        if column is None:
            return []
        with PetastormFile(path, fields_beside(path)) as file:
            times = file.read_row_group(index, [column])[column]
        if family(times.type) not in ("timestamp", "integer"):
            raise DataError(
                f"{path}: ingest.time_column {column!r} is {times.type}, expected integers or "
                "timestamps; set it to null if there is no time"
            )
        low, high, _ = value_bounds(convert(times, "time")[0])
        return [time for time in (low, high) if time is not None]

    def _report(self, rows: int) -> None:
        self._done += rows
        if self._progress is not None:
            self._progress(self._done, self._total)


def _learned_schema(config: PetastormIngest, facts: _Facts, train: Split) -> Schema:
    sizes = {table: facts.largest_ids.get(table, 0) + 1 for table in _table_names(config)}
    boundaries = {
        column: quantile_boundaries(
            np.concatenate(facts.dense[column]).astype(np.float64), config.num_buckets
        )
        for column in config.dense
    }
    draft = _schema(config, sizes | config.tables, boundaries)
    tasks = []
    for task in draft.tasks:
        mean_ms = train.base_rates[task.name] if task.kind == "watch_time" else 1.0
        nullable = task.name in facts.unknown_labels
        tasks.append(task.model_copy(update={"mean_ms": mean_ms or 1.0, "nullable": nullable}))
    return draft.model_copy(update={"tasks": tuple(tasks)})


def _table_names(config: PetastormIngest) -> list[str]:
    names = list(config.categorical.values())
    for sequence in config.sequences.values():
        names += sequence.attributes.values()
    return list(dict.fromkeys(names))


def _schema(
    config: PetastormIngest,
    sizes: Mapping[str, int],
    boundaries: Mapping[str, tuple[float, ...]] | None = None,
) -> Schema:
    """The schema that `config` declares; dense features without boundaries are standardised."""
    tables = [
        Table(name=name, num_embeddings=sizes[name], raw=name in config.raw_tables)
        for name in _table_names(config)
    ]
    for name, cuts in (boundaries or {}).items():
        tables.append(Table(name=name, num_embeddings=len(cuts) + 2))
    return Schema(
        tables=tuple(tables),
        categorical=tuple(
            CategoricalFeature(name=column, table=table, column=column)
            for column, table in config.categorical.items()
        ),
        sequences=tuple(
            SequenceFeature(
                name=name,
                attributes=tuple(
                    SequenceAttribute(name=column, table=table, column=column)
                    for column, table in sequence.attributes.items()
                ),
                max_length=sequence.max_length,
                time_gap_column=sequence.time_gap_column,
            )
            for name, sequence in config.sequences.items()
        ),
        dense=tuple(
            DenseFeature(name=column, column=column, boundaries=(boundaries or {}).get(column))
            for column in config.dense
        ),
        tasks=tuple(
            Task(name=name, column=column, kind=kind, nullable=True)
            for kind, columns in (("binary", config.tasks), ("watch_time", config.watch_times))
            for name, column in columns.items()
        ),
        group_column=config.group_column,
        time_column=config.time_column or "",
    )
