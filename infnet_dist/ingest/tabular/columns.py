"""Columns of tabular sets: their kinds, decided by all files, and their rows."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from infnet_dist.config.ingest import TabularIngest
from infnet_dist.errors import DataError
from infnet_dist.ingest.convert.arrays import UnfitColumnError, family, mask, shown
from infnet_dist.ingest.convert.kinds import EXPECTED, Kind, convert

ROWS_PER_CHUNK = 65_536
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

    def batches(self, columns: list[str]) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        """The rows in order, with their file and the number of the first row in it."""
        for fragment in self.fragments:
            row = 0
            with self.errors_named():
                for batch in fragment.to_batches(columns=columns, batch_size=ROWS_PER_CHUNK):
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


def kind_of_column(name: str, sources: dict[str, Source]) -> str:
    """The contents of a column in all files; integers mixed with numbers are numbers.

    Raises:
        DataError: the column has only nulls, an unsuitable type, or different contents.
    """
    first: dict[str, str] = {}  # by contents, the first such file
    for split, source in sources.items():
        for path, found in source.types(name).items():
            contents = _FAMILIES.get(family(found), _NOTHING if family(found) == "null" else "")
            if not contents:
                raise DataError(
                    f"{path}: column {name!r} is {found}, expected text, flags or numbers; name it "
                    "in ingest.exclude"
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


@dataclass(frozen=True)
class Columns:
    """Conversions of the columns, and counts of values that float32 can't represent.

    Attributes:
        kinds: `Kind` by column.
        not_finite: by dense column, number of infinite or too large values, which become null.
    """

    kinds: dict[str, Kind]
    not_finite: Counter[str]

    @classmethod
    def of(cls, config: TabularIngest, found: Mapping[str, str]) -> "Columns":
        """Conversions by contents: "labels", or the result of `kind_of_column`."""
        kinds: dict[str, Kind] = {}
        for name, contents in found.items():
            if contents == "labels":
                kinds[name] = "flag"
            elif contents == "text":
                kinds[name] = "text"
            elif contents == "flags" or name in (*config.categorical, config.group_column):
                kinds[name] = "int"
            else:
                kinds[name] = "float"
        return cls(kinds, Counter())

    def convert(self, name: str, values: pa.Array, path: str, first_row: int) -> pa.Array:
        """Convert values exactly; NaN and numbers that float32 can't represent become null.

        Raises:
            DataError: a value is invalid; names file, column and row.
        """
        kind = self.kinds[name]
        try:
            converted, unfit = convert(values, kind)
        except UnfitColumnError as error:
            raise DataError(
                f"{error.at(name, path, first_row)}; convert it, or name it in ingest.exclude"
            ) from None
        if kind == "flag":
            unfit = unfit | mask(pc.is_null(converted))
        if kind == "float":
            self.not_finite[name] += int(unfit.sum())
        elif unfit.any():
            row = int(unfit.argmax())
            raise DataError(
                f"{path}: column {name} is {shown(values[row])} in row {first_row + row} (from 0), "
                f"expected {EXPECTED[kind]}; repair or remove the row, or write codes as text"
            )
        return converted
