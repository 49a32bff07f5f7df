"""Calibrators: maps from logits [n] to probabilities [n], fitted by `fitting.py`, applied in numpy.

Each is non-decreasing in the logit, so it doesn't reorder the candidates of one slice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from infnet_dist.errors import DataError

Array = npt.NDArray[Any]
Slice = int | str


class Calibrator(Protocol):
    """A fitted map from logits to probabilities."""

    def __call__(self, logits: Array, columns: Mapping[str, Array]) -> Array:
        """Probabilities float64 [n] of finite logits [n]; `columns` hold the features of the rows.

        Raises:
            DataError: a feature that the calibrator needs is missing or of another type.
        """

    def to_json(self) -> dict[str, Any]:
        """Plain values from which `calibrator_from_json` makes the same calibrator."""


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-logit)) as float64, without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))


def logit(probabilities: Array) -> Array:
    """log(p / (1 - p)) as float64; 0 and 1, which a float32 may round to, become finite.

    Raises:
        DataError: a value isn't in [0, 1].
    """
    found = np.asarray(probabilities, np.float64)
    if not ((found >= 0) & (found <= 1)).all():
        raise DataError("expected probabilities in [0, 1], got others; pass logits as they are")
    found = np.clip(found, 1e-15, 1 - 1e-15)
    return np.log(found) - np.log1p(-found)


@dataclass(frozen=True)
class Platt:
    """sigmoid(slope * logit + intercept), slope > 0 (Platt 1999).

    Raises:
        DataError: a value isn't finite, or the slope isn't positive.
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.slope, self.intercept]).all() and self.slope > 0):
            raise DataError(
                f"Platt calibration: got slope {self.slope} and intercept {self.intercept}, "
                "expected finite values and slope > 0; fit it again"
            )

    def __call__(self, logits: Array, columns: Mapping[str, Array]) -> Array:
        """See `Calibrator`."""
        return sigmoid(self.slope * np.asarray(logits, np.float64) + self.intercept)

    def to_json(self) -> dict[str, Any]:
        """See `Calibrator`."""
        return {"kind": "platt", "slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True)
class Isotonic:
    """A piecewise linear map from predicted to calibrated probability (Zadrozny and Elkan 2002).

    Constant outside of the thresholds.

    Attributes:
        predicted: thresholds, ascending, in [0, 1].
        calibrated: values at them, non-decreasing, in [0, 1].

    Raises:
        DataError: they aren't so.
    """

    predicted: tuple[float, ...]
    calibrated: tuple[float, ...]

    def __post_init__(self) -> None:
        x, y = np.array(self.predicted), np.array(self.calibrated)
        is_map = len(x) == len(y) > 0 and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
        within = ((x >= 0) & (x <= 1)).all() and ((y >= 0) & (y <= 1)).all()
        if not (is_map and within):
            raise DataError(
                f"isotonic calibration: got {len(x)} thresholds and {len(y)} values, expected as "
                "many of both, in [0, 1], ascending; fit it again"
            )

    def __call__(self, logits: Array, columns: Mapping[str, Array]) -> Array:
        """See `Calibrator`."""
        return np.interp(sigmoid(logits), self.predicted, self.calibrated)

    def to_json(self) -> dict[str, Any]:
        """See `Calibrator`."""
        values = {"predicted": list(self.predicted), "calibrated": list(self.calibrated)}
        return {"kind": "isotonic", **values}


@dataclass(frozen=True)
class PerSlice:
    """A calibrator per value of a feature, and one for all other values.

    Attributes:
        feature: column of integers or text.
        slices: calibrators by value, whose keys are all integers or all text.
        fallback: calibrator of values that were rare or absent when it was fitted.
    """

    feature: str
    slices: Mapping[Slice, Calibrator]
    fallback: Calibrator

    def __call__(self, logits: Array, columns: Mapping[str, Array]) -> Array:
        """See `Calibrator`."""
        logits = np.asarray(logits, np.float64)
        if self.feature not in columns:
            raise DataError(
                f"calibration needs the feature {self.feature!r} of each row; got "
                f"{', '.join(columns) or 'none'}"
            )
        values = slice_values(self.feature, columns[self.feature], len(logits))
        if self.slices and isinstance(next(iter(self.slices)), str) != (values.dtype.kind == "U"):
            raise DataError(
                f"calibration feature {self.feature!r}: got {values.dtype}, expected the type it "
                f"was fitted with, {type(next(iter(self.slices))).__name__}"
            )
        found = np.empty(len(logits))
        for value in np.unique(values):
            here = values == value
            found[here] = self.slices.get(value.item(), self.fallback)(logits[here], {})
        return found

    def to_json(self) -> dict[str, Any]:
        """See `Calibrator`."""
        slices = [[value, one.to_json()] for value, one in self.slices.items()]
        return {
            "kind": "per_slice",
            "feature": self.feature,
            "slices": slices,
            "fallback": self.fallback.to_json(),
        }


def slice_values(feature: str, values: Array, num_rows: int) -> Array:
    """The values of a feature as an array of integers or text, [n].

    Raises:
        DataError: they are of another type or number.
    """
    found = np.asarray(values)
    if found.dtype.kind == "b":
        found = found.astype(np.int64)
    if found.dtype.kind not in "iuU" or found.shape != (num_rows,):
        raise DataError(
            f"calibration feature {feature!r}: got {found.dtype} of shape {found.shape}, expected "
            f"{num_rows} integers or texts"
        )
    return found


def calibrator_from_json(value: Any) -> Calibrator:
    """The calibrator of `to_json`.

    Raises:
        DataError: the value isn't one of a calibrator.
    """
    try:
        return _from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        message = f"malformed calibrator ({type(error).__name__}: {error}); fit it again"
        raise DataError(message) from None


def _from_json(value: Any) -> Calibrator:
    kind = value["kind"]
    if kind == "platt":
        return Platt(float(value["slope"]), float(value["intercept"]))
    if kind == "isotonic":
        return Isotonic(*(tuple(map(float, value[key])) for key in ("predicted", "calibrated")))
    if kind == "per_slice":
        slices = {key: _from_json(one) for key, one in value["slices"]}
        if not any(all(isinstance(key, kind) for key in slices) for kind in (int, str)):
            raise DataError("per-slice calibration: keys must be all integers or all text")
        return PerSlice(str(value["feature"]), slices, _from_json(value["fallback"]))
    raise DataError(f"got calibrator kind {kind!r}, expected platt, isotonic or per_slice")
