"""Python values of raw rows -> typed arrays; a wrong value is refused by column and row.

Types are exact: no text is parsed as a number, and no number is written as text. Ingest converts
columns of Arrow files first (`ingest/convert`); its results have the types that are expected here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from infnet_dist.errors import DataError
from infnet_dist.features.hashing import text_keys

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Rows = Sequence[Any] | npt.NDArray[Any]
_NULL = (type(None),)
_INTEGERS = (int, np.integer, np.bool_)  # bool is an int
_NUMBERS = (*_INTEGERS, float, np.floating)
_INTEGER, _NUMBER = "an integer of 64 bits", "a number"


@dataclass(frozen=True)
class Column:
    """The values of a raw column, or the items of its lists.

    Attributes:
        name: name of the column, for messages.
        values: one value per row, or all items.
        lengths: int64 [rows], lengths of the lists; None: the column has no lists.
    """

    name: str
    values: Rows
    lengths: IntArray | None = None

    @classmethod
    def of_rows(cls, name: str, rows: Any) -> "Column":
        """A column with one value per row.

        Raises:
            DataError: it isn't a list, tuple or one-dimensional array.
        """
        fits = isinstance(rows, list | tuple) or (isinstance(rows, np.ndarray) and rows.ndim > 0)
        if not fits:
            raise DataError(f"column {name!r}: got {_shown(rows)}, expected a list of its values")
        return cls(name, rows)

    @classmethod
    def of_lists(cls, name: str, rows: Rows) -> "Column":
        """The items of a column of lists; null is an empty list.

        Raises:
            DataError: a value isn't a list.
        """
        if isinstance(rows, np.ndarray) and rows.ndim == 2:
            return cls(name, rows.reshape(-1), np.full(len(rows), rows.shape[1], np.int64))
        cls(name, rows)._check_types((list, tuple, np.ndarray), "a list")
        some = [() if row is None else row for row in rows]
        for row, found in enumerate(some):
            if isinstance(found, np.ndarray) and found.ndim != 1:
                raise cls(name, rows).error(row, "a list")
        lengths = np.fromiter(map(len, some), np.int64, len(some))
        dtypes = {getattr(row, "dtype", None) for row in some}
        one_type = len(dtypes) == 1 and None not in dtypes
        items = np.concatenate(some) if one_type else list(chain.from_iterable(some))
        return cls(name, items, lengths)

    def integers(self) -> tuple[IntArray, BoolArray]:
        """int64 and the mask of nulls; from 2**63 to 2**64 - 1 the bits of an integer are kept.

        Raises:
            DataError: a value isn't such an integer; names its row.
        """
        if (array := self._plain("biu", _INTEGER)) is not None:
            if array.dtype == np.uint64:
                return array.view(np.int64), np.zeros(len(array), bool)
            return array.astype(np.int64), np.zeros(len(array), bool)
        self._check_types(_INTEGERS, _INTEGER)
        null = self._nulls()
        values = [0 if value is None else int(value) for value in self.values]
        try:
            return np.array(values, np.int64), null
        except OverflowError:
            for i, value in enumerate(values):
                if not -(2**63) <= value < 2**64:
                    raise self.error(i, _INTEGER) from None
            wrapped = [value - 2**64 if value >= 2**63 else value for value in values]
            return np.array(wrapped, np.int64), null

    def text_keys(self) -> tuple[IntArray, BoolArray]:
        """Keys of texts and the mask of nulls.

        Raises:
            DataError: a value isn't text, or can't be UTF-8.
        """
        self._check_types((str,), "text")
        texts = ["" if value is None else value for value in self.values]
        try:
            return text_keys(texts), self._nulls()
        except UnicodeEncodeError as error:
            raise self.error(texts.index(error.object), "text that UTF-8 can encode") from None

    def keys(self, kind: str) -> tuple[IntArray, BoolArray]:
        """Keys of ids of type "integer" or "text", and the mask of nulls."""
        return self.text_keys() if kind == "text" else self.integers()

    def floats(self) -> npt.NDArray[np.float64]:
        """float64, NaN for null.

        Raises:
            DataError: a value isn't a number.
        """
        if (array := self._plain("biuf", _NUMBER)) is not None:
            return array.astype(np.float64)
        self._check_types(_NUMBERS, _NUMBER)
        return np.array([_float(value) for value in self.values], np.float64)

    def flags(self) -> BoolArray:
        """Whether each value is 1; null counts as 0.

        Raises:
            DataError: a value isn't 0, 1 or a bool.
        """
        found, _ = self.integers()
        self.check((found == 0) | (found == 1), "0 or 1")
        return found == 1

    def check(self, valid: BoolArray, expected: str) -> None:
        """Raise DataError for the first value that isn't valid."""
        if not valid.all():
            raise self.error(int(np.argmin(valid)), expected)

    def check_no_nulls(self, null: BoolArray) -> None:
        """Raise DataError for the first null."""
        self.check(~null, "no null")

    def error(self, number: int, expected: str) -> DataError:
        """The error of the value of this number."""
        row = f"row {number}"
        if self.lengths is not None:
            ends = np.cumsum(self.lengths)
            place = int(np.searchsorted(ends, number, side="right"))
            row = f"row {place}, item {number - int(ends[place] - self.lengths[place])}"
        return DataError(
            f"column {self.name!r}, {row} (from 0): got {_shown(self.values[number])}, expected "
            f"{expected}"
        )

    def _plain(self, kinds: str, expected: str) -> npt.NDArray[Any] | None:
        """The values as an array of one of these kinds of types; None if they are objects."""
        if not isinstance(self.values, np.ndarray) or self.values.dtype.kind == "O":
            return None
        if len(self.values) and (self.values.dtype.kind not in kinds or self.values.ndim != 1):
            raise self.error(0, expected)
        return self.values

    def _check_types(self, allowed: tuple[type, ...], expected: str) -> None:
        wrong = {t for t in set(map(type, self.values)) if not issubclass(t, allowed + _NULL)}
        if wrong:
            first = next(i for i, value in enumerate(self.values) if type(value) in wrong)
            raise self.error(first, expected)

    def _nulls(self) -> BoolArray:
        return np.fromiter((value is None for value in self.values), bool, len(self.values))


def _float(value: Any) -> float:
    try:
        return np.nan if value is None else float(value)
    except OverflowError:  # an integer beyond float64
        return np.inf


def _shown(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
