"""Raw rows -> typed rows that satisfy the config, and bad rows with their reasons.

Conditions on every row; the reasons list all that a row violates, so that one run shows them all:

    every column   its type, by `convert`; then `checks`: nulls, min, max, allowed
    time           between 1990 and 2100, not far ahead of its file; `time.monotone`; later than
                   the rows of the training set
    watch time     0 or more
    weights        0 or more; those of a bag as many as its ids
    vectors        of the declared size
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.config.log_columns import Check
from infnet_dist.errors import DataError
from infnet_dist.features.numbers import EARLIEST_MS, LATEST_MS
from infnet_dist.ingest.convert.arrays import (
    Mask,
    UnfitColumnError,
    as_vectors,
    family,
    list_items,
    mask,
    readable,
    shown,
)
from infnet_dist.ingest.convert.kinds import EXPECTED, Kind, convert
from infnet_dist.ingest.convert.times import fits_as
from infnet_dist.ingest.logs.reading.id_types import Spellings, add_spellings
from infnet_dist.ingest.logs.reading.rules import Rules, allowed_values

_LISTS = ("ints", "texts", "floats")
_NULLABLE = ("int", "text", *_LISTS, "float")  # by default


@dataclass
class Cleaner:
    """Cleans the chunks of one fragment in order.

    Attributes:
        path: path of the file, for messages.
        modified_ms: epoch ms of the last change of the file; 0 if unknown.
        time_floor_ms: latest time so far.
        num_bad: number of bad rows so far by reason.
        bad_rows: number of bad rows so far; a row may have many reasons.
        examples: first row of each reason, as text.
        spellings: spellings of integers in id columns whose type was inferred as text.
    """

    rules: Rules
    path: str
    modified_ms: int = 0
    time_floor_ms: int = -1
    num_bad: dict[str, int] = field(default_factory=dict)
    bad_rows: int = 0
    examples: dict[str, str] = field(default_factory=dict)
    spellings: Spellings = field(default_factory=dict)

    def __call__(self, raw: pa.Table, first_row: int) -> tuple[pa.Table, pa.Table]:
        """Good rows, typed, with their number in the file as `_row`; and bad rows.

        Args:
            raw: the columns of the rules, as stored in the file.
            first_row: number of the first row in the file.

        Returns:
            Bad rows keep their columns and get `_reason` (several are separated by `; `), `_file`
            and `_row`.

        Raises:
            DataError: the type of a column is unsuitable, or ids are floats that aren't exact.
        """
        breaches: dict[str, Mask] = {}
        typed: dict[str, pa.Array] = {}
        unfits: dict[str, Mask] = {}
        for name, kind in self.rules.kinds.items():
            values, unfits[name] = self._typed(raw[name], name, kind, first_row)
            for why, bad in self._breaches(name, kind, raw[name].type, values, unfits[name]):
                if bad.any():
                    breaches[f"{name}: {why}"] = bad
            dim = self.rules.dims.get(name)
            typed[name] = values if dim is None else as_vectors(values, dim)
            if name in self.rules.inferred and kind in ("text", "texts"):
                texts = list_items(values)[0] if kind == "texts" else values
                add_spellings(self.spellings, name, pc.unique(texts))
        for ids, weights in self.rules.weights.items():
            bad = _lengths(typed[ids]) != _lengths(typed[weights])
            if (bad := bad & ~unfits[ids] & ~unfits[weights]).any():
                breaches[f"{weights}: not as many as {ids}"] = bad
        bad_rows = np.logical_or.reduce([*breaches.values(), np.zeros(len(raw), bool)])
        self._count(raw, first_row, breaches, bad_rows)
        rows = pa.array(np.arange(first_row, first_row + len(raw)))
        good = pa.table(typed).append_column("_row", rows).filter(pa.array(~bad_rows))
        return good, self._quarantine(raw, rows, breaches, bad_rows)

    def _typed(
        self, column: pa.ChunkedArray, name: str, kind: Kind, first_row: int
    ) -> tuple[pa.Array, Mask]:
        try:
            return convert(
                column,
                kind,
                time_unit=self.rules.time_unit,
                separator=self.rules.separators.get(name, ""),
                zeros=name not in self.rules.inferred,
            )
        except UnfitColumnError as error:
            raise DataError(
                f"{error.at(name, self.path, first_row)}; convert it, or name another column"
            ) from None

    def _breaches(
        self, name: str, kind: Kind, found: pa.DataType, values: pa.Array, unfit: Mask
    ) -> Iterator[tuple[str, Mask]]:
        """Reasons and the masks of their rows; `found` is the type in the file."""
        yield f"not {EXPECTED[kind]}{self._hint(name, kind, found)}", unfit
        check = self.rules.checks.get(name, Check())
        null = mask(pc.is_null(values)) & ~unfit
        keep = kind in _NULLABLE and name != self.rules.sample_weight
        if (check.nulls or ("keep" if keep else "quarantine")) == "quarantine":
            yield "null", null
        if kind == "time":
            yield from self._time_breaches(values, found)
        elif kind == "watch_time":
            yield "below 0", mask(pc.less(values, 0))
        elif name in (self.rules.sample_weight, *self.rules.weights.values()):
            yield from _range(Check(min=0), kind, values)
        elif name in self.rules.dims:
            dim = self.rules.dims[name]
            other = ~unfit & ~null & (_lengths(values) != dim)
            yield f"not of ingest.vectors.{name}.dim ({dim})", other
        yield from _range(check, kind, values)

    def _hint(self, name: str, kind: Kind, found: pa.DataType) -> str:
        """The next move for values of another type."""
        if kind in _LISTS and family(found) == "text":
            separator = self.rules.separators[name]
            lists = {weights: ids for ids, weights in self.rules.weights.items()}
            key = f"vectors.{name}" if name in self.rules.dims else f"lists.{lists.get(name, name)}"
            return f" between {separator!r}; is ingest.{key}.separator right?"
        if kind == "time":
            return f"; numbers are read as {self.rules.time_unit}, ingest.time.unit"
        if kind in ("int", "ints") and name in self.rules.inferred:
            return f"; set ingest.checks.{name}.type: text for ids of text, int to read 007 as 7"
        return ""

    def _time_breaches(self, values: pa.Array, found: pa.DataType) -> Iterator[tuple[str, Mask]]:
        known = mask(pc.is_valid(values))
        times = pc.fill_null(values, LATEST_MS).to_numpy()
        out = known & ((times < EARLIEST_MS) | (times >= LATEST_MS))
        yield from self._other_units(times, out, found)
        if self.rules.max_ahead_h is not None and self.modified_ms:
            latest_ms = self.modified_ms + round(self.rules.max_ahead_h * 3_600_000)
            ahead = known & ~out & (times > latest_ms)
            yield "later than its file by more than ingest.time.max_ahead_h", ahead
            out |= ahead
        if self.rules.monotone:
            usable = known & ~out
            latest = np.maximum.accumulate(
                np.append(self.time_floor_ms, np.where(usable, times, -1))
            )
            self.time_floor_ms = int(latest[-1])
            yield "earlier than a row before it", usable & (times < latest[:-1])
        if self.rules.after_ms is not None:
            late = known & ~out & (times <= self.rules.after_ms)
            yield "not later than what the training set holds", late

    def _other_units(
        self, times: npt.NDArray[np.int64], out: Mask, found: pa.DataType
    ) -> Iterator[tuple[str, Mask]]:
        """Times out of range, separated by the unit under which they would be in range."""
        stamped = family(found) == "timestamp"
        unit = found.unit if stamped else self.rules.time_unit
        why = f"not between 1990 and 2100, read as {unit}"
        for other, fits in fits_as(times, unit).items():
            move = "write the column in that unit" if stamped else "change ingest.time.unit"
            yield f"{why}, but it would be as {other}: {move}", out & fits
            out = out & ~fits
        yield f"{why}{'' if stamped else '; is ingest.time.unit right?'}", out

    def _count(
        self, raw: pa.Table, first_row: int, breaches: dict[str, Mask], bad_rows: Mask
    ) -> None:
        self.bad_rows += int(bad_rows.sum())
        for why, bad in breaches.items():
            self.num_bad[why] = self.num_bad.get(why, 0) + int(bad.sum())
            self.examples.setdefault(why, _show(raw, int(bad.argmax()), first_row, self.path))

    def _quarantine(
        self, raw: pa.Table, rows: pa.Array, breaches: dict[str, Mask], bad_rows: Mask
    ) -> pa.Table:
        bad = np.flatnonzero(bad_rows)
        texts = ["; ".join(why for why, broken in breaches.items() if broken[row]) for row in bad]
        return (
            _readable(raw.take(pa.array(bad)))
            .append_column("_reason", pa.array(texts, pa.string()))
            .append_column("_file", pa.array([self.path] * len(bad), pa.string()))
            .append_column("_row", rows.take(pa.array(bad)))
        )


def _readable(rows: pa.Table) -> pa.Table:
    """The rows with bytes converted to text."""
    for i, column in enumerate(rows.columns):
        if pa.types.is_large_binary(column.type):
            texts = [None if v is None else readable(v) for v in column.to_pylist()]
            rows = rows.set_column(i, rows.field(i).name, pa.array(texts, pa.large_string()))
    return rows


def _show(raw: pa.Table, row: int, first_row: int, path: str) -> str:
    """A row in one line."""
    values = ", ".join(f"{name}={shown(raw[name][row])}" for name in raw.column_names)
    return f"row {first_row + row} of {path}: {values}"


def _lengths(lists: pa.Array) -> npt.NDArray[np.int64]:
    return list_items(lists)[1]


def _range(check: Check, kind: Kind, values: pa.Array) -> Iterator[tuple[str, Mask]]:
    """Violations of `checks`; a list violates a check if any of its items does."""
    if check.min is None and check.max is None and check.allowed is None:
        return
    over_rows: Callable[[pa.Array], Mask] = mask
    if pa.types.is_list(values.type):
        rows = len(values)
        values, lengths = list_items(values)
        parents = np.repeat(np.arange(rows), lengths)

        def over_rows(items: pa.Array) -> Mask:
            bad = np.zeros(rows, bool)
            bad[parents[mask(items)]] = True
            return bad

    if check.min is not None:
        yield f"below {check.min:.15g}", over_rows(pc.less(values, _like(check.min, values)))
    if check.max is not None:
        yield f"above {check.max:.15g}", over_rows(pc.greater(values, _like(check.max, values)))
    if check.allowed is not None:
        allowed = allowed_values(check, kind)
        known = pc.or_(pc.is_null(values), pc.is_in(values.cast(allowed.type), allowed))
        yield "not allowed", over_rows(pc.invert(known))


def _like(bound: int | float, values: pa.Array) -> pa.Scalar:
    """A bound that also compares exactly with integers."""
    if pa.types.is_integer(values.type) and float(bound).is_integer() and abs(bound) < 2**63:
        return pa.scalar(int(bound))
    return pa.scalar(float(bound))
