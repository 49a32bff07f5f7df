"""Multi-gate mixture of experts (Ma et al. 2018, KDD): each task mixes shared experts by a gate.

Letters: B batch, R input width, n experts, K tasks, H expert width.
"""

import torch
from torch import nn
from torch.nn import functional

from infnet_dist.model.towers.blocks import perceptron
from infnet_dist.model.towers.shared_bottom import tower


class MMoE(nn.Module):
    """[B, R] -> logits [B, K].

    y_k = h_k(sum_i g_k(x)_i f_i(x)) with g_k(x) = softmax(W_k x) (section 4.2).

    Expert dropout: in training each expert is dropped with this probability, per row and task, and
    the other gates are rescaled to sum to 1. It keeps gates from collapsing to one expert
    (polarisation; Zhao et al. 2019, RecSys).

    Args:
        in_dim: R.
        num_tasks: K.
        num_experts: n.
        expert_dim: H.
        tower_dim: hidden width of a task's tower.
        expert_dropout: probability of dropping an expert.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        num_tasks: int,
        num_experts: int = 4,
        expert_dim: int = 64,
        tower_dim: int = 32,
        expert_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.expert_dropout = expert_dropout
        self.num_experts = num_experts
        self.experts = perceptron(in_dim, [num_experts * expert_dim])  # side by side
        self.gates = nn.Linear(in_dim, num_tasks * num_experts, bias=False)
        self.towers = nn.ModuleList(tower(expert_dim, tower_dim) for _ in range(num_tasks))

    def forward(self, shared_BR: torch.Tensor) -> torch.Tensor:
        """[B, K]."""
        expert_BnH = self.experts(shared_BR).unflatten(1, (self.num_experts, -1))
        gate_BKn = self.gates(shared_BR).unflatten(1, (-1, self.num_experts)).softmax(dim=-1)
        mixed_BKH = torch.bmm(self._drop(gate_BKn), expert_BnH)
        each = zip(self.towers, mixed_BKH.unbind(1), strict=True)
        return torch.cat([tower_k(mixed_BH) for tower_k, mixed_BH in each], dim=1)

    def _drop(self, gate_BKn: torch.Tensor) -> torch.Tensor:
        """Drop experts in training; a row and task that would lose all experts keeps all."""
        if not self.training or self.expert_dropout == 0:
            return gate_BKn
        kept_BKn = torch.rand_like(gate_BKn) >= self.expert_dropout
        kept_BKn = kept_BKn | ~kept_BKn.any(dim=-1, keepdim=True)
        return functional.normalize(gate_BKn * kept_BKn, p=1, dim=-1)
