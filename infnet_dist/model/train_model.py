"""The ranking model with its loss, as one module: batch -> (loss, StepOutput)."""

from typing import NamedTuple

import torch
from torch import nn

from infnet_dist.batch import RankingBatch
from infnet_dist.model.losses import MultiTaskLoss
from infnet_dist.model.ranking import RankingModel


class StepOutput(NamedTuple):
    """Detached outputs of a step for metrics: logits [B, K] and mean loss per task [K]."""

    logits_BK: torch.Tensor
    task_loss_K: torch.Tensor


class TrainModel(nn.Module):
    """The ranking model and its loss, as one module that DistributedModelParallel wraps."""

    def __init__(self, model: RankingModel, loss: MultiTaskLoss) -> None:
        """`model` is the servable part; labels are used only by `loss`."""
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: RankingBatch) -> tuple[torch.Tensor, StepOutput]:
        """The loss of this worker's batch, and the detached outputs."""
        logits_BK = self.model(
            batch.sparse_features,
            batch.weighted_features,
            batch.vectors_BV,
            batch.dense_BN,
            batch.time_gap_BL,
        )
        loss, task_loss_K = self.loss(logits_BK, batch.labels_BK, batch.weights_B, batch.teacher_BK)
        return loss, StepOutput(logits_BK.detach(), task_loss_K.detach())
