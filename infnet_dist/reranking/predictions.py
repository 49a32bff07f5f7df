"""Logits of the tasks -> what fusion formulas combine: probabilities and seconds of watch time."""

from collections.abc import Mapping

import numpy as np

from infnet_dist.errors import DataError, unknown_name
from infnet_dist.reranking.calibration.calibrators import Array, sigmoid
from infnet_dist.reranking.calibration.stored import Calibration


def predicted_values(
    logits: Mapping[str, Array],
    *,
    watch_time_s: Mapping[str, float],
    columns: Mapping[str, Array],
    calibration: Calibration,
) -> dict[str, Array]:
    """Values by task, float64 [n]: P(label = 1), or the expected watch time in seconds.

    A watch time is exp(z) times the training window's mean: `model/losses.py` trains exp(z), the
    odds of z, towards E[t] in units of that mean.

    Args:
        logits: finite logits z [n] by task.
        watch_time_s: of the tasks that are watch times, the seconds of a label of 1 (the mean).
        columns: features of the rows, by name, for calibrators per slice.
        calibration: calibrators, and how negatives were sampled.

    Raises:
        DataError: a logit isn't finite, or the calibration is of other tasks or features.
    """
    for task, values in logits.items():
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DataError(
                f"task {task!r}: the logit of candidate {row} is {float(values[row])}; expected a "
                "finite number, so check its features and the model"
            )
    for task in calibration.calibrators:
        if task not in logits or task in watch_time_s:
            known = [name for name in logits if name not in watch_time_s]
            raise DataError(f"calibration: {unknown_name('binary task', task, known)}")
    if calibration.sampling is not None:
        logits = calibration.sampling.corrected(logits, watch_time_s.keys())
    found = {}
    for task, values in logits.items():
        if task in watch_time_s:
            with np.errstate(over="ignore"):  # the fused score is checked
                found[task] = np.exp(np.asarray(values, np.float64)) * watch_time_s[task]
        elif task in calibration.calibrators:
            found[task] = calibration.calibrators[task](values, columns)
        else:
            found[task] = sigmoid(values)
    return found
