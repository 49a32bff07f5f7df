"""Ranking metrics: exact pure functions, and a thin state that gathers scores over ranks.

Keys are `split/metric/task`, e.g. `valid/auc/click`. Where a metric isn't defined (one class only)
it is NaN; so it is where a score is NaN. `weights` [n] are weights of rows, finite and not
negative; a row of weight 2 counts as the row twice. None: all rows weigh 1.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from infnet_dist.distributed import heartbeat
from infnet_dist.distributed.context import WorkerContext

Array = npt.NDArray


_HIGHER = ("auc", "gauc", "r2")
_LOWER = ("log_loss", "normalized_entropy", "mae_s")


def higher_is_better(metric: str) -> bool:
    """Whether a higher value of a metric (`split/metric/task`) is better.

    Raises:
        ValueError: neither is better, e.g. of calibration.
    """
    kind = metric.split("/")[1]
    if kind not in (*_HIGHER, *_LOWER):
        raise ValueError(
            f"{metric!r} has no best value; expected one of {', '.join((*_HIGHER, *_LOWER))}"
        )
    return kind in _HIGHER


def auc(scores: Array, labels: Array, weights: Array | None = None) -> float:
    """Area under the ROC curve, exact, ties counted half.

    Args:
        scores: [n], any monotone score.
        labels: [n] in {0, 1}.
        weights: [n].

    Returns:
        P(score of a positive > score of a negative) + half of P(equal); NaN with one class.
    """
    return _grouped_auc(scores, labels, np.zeros(len(scores), np.int64), weights)


def gauc(scores: Array, labels: Array, groups: Array, weights: Array | None = None) -> float:
    """Mean AUC within groups that have both classes, weighted by their rows (impressions).

    The weight of a group is the sum of its rows' weights.

    Args:
        scores: [n], any monotone score.
        labels: [n] in {0, 1}.
        groups: [n] integer ids, e.g. users.
        weights: [n].

    Returns:
        NaN if no group has both classes.
    """
    return _grouped_auc(scores, labels, groups, weights)


def log_loss(logits: Array, labels: Array, weights: Array | None = None) -> float:
    """Mean binary cross entropy in nats, from logits [n] (so it never meets log 0)."""
    if len(logits) == 0:
        return float("nan")
    if np.isnan(logits).any():
        return float("nan")
    logits = logits.astype(np.float64)
    # log(1 + exp(-margin)) keeps the tiny loss of a confident, correct row
    return _mean(np.logaddexp(0.0, np.where(labels > 0, -logits, logits)), weights)


def normalized_entropy(logits: Array, labels: Array, weights: Array | None = None) -> float:
    """Log loss over the entropy of the label mean (He et al. 2014, equation 1); NaN, one class."""
    rate = _mean(labels, weights, dtype=np.float64)
    if not 0.0 < rate < 1.0:
        return float("nan")
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return log_loss(logits, labels, weights) / float(entropy)


def calibration(logits: Array, labels: Array, weights: Array | None = None) -> float:
    """Mean predicted probability over mean label: 1 is calibrated; NaN without a positive."""
    positives = _sum(labels, weights, dtype=np.float64)
    if positives == 0.0 or np.isnan(logits).any():
        return float("nan")
    predicted = np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
    return _sum(predicted, weights) / positives


def mean_absolute_error(predicted: Array, values: Array, weights: Array | None = None) -> float:
    """Mean of |prediction - value|, in their unit; NaN without rows."""
    return _mean(np.abs(predicted - values), weights)


def r2(predicted: Array, values: Array, weights: Array | None = None) -> float:
    """1 - squared errors over those of the mean: 1 is perfect, 0 no better than the mean."""
    if weights is not None:
        values = values.astype(np.float64)
    spread = _sum((values - _mean(values, weights)) ** 2, weights) if len(values) else 0.0
    if not spread > 0.0:
        return float("nan")
    return 1 - _sum((predicted - values) ** 2, weights) / spread


def _sum(values: Array, weights: Array | None, dtype: type | None = None) -> float:
    """The sum, of type `dtype` if there are no weights, else float64."""
    if weights is None:
        return float(np.sum(values, dtype=dtype))
    return float(np.sum(values * weights.astype(np.float64)))


def _mean(values: Array, weights: Array | None, dtype: type | None = None) -> float:
    """The mean, as in `_sum`; NaN without rows or weight."""
    if weights is None:
        return float(np.mean(values, dtype=dtype)) if len(values) else float("nan")
    total = float(np.sum(weights, dtype=np.float64))
    return _sum(values, weights) / total if total else float("nan")


def _grouped_auc(
    scores: Array, labels: Array, groups: Array, weights: Array | None = None
) -> float:
    """Mean over two-class groups of the rank-sum AUC, weighted by group size."""
    if len(scores) == 0 or np.isnan(scores).any():
        return float("nan")
    if weights is not None:
        return _weighted_auc(scores, labels, groups, weights)
    order = np.lexsort((scores, groups))
    scores, labels, groups = scores[order], labels[order].astype(np.float64), groups[order]
    new_group = np.concatenate([[True], groups[1:] != groups[:-1]])
    first = np.flatnonzero(new_group)
    size = np.diff(np.append(first, len(scores)))

    new_score = new_group | np.concatenate([[True], scores[1:] != scores[:-1]])
    tie = np.cumsum(new_score) - 1
    tie_first = np.flatnonzero(new_score)
    tie_last = np.append(tie_first[1:], len(scores)) - 1
    rank = ((tie_first + tie_last) / 2.0)[tie] - np.repeat(first, size) + 1.0  # mean rank of a tie

    positives = np.add.reduceat(labels, first)
    negatives = size - positives
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        return float("nan")
    rank_sum = np.add.reduceat(rank * labels, first)[both]
    positives, negatives, size = positives[both], negatives[both], size[both]
    per_group = (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
    return float(np.average(per_group, weights=size))


def _weighted_auc(scores: Array, labels: Array, groups: Array, weights: Array) -> float:
    """Mean over two-class groups of the weighted AUC, weighted by the weights of their rows."""
    order = np.lexsort((scores, groups))
    scores, groups, weights = scores[order], groups[order], weights[order].astype(np.float64)
    positive, negative = (weights * (labels[order] == label) for label in (1, 0))
    new_group = np.concatenate([[True], groups[1:] != groups[:-1]])
    tie_first = np.flatnonzero(new_group | np.concatenate([[True], scores[1:] != scores[:-1]]))
    positive_T, negative_T = (np.add.reduceat(part, tie_first) for part in (positive, negative))
    first = np.flatnonzero(new_group[tie_first])  # tie of each group

    below_T = np.concatenate([[0.0], np.cumsum(negative_T)[:-1]])
    below_T -= np.repeat(below_T[first], np.diff(np.append(first, len(tie_first))))
    wins = np.add.reduceat(positive_T * (below_T + negative_T / 2), first)
    positives, negatives = (np.add.reduceat(part, first) for part in (positive_T, negative_T))
    both = (positives > 0) & (negatives > 0)
    if not both.any():
        return float("nan")
    wins, positives, negatives = wins[both], positives[both], negatives[both]
    return float(np.average(wins / (positives * negatives), weights=positives + negatives))


class _Scores(NamedTuple):
    logits_BK: Array
    labels_BK: Array
    truth_BK: Array
    group_B: Array
    weights_B: Array


class MetricState:
    """Collects the scores of one evaluation on this rank; `compute` gathers and reduces once."""

    def __init__(
        self, tasks: Sequence[str], watch_time_s: Mapping[str, float] | None = None
    ) -> None:
        """An empty state for tasks in column order.

        Args:
            tasks: names.
            watch_time_s: of those that are watch times, the seconds of a label of 1.
        """
        self._tasks = list(tasks)
        self._watch_time_s = dict(watch_time_s or {})
        self._batches: list[_Scores] = []

    def update(
        self,
        logits_BK: torch.Tensor,
        labels_BK: torch.Tensor,
        *,
        truth_BK: torch.Tensor,
        group_B: torch.Tensor,
        weights_B: torch.Tensor,
    ) -> None:
        """Add a batch, without rows of weight 0; unknown labels (NaN) count for no metric."""
        real = weights_B > 0
        floats = [part[real].detach().float() for part in (logits_BK, labels_BK, truth_BK)]
        parts = [part.cpu().numpy() for part in (*floats, group_B[real], weights_B[real])]
        self._batches.append(_Scores._make(parts))

    def compute(self, context: WorkerContext, split: str) -> dict[str, dict[str, float]]:
        """Gather the scores of all ranks on rank 0, compute there, hand the result to all.

        Args:
            context: this worker.
            split: the split that was evaluated.

        Returns:
            `model`: every metric; `optimum`: the same metrics of the true probabilities, of the
            tasks where those are known.
        """
        gathered = context.gather_to_first(self._batches)
        result: dict[str, dict[str, float]] = {}
        if gathered is not None:
            heartbeat.beat()  # sorting many millions of scores takes minutes
            every = [batch for batches in gathered for batch in batches]
            assert every, "no batch was evaluated on any rank"
            scores = _Scores._make(np.concatenate(parts) for parts in zip(*every, strict=True))
            result = {
                "model": self._evaluate(scores, scores.logits_BK, split, self._tasks),
                "optimum": self._optimum(scores, split),
            }
        return context.broadcast(result)

    def _optimum(self, scores: _Scores, split: str) -> dict[str, float]:
        known = ~np.isnan(scores.truth_BK).any(axis=0)
        truth = np.clip(scores.truth_BK.astype(np.float64), 1e-7, 1 - 1e-7)
        tasks = [task for task, is_known in zip(self._tasks, known, strict=True) if is_known]
        return self._evaluate(scores, np.log(truth) - np.log1p(-truth), split, tasks)

    def _evaluate(
        self, scores: _Scores, logits_BK: Array, split: str, tasks: Sequence[str]
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        are_equal = bool((scores.weights_B == 1).all())
        for task in tasks:
            k = self._tasks.index(task)
            heartbeat.beat()
            known = ~np.isnan(scores.labels_BK[:, k])
            logits, labels = logits_BK[known, k], scores.labels_BK[known, k]
            weights = None if are_equal else scores.weights_B[known]
            if task in self._watch_time_s:
                predicted = np.exp(logits.astype(np.float64))
                mae_s = self._watch_time_s[task] * mean_absolute_error(predicted, labels, weights)
                metrics[f"{split}/mae_s/{task}"] = mae_s
                metrics[f"{split}/r2/{task}"] = r2(predicted, labels, weights)
                continue
            metrics[f"{split}/auc/{task}"] = auc(logits, labels, weights)
            heartbeat.beat()
            metrics[f"{split}/gauc/{task}"] = gauc(logits, labels, scores.group_B[known], weights)
            heartbeat.beat()
            metrics[f"{split}/log_loss/{task}"] = log_loss(logits, labels, weights)
            entropy = normalized_entropy(logits, labels, weights)
            metrics[f"{split}/normalized_entropy/{task}"] = entropy
            metrics[f"{split}/calibration/{task}"] = calibration(logits, labels, weights)
        return metrics
