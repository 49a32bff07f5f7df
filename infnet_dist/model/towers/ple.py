"""Progressive layered extraction (Tang et al. 2020, RecSys): shared and task-specific experts.

Letters: B batch, R input width, n experts, K tasks, H expert width.
"""

from collections.abc import Sequence

import torch
from torch import nn

from infnet_dist.model.towers.blocks import perceptron
from infnet_dist.model.towers.shared_bottom import tower


class PLE(nn.Module):
    """[B, R] -> logits [B, K].

    Args:
        in_dim: R.
        num_tasks: K.
        num_levels: stacked extraction networks.
        num_own: experts of each task and level.
        num_shared: shared experts of each level.
        expert_dim: H.
        tower_dim: hidden width of a task's tower.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        num_tasks: int,
        num_levels: int = 2,
        num_own: int = 2,
        num_shared: int = 2,
        expert_dim: int = 64,
        tower_dim: int = 32,
    ) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.levels = nn.ModuleList(
            ExtractionNetwork(
                in_dim=expert_dim if level else in_dim,
                num_tasks=num_tasks,
                num_own=num_own,
                num_shared=num_shared,
                expert_dim=expert_dim,
                is_last=level == num_levels - 1,
            )
            for level in range(num_levels)
        )
        self.towers = nn.ModuleList(tower(expert_dim, tower_dim) for _ in range(num_tasks))

    def forward(self, shared_BR: torch.Tensor) -> torch.Tensor:
        """[B, K]."""
        parts = [shared_BR] * (self.num_tasks + 1)  # each task's, then the shared one
        for level in self.levels:
            parts = level(parts)
        logits = [one(part_BH) for one, part_BH in zip(self.towers, parts, strict=False)]
        return torch.cat(logits, dim=1)


class ExtractionNetwork(nn.Module):
    """One level: a task's gate mixes its own and the shared experts, the shared gate all experts.

    g_k(x) = w_k(x) S_k(x), w_k = softmax(W_k x), S_k the outputs of the experts that k selects
    (customized gate control, equations 1 to 3). The last level has no shared gate.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        num_tasks: int,
        num_own: int,
        num_shared: int,
        expert_dim: int,
        is_last: bool,
    ) -> None:
        """Arguments as in `PLE`; the shared group of experts comes after those of the tasks."""
        super().__init__()
        counts = [num_own] * num_tasks + [num_shared]
        self.counts = counts
        self.experts = nn.ModuleList(perceptron(in_dim, [expert_dim]) for _ in range(sum(counts)))
        selected = [num_own + num_shared] * num_tasks + [sum(counts)] * (not is_last)
        self.gates = nn.ModuleList(nn.Linear(in_dim, count, bias=False) for count in selected)

    def forward(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """[B, R] per task and shared -> [B, H] per task and, but for the last level, shared."""
        read = [part for part, n in zip(parts, self.counts, strict=True) for _ in range(n)]
        made = [expert(part_BR) for expert, part_BR in zip(self.experts, read, strict=True)]
        outputs = torch.stack(made, dim=1).split(self.counts, dim=1)
        mixed = []
        for number, gate in enumerate(self.gates):
            is_shared = number == len(parts) - 1
            seen = outputs if is_shared else (outputs[number], outputs[-1])
            weight_Bn = gate(parts[number]).softmax(dim=-1)
            mixed.append(torch.bmm(weight_Bn.unsqueeze(1), torch.cat(seen, dim=1)).squeeze(1))
        return mixed
