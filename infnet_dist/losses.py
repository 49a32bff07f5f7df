"""Weighted multi-task losses."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class MultiTaskLoss(nn.Module):
    """sum_k lambda_k BCE_k (INFNet v1, training objective), over rows that aren't padding.

    Each BCE_k is divided by the batch *size*, not by the number of real rows: with gradients
    averaged over ranks, every real row then weighs the same in a padded last batch, whatever rank
    it stands on, and no rank needs to know the others' counts.

    Args:
        task_weights: lambda by task, K floats.
    """

    weight_K: torch.Tensor

    def __init__(self, task_weights: Sequence[float]) -> None:
        """Keep the weights beside the model, outside its checkpoint."""
        super().__init__()
        self.register_buffer("weight_K", torch.tensor(task_weights), persistent=False)

    def forward(
        self, logits_BK: torch.Tensor, labels_BK: torch.Tensor, weights_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The scalar loss, and the unweighted BCE per task [K]."""
        bce_BK = functional.binary_cross_entropy_with_logits(logits_BK, labels_BK, reduction="none")
        per_task_K = (bce_BK * weights_B.unsqueeze(1)).sum(0) / len(weights_B)
        return per_task_K @ self.weight_K, per_task_K
