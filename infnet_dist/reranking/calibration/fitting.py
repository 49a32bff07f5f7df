"""Fits calibrators to predictions and labels; needs scipy, unlike their use.

All functions take logits [n], labels [n] in {0, 1} and weights [n] >= 0 (None: all rows weigh 1).
Rows with an unknown label (NaN) or of weight 0 don't count. Use rows that the model wasn't trained
on, without sampling of negatives; correct the logits first where the model was trained with it.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize

from infnet_dist.errors import DataError
from infnet_dist.reranking.calibration.calibrators import (
    Array,
    Calibrator,
    Isotonic,
    PerSlice,
    Platt,
    sigmoid,
    slice_values,
)

log = logging.getLogger(__name__)
Fit = Callable[[Array, Array, Array | None], Calibrator]

MIN_ROWS = 100
MIN_OF_CLASS = 10  # rows of each label: fewer say little about a rate
_MAX_STEPS = 100


class _Rows(NamedTuple):
    logits: Array
    labels: Array
    weights: Array


def fit_platt(logits: Array, labels: Array, weights: Array | None = None) -> Platt:
    """Logistic regression on the logit, with Platt's targets, which are never exactly 0 or 1.

    Raises:
        DataError: arrays are malformed, there are too few rows of a label, all logits are equal, or
            higher logits go with lower labels.
    """
    rows = _checked(logits, labels, weights)
    centre, spread = rows.logits.mean(), rows.logits.std()
    if not spread > 0:
        raise DataError("Platt calibration: all logits are equal; check the predictions")
    scaled = np.stack([(rows.logits - centre) / spread, np.ones_like(rows.logits)])
    slope, intercept = _logistic_regression(scaled, _targets(rows), rows.weights)
    if not slope > 0:
        raise DataError(
            f"Platt calibration: the fitted slope is {slope / spread:.4g}, so higher logits go "
            "with lower labels; check that labels and predictions are of the same task and rows"
        )
    return Platt(float(slope / spread), float(intercept - slope * centre / spread))


def _targets(rows: _Rows) -> Array:
    """Labels moved towards 1/2: (N+ + 1) / (N+ + 2) and 1 / (N- + 2), N sums of weights."""
    positive = rows.weights[rows.labels == 1].sum()
    negative = rows.weights[rows.labels == 0].sum()
    return np.where(rows.labels == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))


def _logistic_regression(features_PN: Array, targets: Array, weights: Array) -> Array:
    """Parameters [P] of least mean cross entropy, by Newton's method with halved steps."""
    weights = weights / weights.sum()
    found, loss = np.zeros(len(features_PN)), np.inf
    step = np.zeros_like(found)
    for _ in range(_MAX_STEPS):
        tried = found + step
        logits = tried @ features_PN
        now = float(weights @ (np.logaddexp(0.0, logits) - targets * logits))
        if now > loss:
            step = step / 2
            continue
        found, loss = tried, now
        rate = sigmoid(logits)
        gradient = features_PN @ (weights * (rate - targets))
        hessian = (features_PN * (weights * rate * (1 - rate))) @ features_PN.T
        step = -np.linalg.solve(hessian, gradient)
        if -gradient @ step < 1e-20:
            break
    return found


def fit_isotonic(logits: Array, labels: Array, weights: Array | None = None) -> Isotonic:
    """The non-decreasing map of least squared error, linear between its thresholds.

    Raises:
        DataError: arrays are malformed, or there are too few rows of a label.
    """
    rows = _checked(logits, labels, weights)
    predicted, group = np.unique(sigmoid(rows.logits), return_inverse=True)
    weight = np.bincount(group, rows.weights)
    rate = np.bincount(group, rows.weights * rows.labels) / weight
    fitted = optimize.isotonic_regression(rate, weights=weight).x
    fitted = np.clip(fitted, 0.0, 1.0)
    changes = np.diff(fitted) != 0  # the ends of constant stretches define the map
    kept = np.append(True, changes) | np.append(changes, True)
    return Isotonic(tuple(predicted[kept].tolist()), tuple(fitted[kept].tolist()))


def fit_per_slice(
    fit: Fit,
    logits: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    feature: str,
    values: Array,
    min_rows: int = 1000,
) -> PerSlice:
    """One calibrator per value of a feature, and one of all rows for the others.

    Slices of fewer than `min_rows` rows, or too few of a label, get the calibrator of all rows, as
    do those that can't be fitted; their number is logged.

    Args:
        fit: `fit_platt` or `fit_isotonic`.
        logits: [n].
        labels: [n].
        weights: [n].
        feature: name of the feature.
        values: its values [n], integers or text.
        min_rows: minimum number of rows of a slice.

    Raises:
        DataError: as `fit` over all rows, or the values aren't integers or text.
    """
    values = slice_values(feature, values, len(logits))
    fallback = fit(logits, labels, weights)
    slices: dict[int | str, Calibrator] = {}
    numbers, counts = np.unique(values, return_counts=True)
    for value in numbers[counts >= min_rows]:
        here = values == value
        inside = None if weights is None else weights[here]
        try:
            slices[value.item()] = fit(logits[here], labels[here], inside)
        except DataError as error:
            log.info("calibration of %s %s: that of all rows (%s)", feature, value.item(), error)
    log.info("calibrated %d of %d values of %s alone", len(slices), len(numbers), feature)
    return PerSlice(feature, slices, fallback)


def _checked(logits: Array, labels: Array, weights: Array | None) -> _Rows:
    """The rows that count, as float64."""
    weights = np.ones(np.shape(logits)) if weights is None else weights
    found = _Rows(*(np.asarray(part, np.float64) for part in (logits, labels, weights)))
    if len({part.shape for part in found}) > 1 or found.logits.ndim != 1:
        shapes = ", ".join(str(part.shape) for part in found)
        raise DataError(
            f"calibration: got logits, labels, weights of shapes {shapes}; expected [n]"
        )
    if not (np.isfinite(found.weights) & (found.weights >= 0)).all():
        raise DataError("calibration: weights must be finite and >= 0")
    counted = ~np.isnan(found.labels) & (found.weights > 0)
    found = _Rows(*(part[counted] for part in found))
    if not np.isfinite(found.logits).all():
        raise DataError("calibration: a logit is NaN or infinite; check the predictions")
    if not np.isin(found.labels, (0.0, 1.0)).all():
        raise DataError("calibration: labels must be 0, 1 or NaN (unknown); watch times have none")
    positive = int(found.labels.sum())
    negative = len(found.labels) - positive
    if len(found.labels) < MIN_ROWS or min(positive, negative) < MIN_OF_CLASS:
        raise DataError(
            f"calibration: got {positive} rows with label 1 and {negative} with 0, expected at "
            f"least {MIN_ROWS} rows, {MIN_OF_CLASS} of each label; add rows"
        )
    return found
