"""Completion rate, adjusted by length.

A second of a short video is a larger share of it, so the rate of watch time to duration falls with
the duration whatever the viewer thinks of a video. Hence the rate is divided by one that is typical
of the duration: a quantile of the rates of videos of about that duration in the logs. Comparing
watch times within groups of similar duration is Zhan et al. 2022 (KDD, 2206.06003, D2Q); dividing
by a function of the duration keeps a number that fusion formulas can weigh.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infnet_dist.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CompletionCurve:
    """The typical ratio of watch time to duration as a function of the duration.

    Linear in the logarithm of the duration between the given ones, constant outside.

    Attributes:
        durations_s: seconds, ascending.
        completions: ratios at these durations, > 0.

    Raises:
        DataError: they aren't so.
    """

    durations_s: tuple[float, ...]
    completions: tuple[float, ...]

    def __post_init__(self) -> None:
        durations, completions = np.array(self.durations_s), np.array(self.completions)
        is_curve = len(durations) == len(completions) > 0 and (np.diff(durations) > 0).all()
        positive = np.isfinite([durations, completions]).all() if is_curve else False
        if not (positive and (durations > 0).all() and (completions > 0).all()):
            raise DataError(
                f"completion curve: got {len(durations)} durations and {len(completions)} ratios, "
                "expected as many of both, positive, durations ascending; fit it again"
            )

    def __call__(self, watch_s: Array, duration_s: Array) -> Array:
        """Watch time over duration over the typical ratio, float64 [n]: 1 is typical.

        Raises:
            DataError: a duration isn't positive and finite.
        """
        duration_s = np.asarray(duration_s, np.float64)
        if not (np.isfinite(duration_s) & (duration_s > 0)).all():
            raise DataError("completion: durations must be positive and finite, in seconds")
        typical = np.interp(np.log(duration_s), np.log(self.durations_s), self.completions)
        return np.asarray(watch_s, np.float64) / duration_s / typical

    def to_json(self) -> dict[str, Any]:
        """Plain values from which `curve_from_json` makes the same curve."""
        return {"durations_s": list(self.durations_s), "completions": list(self.completions)}


def fit_completion_curve(
    watch_s: Array, duration_s: Array, *, quantile: float = 0.8, buckets: int = 20
) -> CompletionCurve:
    """The curve through a quantile of the ratios in each of several buckets of similar duration.

    Buckets have about as many rows; a bucket's point is at the median of its durations.

    Args:
        watch_s: watched seconds [n] of logged rows.
        duration_s: durations [n] of their videos, in seconds.
        quantile: in (0, 1).
        buckets: number of buckets; fewer where durations repeat.

    Raises:
        DataError: arrays are malformed, or the quantile of a bucket is 0.
    """
    watch_s, duration_s = np.asarray(watch_s, np.float64), np.asarray(duration_s, np.float64)
    if watch_s.shape != duration_s.shape or watch_s.ndim != 1 or not len(watch_s):
        raise DataError(
            f"completion curve: got watch times of shape {watch_s.shape} and durations of "
            f"{duration_s.shape}, expected [n], n > 0"
        )
    if not (np.isfinite(watch_s) & (watch_s >= 0) & np.isfinite(duration_s)).all():
        raise DataError("completion curve: watch times and durations must be finite and >= 0")
    if not (duration_s > 0).all() or not 0 < quantile < 1 or buckets < 1:
        raise DataError(
            f"completion curve: got quantile {quantile}, {buckets} buckets and a shortest duration "
            f"of {duration_s.min():g} s, expected 0 < quantile < 1, buckets >= 1, durations > 0"
        )
    edges = np.unique(np.quantile(duration_s, np.arange(1, buckets) / buckets))
    bucket = np.searchsorted(edges, duration_s, side="right")
    points: dict[float, float] = {}
    for number in np.unique(bucket):
        here = bucket == number
        middle = float(np.median(duration_s[here]))
        points[middle] = float(np.quantile(watch_s[here] / duration_s[here], quantile))
        if not points[middle] > 0:
            raise DataError(
                f"completion curve: quantile {quantile} of the videos of about {middle:g} s is 0, "
                "so most of them weren't watched; raise the quantile"
            )
    return CompletionCurve(tuple(points), tuple(points.values()))


def curve_from_json(value: Any) -> CompletionCurve:
    """The curve of `to_json`.

    Raises:
        DataError: the value isn't one of a curve.
    """
    try:
        parts = [tuple(map(float, value[key])) for key in ("durations_s", "completions")]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"malformed completion curve ({error}); fit it again") from None
    return CompletionCurve(*parts)
