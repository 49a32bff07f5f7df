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

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.errors import DataError
from infnet_dist.ingest.logs.convert import EARLIEST_MS, LATEST_MS, Kind, Mask, is_list, mask, typed
from infnet_dist.ingest.logs.rules import Rules
from infnet_dist.logs_config import Check

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
            return typed(column, kind, self.rules.time_unit)
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
        null = mask(pc.is_null(values)) & ~unfit
        default = "keep" if kind in ("int", "text", "ints", "texts", "number") else "quarantine"
        if (check.nulls or default) == "quarantine":
            yield "null", null
        if kind == "time":
            yield from self._times_out_of_line(values)
        elif kind == "flag":
            yield (
                "not 0 or 1",
                mask(pc.invert(pc.is_in(values, pa.array([0, 1], pa.int8())))) & (~null & ~unfit),
            )
        elif kind == "watch_time":
            yield "below 0", mask(pc.less(values, 0))
        elif kind == "number":
            yield "infinite", mask(pc.is_inf(values))
        yield from _range(check, values)

    def _times_out_of_line(self, values: pa.Array) -> Iterator[tuple[str, Mask]]:
        times = pc.fill_null(values, LATEST_MS).to_numpy()
        unit = self.rules.time_unit
        out = (times < EARLIEST_MS) | (times >= LATEST_MS)
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


def _range(check: Check, values: pa.Array) -> Iterator[tuple[str, Mask]]:
    """Breaches of `checks`; of a list if any item breaks it."""
    over_rows: Callable[[pa.Array], Mask] = mask
    if is_list(values.type):
        parents = pc.list_parent_indices(values).to_numpy()
        rows, values = len(values), values.flatten()

        def over_rows(items: pa.Array) -> Mask:
            bad = np.zeros(rows, bool)
            bad[parents[mask(items)]] = True
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
