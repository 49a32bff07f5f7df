"""Weighted multi-task losses."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class MultiTaskLoss(nn.Module):
    """sum_k lambda_k L_k (INFNet v1, training objective) over the rows that aren't padding.

    L_k excludes rows whose label of task k is NaN (unknown). A row counts by its weight.

    For a binary task L_k is the binary cross-entropy (BCE). For a watch time t it is the weighted
    logistic loss: the BCE of label t / (1 + t) with weight 1 + t, which is t softplus(-z) +
    softplus(z). It is minimal at exp(z) = E[t], the prediction (Covington et al. 2016, RecSys,
    section 4.2); without the weight at the odds of E[t / (1 + t)], which is too low.

    Each L_k is divided by the batch *size*, not by the number of real rows or the sum of their
    weights: since gradients are averaged over ranks, a real row then counts the same in every
    batch, a padded last one too, whichever rank reads it, and ranks needn't exchange their sums.

    A teacher adds w sum_k lambda_k T_k, where T_k is the BCE of its probabilities, over the same
    rows with the same weights: soft targets of temperature 1 (Hinton et al. 2015, 1503.02531).

    Args:
        task_weights: lambda by task, K floats.
        watch_time: whether each task is a watch time, K; None: none of them.
        teacher_weight: w.
    """

    weight_K: torch.Tensor
    watch_time_K: torch.Tensor

    def __init__(
        self,
        task_weights: Sequence[float],
        watch_time: Sequence[bool] | None = None,
        *,
        teacher_weight: float = 0.0,
    ) -> None:
        """Register the weights as buffers that aren't part of checkpoints."""
        super().__init__()
        kinds = torch.tensor(watch_time or [False] * len(task_weights))
        self._any_watch_time = bool(kinds.any())
        self._teacher_weight = teacher_weight
        self.register_buffer("weight_K", torch.tensor(task_weights), persistent=False)
        self.register_buffer("watch_time_K", kinds, persistent=False)

    def forward(
        self,
        logits_BK: torch.Tensor,
        labels_BK: torch.Tensor,
        weights_B: torch.Tensor,
        teacher_BK: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The scalar loss, and the loss against the labels per task [K] before `task_weights`.

        `teacher_BK` as in `RankingBatch`; None adds nothing.
        """
        known_BK = ~labels_BK.isnan()
        # Before any product, since NaN x 0 is NaN, in backward as well.
        labels_BK, logits_BK = labels_BK.nan_to_num(), logits_BK.where(known_BK, 0.0)
        share_BK = known_BK * (weights_B / len(weights_B)).unsqueeze(1)
        positive_BK, total_BK = share_BK * labels_BK, share_BK
        if self._any_watch_time:
            total_BK = share_BK * torch.where(self.watch_time_K, 1 + labels_BK, 1.0)
        # BCE: y softplus(-z) + (1 - y) softplus(z), and softplus(-z) = softplus(z) - z.
        softplus_BK = functional.softplus(logits_BK)
        per_task_K = (total_BK * softplus_BK - positive_BK * logits_BK).sum(0)
        loss = per_task_K @ self.weight_K
        if teacher_BK is not None:
            taught_BK = ~teacher_BK.isnan()
            soft_BK = softplus_BK - teacher_BK.where(taught_BK, 0.0) * logits_BK
            soft_BK = share_BK * taught_BK * soft_BK
            loss = loss + self._teacher_weight * (soft_BK.sum(0) @ self.weight_K)
        return loss, per_task_K
