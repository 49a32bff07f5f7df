"""Checks a split before training: columns, types, ids, labels, dense features and weights.

Integers are checked by the statistics in Parquet footers, without reading data; columns without
statistics, and floats (whose statistics ignore NaN), are read, except for vectors, which are large.
This finds most faults before the first step; decoded values are checked again (`values.py`). Each
rank checks its share of the parts; call through `WorkerContext.together`, so that all ranks fail
together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from infnet_dist.data.checks.ranges import AllowedRange, allowed_ranges, value_bounds
from infnet_dist.data.checks.values import check_dense, check_types, check_weights, weight_columns
from infnet_dist.data.manifest import Manifest, Part
from infnet_dist.data.part_files import ARROW, OpenedPart, OpenPart, PartFile, open_checked
from infnet_dist.errors import DataError
from infnet_dist.schema import Schema


def check_enough_rows(rows: int, *, split: str, num_workers: int, batch_size: int) -> None:
    """Raise DataError if `rows` don't fill one step of all workers."""
    if rows < num_workers * batch_size:
        raise DataError(
            f"{split} has {rows} rows, too few for one step of {num_workers} workers x "
            f"{batch_size} rows; lower data.batch_size or scaling.num_workers"
        )


def check_columns(
    folder: Path, manifest: Manifest, schema: Schema, open_part: OpenPart = ARROW
) -> None:
    """Check that the first part of every split has the columns and types of `schema`.

    Raises:
        DataError: a column is missing or has another type; names file, column and types.
    """
    for split in manifest.splits.values():
        with _opened(folder, split.parts[0], open_part) as part:
            check_types(part.file.schema_arrow, schema, str(folder / split.parts[0].file))


def check_parts(folder: Path, manifest: Manifest) -> None:
    """Check that all parts match the manifest, without reading their rows.

    Raises:
        DataError: a part is missing or has changed; names the file.
    """
    for split in manifest.splits.values():
        for part in split.parts:
            with _opened(folder, part):
                pass


def check_split(
    folder: Path,
    manifest: Manifest,
    schema: Schema,
    *,
    split: str,
    rank: int,
    world_size: int,
    open_part: OpenPart = ARROW,
) -> list[str]:
    """Check this rank's share of a split's parts.

    Returns:
        The fingerprints of these parts.

    Raises:
        DataError: a part doesn't match; names file, row group, column and the offending value.
    """
    parts = manifest.split(split).parts
    ranges = list(allowed_ranges(schema))
    fingerprints = []
    for part in parts[rank::world_size]:
        with _opened(folder, part, open_part) as found:
            file = found.file
            fingerprints.append(found.fingerprint)
            check_types(file.schema_arrow, schema, str(folder / part.file))
            groups = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            if groups != part.rows_in_file:
                raise DataError(
                    f"{folder / part.file} has {sum(groups)} rows in {len(groups)} row groups, the "
                    f"manifest says {sum(part.rows_in_file)} in {len(part.rows_in_file)}; ingest "
                    "again"
                )
            for group in range(file.num_row_groups):
                _check_integers(file, part, group, ranges)
                _check_floats(file, part, group, schema)
    return fingerprints


def count_orphan_positives(
    folder: Path, manifest: Manifest, schema: Schema, *, task: str, under: str
) -> tuple[int, int]:
    """Positives of `task` in train with a negative `under`, and those with a known `under`.

    Only the first million rows are counted.
    """
    columns = {t.name: t.column for t in schema.tasks}
    without = positives = rows = 0
    for part in manifest.split("train").parts:
        with _opened(folder, part) as found:
            for group in range(len(part.row_groups)):
                table = found.read_group(group, [columns[task], columns[under]])
                known = table.drop_null()
                child, parent = (known[columns[name]].to_numpy() > 0 for name in (task, under))
                without += int((child & ~parent).sum())
                positives += int(child.sum())
            rows += part.rows
        if rows >= _MOST_ROWS_COUNTED:
            break
    return without, positives


@contextmanager
def _opened(folder: Path, part: Part, open_part: OpenPart = ARROW) -> Iterator[OpenedPart]:
    path = folder / part.file
    if not path.is_file():
        raise DataError(f"{path} is missing, but listed in the manifest; ingest again")
    try:
        with open_checked(folder, part, open_part) as found:
            yield found
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}; ingest again") from None


_MOST_ROWS_COUNTED = 1_000_000


def _check_integers(file: PartFile, part: Part, group: int, ranges: list[AllowedRange]) -> None:
    metadata = file.metadata.row_group(group)
    places = {
        metadata.column(i).path_in_schema.split(".")[0]: i for i in range(metadata.num_columns)
    }
    for allowed in ranges:
        place = places.get(allowed.column)
        column = None if place is None else metadata.column(place)
        if column is None or column.physical_type not in ("INT32", "INT64"):
            continue  # Petastorm: a partition folder or an encoded array, checked when it is read
        statistics = column.statistics
        if statistics is not None and statistics.has_min_max and statistics.has_null_count:
            low, high, nulls = statistics.min, statistics.max, statistics.null_count
            if "list" in str(file.schema_arrow.field(allowed.column).type):
                nulls = 0  # statistics count an empty list as a null
        else:
            values = file.read_row_group(group, columns=[allowed.column]).column(allowed.column)
            low, high, nulls = value_bounds(values)
        allowed.check((low, high, nulls), f"{part.file}, row group {group}")


def _check_floats(file: PartFile, part: Part, group: int, schema: Schema) -> None:
    standardised = {feature.column for feature in schema.standardised}
    dense, weights = [feature.column for feature in schema.dense], weight_columns(schema)
    if not dense and not weights:
        return
    table = file.read_row_group(group, columns=[*dict.fromkeys([*dense, *weights])])
    for column in dense:
        where = f"{part.file}, row group {group}, column {column!r}"
        check_dense(table.column(column), where, nullable=column not in standardised)
    for column in weights:
        where = f"{part.file}, row group {group}, column {column!r}"
        check_weights(table.column(column), where)
