"""Raw rows -> typed rows that hold what the config declares, and bad rows with the reason.

What is tested of every row, in this order; the first breach is its reason:

    every column   its type; then `checks`: nulls, min, max, allowed
    time           between 1990 and 2100, not far ahead of its file; `time.monotone`; later than
                   what the training set holds already
    flags          0 or 1
    numbers        finite (NaN is null); watch time 0 or more
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.errors import ConfigError, DataError
from infnet_dist.ingest_config import Check, LogsIngest

Kind = Literal["time", "int", "text", "ints", "texts", "number", "flag", "watch_time"]
Mask = npt.NDArray[np.bool_]

TYPES: dict[str, pa.DataType] = {
    "time": pa.int64(),
    "int": pa.int64(),
    "text": pa.large_string(),
    "ints": pa.list_(pa.int64()),
    "texts": pa.list_(pa.large_string()),
    "number": pa.float64(),
    "flag": pa.int8(),
    "watch_time": pa.int64(),
}
_EXPECTED = {
    "time": "a time",
    "int": "an integer",
    "text": "text",
    "ints": "a list of integers",
    "texts": "a list of texts",
    "number": "a number",
    "flag": "0 or 1",
    "watch_time": "milliseconds",
}
_PER_MS = {"s": 1e-3, "ms": 1.0, "us": 1e3, "ns": 1e6}
_EARLIEST_MS, _LATEST_MS = 631_152_000_000, 4_102_444_800_000  # 1990 and 2100
_INTEGER = r"^\s*[+-]?\d{1,19}\s*$"
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


@dataclass(frozen=True)
class Rules:
    """What `clean` tests; picklable.

    Attributes:
        kinds: by column, in the order of the typed rows.
        checks: by column.
        time_column: one of the columns.
        time_unit: of integers in it.
        max_ahead_h: hours that a row may be later than its file's last change; None: any.
        monotone: whether times must not fall within a file.
        after_ms: rows must be later, epoch ms; None: no bound.
    """

    kinds: dict[str, Kind]
    checks: dict[str, Check]
    time_column: str
    time_unit: str
    max_ahead_h: float | None = None
    monotone: bool = False
    after_ms: int | None = None

    @property
    def schema(self) -> pa.Schema:
        """Columns and types of good rows."""
        return pa.schema({name: TYPES[kind] for name, kind in self.kinds.items()})


def make_rules(config: LogsIngest, found: pa.Schema | None, after_ms: int | None) -> Rules:
    """The rules of a config; ids of undeclared type are what they are in `found` (None: integers).

    Raises:
        ConfigError: a column has two roles that don't agree.
    """
    kinds: dict[str, Kind] = {config.time.column: "time"}
    for names, kind in (
        (config.numbers, "number"),
        ([config.watch_time] if config.watch_time else [], "watch_time"),
        (config.flags, "flag"),
    ):
        for name in names:
            if name in kinds:
                raise ConfigError(f"ingest: column {name!r} is {kinds[name]} and {kind}; name one")
            kinds[name] = kind  # type: ignore[assignment]
    for name in config.columns:
        if name in kinds and (kinds[name] != "flag" or name == config.user):
            if name in (config.user, *config.ids, *config.lists):
                raise ConfigError(f"ingest: column {name!r} is {kinds[name]} and id; name one")
        elif name not in kinds:
            text = _is_text(config.checks.get(name, Check()), name, found)
            many = name in config.lists
            kinds[name] = ("texts" if many else "text") if text else ("ints" if many else "int")
    _check_tables(config, kinds)
    for name, check in config.checks.items():
        _check_check(name, check, kinds[name])
    return Rules(
        kinds={name: kinds[name] for name in config.columns},
        checks={**config.checks, config.user: _user_check(config)},
        time_column=config.time.column,
        time_unit=config.time.unit,
        max_ahead_h=config.time.max_ahead_h,
        monotone=config.time.monotone,
        after_ms=after_ms,
    )


def _user_check(config: LogsIngest) -> Check:
    """Rows without a user are never kept: they would share one history."""
    return config.checks.get(config.user, Check()).model_copy(update={"nulls": "quarantine"})


def _check_tables(config: LogsIngest, kinds: dict[str, Kind]) -> None:
    """Raise ConfigError where a table would have both integers and texts."""
    by_table: dict[str, dict[bool, str]] = {}
    tables = config.ids | {name: column.table for name, column in config.lists.items()}
    for column, table in tables.items():
        by_table.setdefault(table, {})[kinds[column] in ("text", "texts")] = column
    for table, columns in by_table.items():
        if len(columns) > 1:
            raise ConfigError(
                f"ingest: table {table!r} has texts of column {columns[True]!r} and integers of "
                f"{columns[False]!r}; give them tables of their own, or set checks.COLUMN.type"
            )


def _check_check(name: str, check: Check, kind: Kind) -> None:
    """Raise ConfigError where a check doesn't suit its column."""
    text = kind in ("text", "texts")
    whole = kind in ("int", "ints", "flag", "time", "watch_time")
    if text and (check.min is not None or check.max is not None):
        raise ConfigError(f"ingest.checks.{name}: texts have no min and max; use allowed")
    for value in check.allowed or ():
        if isinstance(value, str) != text or (whole and not float(value).is_integer()):
            expected = "texts" if text else "integers" if whole else "numbers"
            raise ConfigError(f"ingest.checks.{name}.allowed: got {value!r}, expected {expected}")
    if check.type is not None and kind not in ("int", "text", "ints", "texts"):
        raise ConfigError(f"ingest.checks.{name}.type: is of ids alone, {name!r} is {kind}")


def _is_text(check: Check, name: str, found: pa.Schema | None) -> bool:
    if check.type is not None or found is None or name not in found.names:
        return check.type == "text"
    kind = _plain_type(found.field(name).type)
    return _is_string(kind.value_type if _is_list(kind) else kind)


@dataclass
class Cleaner:
    """Cleans the chunks of one fragment, one after the other.

    Attributes:
        path: the file, for messages.
        modified_ms: when the file was changed last, epoch ms; 0 if unknown.
        time_floor_ms: latest time before the fragment in its file.
        num_bad: bad rows so far by reason.
        examples: of each reason the first row, as text.
    """

    rules: Rules
    path: str
    modified_ms: int = 0
    time_floor_ms: int = -1
    num_bad: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def __call__(self, raw: pa.Table, first_row: int) -> tuple[pa.Table, pa.Table]:
        """Good rows, typed, with their number in the file as `_row`; and bad rows.

        Args:
            raw: the columns of the rules, as they are in the file.
            first_row: the number of the first row in the file.

        Returns:
            The bad rows keep their columns and get `_reason`, `_file` and `_row`.

        Raises:
            DataError: a column can't hold what it should, whatever its values.
        """
        reasons: list[str] = []
        of_row = np.full(len(raw), -1)
        typed: dict[str, pa.Array] = {}
        for name, kind in self.rules.kinds.items():
            values, unfit = self._typed(raw[name], name, kind)
            typed[name] = values
            for why, bad in self._breaches(name, kind, values, unfit):
                if bad.any():
                    of_row[bad & (of_row < 0)] = len(reasons)
                    reasons.append(f"{name}: {why}")
        self._count(raw, first_row, of_row, reasons)
        rows = pa.array(np.arange(first_row, first_row + len(raw)))
        good = pa.table(typed).append_column("_row", rows).filter(pa.array(of_row < 0))
        return good, self._quarantine(raw, rows, of_row, reasons)

    def _typed(self, column: pa.ChunkedArray, name: str, kind: Kind) -> tuple[pa.Array, Mask]:
        try:
            values = _one_array(column)
            found = _plain_type(values.type)
            values = values.cast(found) if values.type != found else values
            if kind == "time":
                return _times(values, self.rules.time_unit)
            if kind in ("ints", "texts"):
                return _lists(values, TYPES[kind])
            if kind == "watch_time":
                return _whole(*_plain(values, pa.float64()))
            return _plain(values, TYPES[kind])
        except (pa.ArrowException, NotImplementedError):
            raise DataError(
                f"{self.path}: column {name!r} is {column.type}, expected {_EXPECTED[kind]} in "
                "each row; convert it, or name another column"
            ) from None

    def _breaches(
        self, name: str, kind: Kind, values: pa.Array, unfit: Mask
    ) -> Iterator[tuple[str, Mask]]:
        """Reasons and the rows that they are true of."""
        yield f"not {_EXPECTED[kind]}", unfit
        check = self.rules.checks.get(name, Check())
        null = _mask(pc.is_null(values)) & ~unfit
        default = "keep" if kind in ("int", "text", "ints", "texts", "number") else "quarantine"
        if (check.nulls or default) == "quarantine":
            yield "null", null
        if kind == "time":
            yield from self._times_out_of_line(values)
        elif kind == "flag":
            yield (
                "not 0 or 1",
                _mask(pc.invert(pc.is_in(values, pa.array([0, 1], pa.int8())))) & (~null & ~unfit),
            )
        elif kind == "watch_time":
            yield "below 0", _mask(pc.less(values, 0))
        elif kind == "number":
            yield "infinite", _mask(pc.is_inf(values))
        yield from _range(check, values)

    def _times_out_of_line(self, values: pa.Array) -> Iterator[tuple[str, Mask]]:
        times = pc.fill_null(values, _LATEST_MS).to_numpy()
        unit = self.rules.time_unit
        out = (times < _EARLIEST_MS) | (times >= _LATEST_MS)
        yield f"not between 1990 and 2100, read as {unit}; is ingest.time.unit right?", out
        if self.rules.max_ahead_h is not None and self.modified_ms:
            latest_ms = self.modified_ms + round(self.rules.max_ahead_h * 3_600_000)
            yield "later than its file by more than ingest.time.max_ahead_h", times > latest_ms
            out |= times > latest_ms
        if self.rules.monotone:
            latest = np.maximum.accumulate(np.append(self.time_floor_ms, np.where(out, -1, times)))
            self.time_floor_ms = int(latest[-1])
            yield "earlier than a row before it", times < latest[:-1]
        if self.rules.after_ms is not None:
            yield "not later than what the training set holds", times <= self.rules.after_ms

    def _count(
        self, raw: pa.Table, first_row: int, of_row: npt.NDArray, reasons: list[str]
    ) -> None:
        for i, why in enumerate(reasons):
            rows = np.flatnonzero(of_row == i)
            if len(rows):
                self.num_bad[why] = self.num_bad.get(why, 0) + len(rows)
                self.examples.setdefault(why, _show(raw, int(rows[0]), first_row, self.path))

    def _quarantine(
        self, raw: pa.Table, rows: pa.Array, of_row: npt.NDArray, reasons: list[str]
    ) -> pa.Table:
        bad = np.flatnonzero(of_row >= 0)
        texts = pa.array([reasons[i] for i in of_row[bad]], pa.string())
        return (
            raw.take(pa.array(bad))
            .append_column("_reason", texts)
            .append_column("_file", pa.array([self.path] * len(bad), pa.string()))
            .append_column("_row", rows.take(pa.array(bad)))
        )


def _show(raw: pa.Table, row: int, first_row: int, path: str) -> str:
    """A row in one line."""
    values = ", ".join(f"{name}={_text(raw[name][row])}" for name in raw.column_names)
    return f"row {first_row + row} of {path}: {values}"


def _text(value: pa.Scalar) -> str:
    try:
        return str(value.as_py())[:40]
    except (UnicodeDecodeError, pa.ArrowException):
        return "no UTF-8"


def time_in_ms(value: int | datetime | None, unit: str) -> int:
    """A time of a footer as epoch ms; -1 if it doesn't tell, or is no time that rows may have."""
    if value is None:
        return -1
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        time_ms = int(moment.timestamp() * 1000)
    else:
        time_ms = int(value // _PER_MS[unit])
    return time_ms if _EARLIEST_MS <= time_ms < _LATEST_MS else -1


def _range(check: Check, values: pa.Array) -> Iterator[tuple[str, Mask]]:
    """Breaches of `checks`; of a list if any item breaks it."""
    over_rows: Callable[[pa.Array], Mask] = _mask
    if _is_list(values.type):
        parents = pc.list_parent_indices(values).to_numpy()
        rows, values = len(values), values.flatten()

        def over_rows(items: pa.Array) -> Mask:
            bad = np.zeros(rows, bool)
            bad[parents[_mask(items)]] = True
            return bad

    if check.min is not None:
        yield f"below {check.min:.15g}", over_rows(pc.less(values, _like(check.min, values)))
    if check.max is not None:
        yield f"above {check.max:.15g}", over_rows(pc.greater(values, _like(check.max, values)))
    if check.allowed is not None:
        allowed = pa.array(list(check.allowed)).cast(values.type)
        known = pc.or_(pc.is_null(values), pc.is_in(values, allowed))
        yield "not allowed", over_rows(pc.invert(known))


def _like(bound: int | float, values: pa.Array) -> pa.Scalar:
    """A bound that compares exactly with integers as well."""
    if pa.types.is_integer(values.type) and float(bound).is_integer() and abs(bound) < 2**63:
        return pa.scalar(int(bound))
    return pa.scalar(float(bound))


def _times(values: pa.Array, unit: str) -> tuple[pa.Array, Mask]:
    """Epoch milliseconds, rounded down, of timestamps, integers or texts of integers."""
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        moments = values.cast(pa.timestamp("ns", "UTC"), safe=False).cast(pa.int64())
        return pc.floor(pc.divide(moments, 1_000_000)).cast(pa.int64()), np.zeros(len(values), bool)
    whole, unfit = _plain(values, pa.int64())
    if unit == "s":
        # What overflows is far beyond 2100 as well.
        seconds = pc.min_element_wise(pc.max_element_wise(whole, -1), 1 << 40, skip_nulls=False)
        return pc.multiply(seconds, 1_000), unfit
    return pc.divide(whole, int(_PER_MS[unit])), unfit


def _lists(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Mask]:
    """Lists of `kind`, with the rows whose items don't fit; a null list is an empty one."""
    if not _is_list(values.type):
        raise pa.ArrowTypeError("no list")
    if values.null_count:  # which may hide items
        values = values.take(pa.array(np.arange(len(values))))
    parents = pc.list_parent_indices(values).to_numpy()
    items, bad_items = _plain(values.flatten(), kind.value_type)
    unfit = np.zeros(len(values), bool)
    unfit[parents[bad_items | _mask(pc.is_null(items))]] = True
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), items), unfit


def _plain(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Mask]:
    """Values of `kind`, null where one doesn't fit, and which those are. NaN is null."""
    if _is_list(values.type):
        raise pa.ArrowTypeError("a list")
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    if _is_string(kind):
        return _utf8(values.cast(kind))
    if _is_string(values.type):
        values, unfit = _utf8(values.cast(pa.large_string()))
        pattern = _NUMBER if pa.types.is_floating(kind) else _INTEGER
        fits = pc.fill_null(pc.match_substring_regex(values, pattern), True)
        texts = pc.if_else(fits, values, pa.scalar(None, values.type))
        texts = pc.replace_substring_regex(pc.utf8_trim_whitespace(texts), r"^\+", "")
        parsed, too_large = _plain(texts.cast(_parsed(kind)), kind)
        return parsed, unfit | too_large | ~_mask(fits)
    if pa.types.is_floating(kind):
        return values.cast(kind, safe=False), np.zeros(len(values), bool)
    return _integers(values, kind)


def _utf8(values: pa.Array) -> tuple[pa.Array, Mask]:
    """Texts, null where the bytes aren't UTF-8, and which those are."""
    try:
        values.validate(full=True)
        return values, np.zeros(len(values), bool)
    except pa.ArrowInvalid:
        unfit = np.array([not _is_utf8(v.as_py()) for v in values.cast(pa.large_binary())])
        return pc.if_else(pa.array(~unfit), values, pa.scalar(None, values.type)), unfit


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def _whole(numbers: pa.Array, unfit: Mask) -> tuple[pa.Array, Mask]:
    """Rounded to int64, null where too large for that."""
    fits = pc.fill_null(pc.less(pc.abs(numbers), 2.0**53), True)
    kept = pc.if_else(fits, numbers, pa.scalar(None, pa.float64()))
    return pc.round(kept).cast(pa.int64()), unfit | ~_mask(fits)


def _integers(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Mask]:
    try:
        return values.cast(kind), np.zeros(len(values), bool)
    except pa.ArrowInvalid:  # some values are too large, or have a fraction
        low, high = (-128, 127) if kind == pa.int8() else (-(2**63), 2**63 - 1)
        if pa.types.is_uint64(values.type) and kind == pa.int64():
            return values.view(kind), np.zeros(len(values), bool)  # hashes: the same bits
        if pa.types.is_integer(values.type) or pa.types.is_decimal(values.type):
            bounds = pa.array([low, high], pa.int64()).cast(pa.decimal128(19, 0))
            numbers = values.cast(pa.decimal128(38, 0))
            fits = pc.and_(pc.greater_equal(numbers, bounds[0]), pc.less_equal(numbers, bounds[1]))
        else:
            numbers = values.cast(pa.float64(), safe=False)
            inside = pc.less(pc.abs(numbers), float(min(high, 2**53)))  # beyond: no exact integer
            fits = pc.and_(inside, pc.equal(numbers, pc.floor(numbers)))
        fits = pc.fill_null(fits, True)
        kept = pc.if_else(fits, values, pa.scalar(None, values.type))
        return kept.cast(kind), ~_mask(fits)


def _parsed(kind: pa.DataType) -> pa.DataType:
    """What texts are parsed as first."""
    return pa.float64() if pa.types.is_floating(kind) else pa.decimal128(38, 0)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without dictionary, views and large offsets of lists."""
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if _is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return kind


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _mask(values: pa.Array) -> Mask:
    """A bool array of Arrow as numpy's, null as False."""
    return pc.fill_null(values, False).to_numpy(zero_copy_only=False)
