"""Corrects predictions of models that were trained on a share of the negative rows.

Let a training set keep all rows with a label other than 0, and the others with probability w. Where
task t is 1 on all rows of the first kind, the odds of t in the set are 1 / w times the true ones:

    q = p / (p + (1 - p) / w), and on the logit z + log w        (He et al. 2014, section 6.3)

A row with features x is kept with probability s = q + w (1 - q). Labels of other tasks are 0 on the
rows that were dropped, so their predictions, watch times included, are 1 / s times too high.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from infnet_dist.errors import DataError, unknown_name
from infnet_dist.reranking.calibration.calibrators import Array


@dataclass(frozen=True)
class NegativeSampling:
    """How the negative rows of a training set were sampled.

    Attributes:
        task: task t, 1 on each row where any label isn't 0.
        share: w, the share of its negative rows that was kept, in (0, 1].

    Raises:
        DataError: the share isn't in (0, 1].
    """

    task: str
    share: float

    def __post_init__(self) -> None:
        check_share(self.share)

    def corrected(
        self, logits: Mapping[str, Array], watch_times: Collection[str] = ()
    ) -> dict[str, Array]:
        """Logits by task of rows that aren't sampled, float64 [n].

        Args:
            logits: predicted logits [n] by task; those of watch times are log E[t].
            watch_times: tasks that are watch times.

        Raises:
            DataError: there is no prediction of `task`, or it is a watch time.
        """
        if self.task not in logits or self.task in watch_times:
            known = [task for task in logits if task not in watch_times]
            raise DataError(f"sampling of negatives: {unknown_name('task', self.task, known)}")
        found = {task: np.asarray(values, np.float64) for task, values in logits.items()}
        base = corrected_logits(found[self.task], self.share)
        log_kept = np.logaddexp(  # log(q + w (1 - q))
            -np.logaddexp(0.0, -base), np.log(self.share) - np.logaddexp(0.0, base)
        )
        for task, values in found.items():
            if task in watch_times:
                found[task] = values + log_kept
            elif task != self.task:
                found[task] = _logit_of_log(log_kept - np.logaddexp(0.0, -values))
        return found | {self.task: base}

    def to_json(self) -> dict[str, Any]:
        """Task and share."""
        return {"task": self.task, "share": self.share}


def corrected_logits(logits: Array, share: float) -> Array:
    """Logits of the rows as they are, from those of a training set with a share of negatives.

    Raises:
        DataError: the share isn't in (0, 1].
    """
    check_share(share)
    return np.asarray(logits, np.float64) + np.log(share)


def corrected_probabilities(probabilities: Array, share: float) -> Array:
    """As `corrected_logits`, on probabilities; the same values up to rounding.

    Raises:
        DataError: the share isn't in (0, 1].
    """
    check_share(share)
    found = np.asarray(probabilities, np.float64)
    return found / (found + (1 - found) / share)


def check_share(share: float) -> None:
    """Check a share of negatives.

    Raises:
        DataError: it isn't in (0, 1].
    """
    if not 0 < share <= 1:
        raise DataError(f"share of negatives: got {share}, expected more than 0 and at most 1")


def _logit_of_log(log_p: Array) -> Array:
    """The logit of exp(log_p)."""
    log_p = np.minimum(log_p, -1e-15)  # share 1 and a logit of 40: a probability that rounds to 1
    return log_p - np.log(-np.expm1(log_p))


def sampling_from_json(value: Any) -> NegativeSampling:
    """The sampling of `to_json`.

    Raises:
        DataError: the value isn't one of a sampling.
    """
    try:
        return NegativeSampling(str(value["task"]), float(value["share"]))
    except (KeyError, TypeError) as error:
        raise DataError(f"malformed sampling of negatives ({error})") from None
