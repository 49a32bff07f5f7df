"""Heads on a shared representation: one linear map, or one tower per task (Caruana 1997)."""

import torch
from torch import nn

from infnet_dist.model.towers.blocks import perceptron


class LinearHead(nn.Linear):
    """[B, R] -> logits [B, K]: the last layer of FM, DeepFM, DCN and DIN."""

    def __init__(self, *, in_dim: int, num_tasks: int) -> None:
        """R inputs, K tasks."""
        super().__init__(in_dim, num_tasks)


class SharedBottom(nn.Module):
    """[B, R] -> logits [B, K]: one tower per task on shared layers.

    Args:
        in_dim: R.
        num_tasks: K.
        tower_dim: hidden width of a tower.
    """

    def __init__(self, *, in_dim: int, num_tasks: int, tower_dim: int = 32) -> None:
        super().__init__()
        self.towers = nn.ModuleList(tower(in_dim, tower_dim) for _ in range(num_tasks))

    def forward(self, shared_BR: torch.Tensor) -> torch.Tensor:
        """[B, K]."""
        return torch.cat([one(shared_BR) for one in self.towers], dim=1)


def tower(in_dim: int, hidden_dim: int) -> nn.Sequential:
    """[B, R] -> [B, 1]."""
    return nn.Sequential(perceptron(in_dim, [hidden_dim]), nn.Linear(hidden_dim, 1))
