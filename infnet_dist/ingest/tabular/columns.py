"""Columns of tabular sets: their kinds, decided by all files, and their rows."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from infnet_dist.config.ingest import TabularIngest
from infnet_dist.errors import DataError
from infnet_dist.ingest.convert.arrays import (
    Mask,
    UnfitColumnError,
    family,
    list_items,
    mask,
    shown,
)
from infnet_dist.ingest.convert.kinds import EXPECTED, Kind, convert

ROWS_PER_CHUNK = 65_536
_FLOATS_PER_CHUNK = 2**22  # of vectors; while they are converted, each takes about 32 bytes
_FAMILIES = {  # contents of a column by family of its Arrow type
    "text": "text",
    "bool": "flags",
    "integer": "integers",
    "float": "numbers",
    "decimal": "numbers",
}
_NOTHING = "nulls"  # a column with only nulls in a file; other files decide


@dataclass(frozen=True)
class Source:
    """A Parquet file or a folder of Parquet files, whose types may differ."""

    path: Path
    fragments: tuple[ds.ParquetFileFragment, ...]
    rows: int

    @classmethod
    def open(cls, path: Path, files: Sequence[Path]) -> "Source":
        """Open the files of a split; `path` is for messages.

        Raises:
            DataError: a file can't be read, or all have no rows.
        """
        try:
            dataset = ds.dataset([str(file) for file in files], format="parquet")
            rows = dataset.count_rows()
            fragments = tuple(dataset.get_fragments())
        except (FileNotFoundError, pa.ArrowException) as error:
            raise DataError(
                f"{path} can't be read as Parquet ({_reason(error)}); change ingest.path or "
                "ingest.splits"
            ) from None
        if not rows:
            raise DataError(f"{path} has no rows; change ingest.path or ingest.splits")
        return cls(path, fragments, rows)

    @property
    def names(self) -> list[str]:
        """Columns of the first file, in order; the other files must have them too."""
        return list(self.fragments[0].physical_schema.names)

    def types(self, name: str) -> dict[str, pa.DataType]:
        """The type of a column in each file.

        Raises:
            DataError: a file lacks the column.
        """
        found = {}
        for fragment in self.fragments:
            if name not in fragment.physical_schema.names:
                raise DataError(
                    f"{fragment.path} lacks column {name!r}, which others have; add it, or name it "
                    "in ingest.exclude"
                )
            found[fragment.path] = fragment.physical_schema.field(name).type
        return found

    def batches(
        self, columns: list[str], rows_at_once: int | None = None
    ) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        """The rows in order, with their file and the number of the first row in it."""
        for fragment in self.fragments:
            row = 0
            with self.errors_named():
                for batch in fragment.to_batches(
                    columns=columns, batch_size=rows_at_once or ROWS_PER_CHUNK
                ):
                    if batch.num_rows:
                        yield fragment.path, row, batch
                        row += batch.num_rows

    @contextlib.contextmanager
    def errors_named(self) -> Iterator[None]:
        """Convert errors of Arrow to one line that names the file."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.path} can't be read ({_reason(error)}); repair it, or name the column in "
                "ingest.exclude"
            ) from None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())


def weights_name(name: str) -> str:
    """Column of the training set with the weights of a bag."""
    return f"{name}_weights"


def kind_of_column(name: str, sources: dict[str, Source], *, lists: bool = False) -> str:
    """The contents of a column in all files; integers mixed with numbers are numbers.

    Args:
        name: name of the column.
        sources: the files of each split.
        lists: whether it contains lists, or texts that are lists: the contents are their items'.

    Raises:
        DataError: the column has only nulls, an unsuitable type, or different contents.
    """
    first: dict[str, str] = {}  # by contents, the first such file
    for split, source in sources.items():
        for path, found in source.types(name).items():
            if not (contents := _contents(found, lists)):
                expected = "lists of text, flags or numbers" if lists else "text, flags or numbers"
                hint = ", ingest.bags or ingest.vectors" if family(found) == "list" else ""
                raise DataError(
                    f"{path}: column {name!r} is {found}, expected {expected}; name it in "
                    f"ingest.exclude{hint}"
                )
            first.setdefault(contents, f"{split} ({path})")
    if not first.keys() - {_NOTHING}:
        raise DataError(
            f"column {name!r} contains only nulls in all files of {', '.join(sources)}; name it in "
            "ingest.exclude"
        )
    first.pop(_NOTHING, None)
    if first.keys() == {"integers", "numbers"}:
        return "numbers"
    if len(first) > 1:
        kinds = ", ".join(f"{kind} in {where}" for kind, where in first.items())
        raise DataError(
            f"column {name!r} contains {kinds}; unify the types, or name it in ingest.exclude"
        )
    return next(iter(first))


def _contents(found: pa.DataType, lists: bool) -> str:
    """The contents of a type; empty if it is unsuitable."""
    what = family(found)
    if lists and what == "list":
        plain_type = found.storage_type if isinstance(found, pa.BaseExtensionType) else found
        what = family(plain_type.value_type)
    elif lists and what != "text" and what != "null":
        return ""
    return _NOTHING if what == "null" else _FAMILIES.get(what, "")


@dataclass(frozen=True)
class Columns:
    """Conversions of the columns, and counts of values that float32 can't represent.

    Attributes:
        kinds: `Kind` by column.
        config: roles of the columns.
        not_finite: by dense column, number of infinite or too large values, which become null.
    """

    kinds: dict[str, Kind]
    config: TabularIngest
    not_finite: Counter[str]

    @classmethod
    def of(cls, config: TabularIngest, found: Mapping[str, str]) -> "Columns":
        """Conversions by contents: "labels", "lists", or the result of `kind_of_column`."""
        kinds: dict[str, Kind] = {}
        for name, contents in found.items():
            if contents == "labels":
                kinds[name] = "flag"
            elif contents == "lists":
                kinds[name] = "floats"
            elif name in config.bags:
                kinds[name] = "texts" if contents == "text" else "ints"
            elif name == config.sample_weight:
                kinds[name] = "float"
            elif contents == "text":
                kinds[name] = "text"
            elif contents == "flags" or name in (*config.categorical, config.group_column):
                kinds[name] = "int"
            else:
                kinds[name] = "float"
        return cls(kinds, config, Counter())

    def convert(self, name: str, values: pa.Array, path: str, first_row: int) -> pa.Array:
        """Convert values exactly; NaN and numbers that float32 can't represent become null.

        Those of vectors and weights are invalid.

        Raises:
            DataError: a value is invalid; names file, column and row.
        """
        kind = self.kinds[name]
        try:
            converted, unfit = convert(values, kind, separator=self._separator(name))
        except UnfitColumnError as error:
            raise DataError(
                f"{error.at(name, path, first_row)}; convert it, or name it in ingest.exclude"
            ) from None
        expected, weights = EXPECTED[kind], self.config.weight_columns.values()
        if kind == "flag" or name == self.config.sample_weight:
            unfit = unfit | mask(pc.is_null(converted))
        if name in (self.config.sample_weight, *weights):
            unfit, expected = unfit | _any_below_0(converted), f"{expected}, not below 0"
        if name in self.config.vectors:
            dim = self.config.vectors[name].dim
            unfit = unfit | mask(pc.not_equal(pc.list_value_length(converted), dim))
            expected = f"{dim} finite numbers of float32, ingest.vectors.{name}.dim"
        if kind == "float" and name != self.config.sample_weight:
            self.not_finite[name] += int(unfit.sum())
        elif unfit.any():
            row = int(unfit.argmax())
            raise DataError(
                f"{path}: column {name} is {shown(values[row])} in row {first_row + row} (from 0), "
                f"expected {expected}; repair or remove the row"
                + (", or write codes as text" if kind in ("int", "ints") else "")
            )
        return converted

    @property
    def rows_at_once(self) -> int:
        """Number of rows that are read and converted at once: fewer if vectors are wide."""
        numbers = sum(vector.dim for vector in self.config.vectors.values())
        return min(max(_FLOATS_PER_CHUNK // max(numbers, 1), 64), ROWS_PER_CHUNK)

    def _separator(self, name: str) -> str:
        """The separator of items in text."""
        lists = {weights: name for name, weights in self.config.weight_columns.items()}
        name = lists.get(name, name)
        found = self.config.bags.get(name) or self.config.vectors.get(name)
        return found.separator if found is not None else "|"

    def check_parallel(self, chunk: Mapping[str, pa.Array], path: str, first_row: int) -> None:
        """Check that bags have as many weights as items.

        Raises:
            DataError: one hasn't; names file, columns and row.
        """
        for name, weights in self.config.weight_columns.items():
            lengths, others = (list_items(chunk[column])[1] for column in (name, weights))
            if (lengths != others).any():
                row = int((lengths != others).argmax())
                raise DataError(
                    f"{path}: column {weights!r} has {others[row]} weights in row "
                    f"{first_row + row} (from 0), but {name!r} has {lengths[row]} items; repair or "
                    "remove the row"
                )


def _any_below_0(values: pa.Array) -> Mask:
    """Rows that are below 0, or lists with such an item."""
    if not pa.types.is_list(values.type):
        return mask(pc.less(values, 0))
    items, lengths = list_items(values)
    rows = np.repeat(np.arange(len(values)), lengths)
    return np.bincount(rows, mask(pc.less(items, 0)), len(values)) > 0
