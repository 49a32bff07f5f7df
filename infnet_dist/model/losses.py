"""Weighted multi-task losses."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class MultiTaskLoss(nn.Module):
    """sum_k lambda_k L_k (INFNet v1, training objective), over rows that aren't padding.

    A row whose label of a task is NaN (nobody knows) is left out of that task's L_k.

    L_k is the BCE of a binary task. Of a watch time t it is the weighted logistic loss: the BCE of
    label t / (1 + t) with weight 1 + t, which is t softplus(-z) + softplus(z). Its minimum over all
    rows is exp(z) = E[t], the prediction (Covington et al. 2016, RecSys, section 4.2); without the
    weight it would be the odds of E[t / (1 + t)], which is too low.

    Each L_k is divided by the batch *size*, not by the number of real rows: with gradients
    averaged over ranks, every real row then weighs the same in a padded last batch, whatever rank
    it stands on, and no rank needs to know the others' counts.

    Args:
        task_weights: lambda by task, K floats.
        watch_time: which tasks are watch times, K; none of them by default.
    """

    weight_K: torch.Tensor
    watch_time_K: torch.Tensor

    def __init__(
        self, task_weights: Sequence[float], watch_time: Sequence[bool] | None = None
    ) -> None:
        """Keep the weights beside the model, outside its checkpoint."""
        super().__init__()
        kinds = torch.tensor(watch_time or [False] * len(task_weights))
        self.register_buffer("weight_K", torch.tensor(task_weights), persistent=False)
        self.register_buffer("watch_time_K", kinds, persistent=False)

    def forward(
        self, logits_BK: torch.Tensor, labels_BK: torch.Tensor, weights_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The scalar loss, and the unweighted loss per task [K]."""
        known_BK = ~labels_BK.isnan()
        # Before any product: NaN x 0 is NaN, also in backward.
        labels_BK, logits_BK = labels_BK.nan_to_num(), logits_BK.where(known_BK, 0.0)
        positive_BK, negative_BK = labels_BK, torch.where(self.watch_time_K, 1.0, 1 - labels_BK)
        loss_BK = positive_BK * functional.softplus(-logits_BK)
        loss_BK = loss_BK + negative_BK * functional.softplus(logits_BK)
        per_task_K = (loss_BK * known_BK * weights_B.unsqueeze(1)).sum(0) / len(weights_B)
        return per_task_K @ self.weight_K, per_task_K
