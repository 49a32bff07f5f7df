"""Decides whether ids are integers or texts, for a whole ingest before any row is cleaned.

The first rule that applies to a column decides; the order of the files has no effect:

    checks.COLUMN.type   the type in the config
    the training set     the type when the set was made
    Parquet              text if any file has text: numbers become the text of their integer
    CSV                  text if more than `max_bad_share` of all values aren't integers (007 isn't)
    only nulls           the type of the other columns of the table; otherwise integers
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.config.logs import LogsIngest
from infnet_dist.errors import DataError
from infnet_dist.ingest.column_names import check_columns
from infnet_dist.ingest.convert.arrays import family
from infnet_dist.ingest.convert.ids import spellings
from infnet_dist.ingest.convert.kinds import convert
from infnet_dist.ingest.logs.context import IngestContext
from infnet_dist.ingest.logs.reading.fragments import Fragment, file_schema, read_chunks
from infnet_dist.ingest.logs.reading.joins import side_columns
from infnet_dist.ingest.logs.stages.runner import Outcome

IdType = Literal["int", "text"]
# By column and spelling: the number of values, and the first one.
Spellings = dict[str, dict[str, tuple[int, str]]]
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True)
class CountSpellings:
    """The task of one CSV file: counts the spellings of its ids."""

    config: LogsIngest
    fragment: Fragment
    columns: tuple[str, ...]

    def run(self) -> dict[str, Any]:
        """`Spellings` of the columns; empty if unreadable, which stage partition reports."""
        found: Spellings = {}
        try:
            for raw in read_chunks(self.config, self.fragment, self.columns):
                for name in self.columns:
                    add_spellings(found, name, id_texts(self.config, name, raw[name]))
        except (OSError, pa.ArrowException):
            return {}
        return found


def id_texts(config: LogsIngest, name: str, column: pa.ChunkedArray) -> pa.Array:
    """The ids of a column as texts, without nulls; items of lists one by one."""
    if name not in config.lists:
        return convert(column, "text")[0].drop_null()
    lists, _ = convert(column, "texts", separator=config.lists[name].separator)
    return lists.flatten().drop_null()


def add_spellings(found: Spellings, name: str, texts: pa.Array) -> None:
    """Add the spellings of the texts of a column."""
    known = found.setdefault(name, {})
    for spelling, (number, example) in spellings(texts).items():
        before, first = known.get(spelling, (0, example))
        known[spelling] = (before + number, first)


@dataclass
class _Evidence:
    """The types and spellings in one column of all files."""

    numbers: bool = False
    texts: bool = False
    written: dict[str, int] = field(default_factory=dict)

    def see_type(self, found: pa.DataType) -> None:
        what = family(found.value_type if family(found) == "list" else found)
        self.texts |= what == "text"
        self.numbers |= what not in ("text", "null")

    def see_spellings(self, found: Mapping[str, Sequence[Any]]) -> None:
        for spelling, (number, _) in found.items():
            self.written[spelling] = self.written.get(spelling, 0) + number

    def id_type(self, max_bad_share: float) -> IdType | None:
        total = sum(self.written.values())
        if self.texts or self.written.get("text", 0) > max_bad_share * total:
            return "text"
        return "int" if self.numbers or total else None


def find_id_types(context: IngestContext, found: Sequence[Fragment]) -> dict[str, IdType]:
    """Types of ids by column.

    Raises:
        DataError: the type in the training set differs from the type in the config.
    """
    config = context.config
    ids = id_columns(config)
    known: dict[str, IdType] = {
        name: config.checks[name].type  # type: ignore[misc]
        for name in ids
        if name in config.checks and config.checks[name].type is not None
    }
    state = next((fragment for fragment in found if fragment.state), None)
    if state is not None and (schema := file_schema(config, state)) is not None:
        for name in ids:
            evidence = _Evidence()
            evidence.see_type(schema.field(name).type)
            if _had_only_nulls(context, name):
                continue
            before = evidence.id_type(0.0) or "int"
            if known.setdefault(name, before) != before:
                raise DataError(
                    f"{context.folder} has ids of column {name!r} as {before}, but ingest.checks."
                    f"{name}.type is {known[name]}; set it to {before}, or make a new set"
                )
    open_columns = tuple(name for name in ids if name not in known)
    return known | _by_files(context, [f for f in found if not f.state], open_columns)


def _had_only_nulls(context: IngestContext, column: str) -> bool:
    """Whether the training set has no value of the table of the column yet."""
    table = table_of(context.config, column)
    path = context.last_vocabulary(table) if table else None
    return path is not None and path.exists() and not pq.read_metadata(path).num_rows


def id_columns(config: LogsIngest) -> tuple[str, ...]:
    """Id columns: the user, those of tables, and other columns of `unique`."""
    others = {*config.dense, *config.flags, config.time.column, config.watch_time}
    named = dict.fromkeys([config.user, *config.ids, *config.lists, *config.unique])
    ids = {config.user, *config.ids, *config.lists}
    return tuple(name for name in named if name in ids or name not in others)


def _by_files(
    context: IngestContext, found: Sequence[Fragment], columns: tuple[str, ...]
) -> dict[str, IdType]:
    config = context.config
    evidence = {name: _Evidence() for name in columns}
    here = tuple(name for name in columns if name not in config.joined)
    if here:
        for outcome in _spellings_of_files(context, found, here):
            for name, counts in outcome.items():
                evidence[name].see_spellings(counts)
        for schema in _schemas(config, found):
            for name in set(here) & set(schema.names):
                evidence[name].see_type(schema.field(name).type)
    for name, column, is_text in side_columns(config):
        if name in evidence and not is_text:
            evidence[name].see_type(column.type)
        elif name in evidence:
            counted: Spellings = {}
            add_spellings(counted, name, id_texts(config, name, column))
            evidence[name].see_spellings(counted[name])
    types = {name: e.id_type(config.max_bad_share) for name, e in evidence.items()}
    tables = {name: table_of(config, name) for name in columns}
    of_table = {tables[name]: kind for name, kind in types.items() if kind and tables[name]}
    return {name: kind or of_table.get(tables[name]) or "int" for name, kind in types.items()}


def table_of(config: LogsIngest, column: str) -> str | None:
    """The table of the values of a column; None if it has none."""
    if column in config.lists:
        return config.lists[column].table
    return config.ids.get(column)


def _spellings_of_files(
    context: IngestContext, found: Sequence[Fragment], columns: tuple[str, ...]
) -> Sequence[Outcome]:
    if context.config.format != "csv":
        return []
    tasks = {f"{f.number:05d}": CountSpellings(context.config, f, columns) for f in found}
    return context.runner.run("types", tasks)


def _schemas(config: LogsIngest, found: Sequence[Fragment]) -> Iterator[pa.Schema]:
    """The schema of each file, after a check of its columns; none for CSV."""
    if config.format == "csv":
        return
    files = {fragment.file.path: fragment for fragment in found}
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        schemas = pool.map(lambda fragment: file_schema(config, fragment), files.values())
        for path, schema in zip(files, schemas, strict=True):
            if schema is not None:
                check_columns(schema.names, config.in_files, path)
                yield schema


def check_spellings(
    config: LogsIngest, by_file: Sequence[tuple[str, Mapping[str, Mapping[str, Sequence[Any]]]]]
) -> None:
    """Raise DataError if texts of one table may be one integer, written in two ways.

    Args:
        config: contains the tables of the columns.
        by_file: paths, each with `Spellings` of the columns whose type was inferred as text.
    """
    first: dict[str, dict[str, tuple[str, str, str]]] = {}
    for path, found in by_file:
        for column, forms in found.items():
            table = first.setdefault(table_of(config, column) or column, {})
            for form in {"integer", "other"} & forms.keys():
                table.setdefault(form, (forms[form][1], column, path))
    for table in first.values():
        if len(table) == 2:
            (plain, column, path), (other, other_column, other_path) = (
                table["integer"],
                table["other"],
            )
            raise DataError(
                f"column {other_column!r} of {other_path} contains the text {other!r}, column "
                f"{column!r} of {path} contains {plain!r}: one id may be written in two ways; set "
                f"ingest.checks.{other_column}.type: int to read both as integers, text to keep "
                "them distinct, or write them in the same way"
            )
