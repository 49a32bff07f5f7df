"""Tasks that are conditional on others (ESMM, Ma et al. 2018, arXiv 1804.07931)."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class EntireSpace(nn.Module):
    """Conditional logits [B, K] -> logits over all rows, [B, K].

    For a task k with a parent, the tower's logit z_k is that of P(k | parent), and over all rows
    p_k = p_parent sigmoid(z_k) (equations 1 and 2), so that no task trains on a selected sample.
    The result is logit(p_k), the same kind of logit as for other tasks.

    Args:
        parents: for each task the index of the task that it is conditional on; None: no task.
    """

    def __init__(self, parents: Sequence[int | None]) -> None:
        """Compute each task's chain of parents.

        Raises:
            ValueError: the parents have a cycle.
        """
        super().__init__()
        self.chains = [_chain(parents, task) for task in range(len(parents))]

    def forward(self, logits_BK: torch.Tensor) -> torch.Tensor:
        """[B, K]; logits of tasks without a parent are unchanged."""
        log_conditional_BK = functional.logsigmoid(logits_BK)
        columns = []
        for task, chain in enumerate(self.chains):
            if len(chain) == 1:
                columns.append(logits_BK[:, task])
                continue
            log_p_B = log_conditional_BK[:, chain].sum(dim=1)
            log_p_B = log_p_B.clamp(max=-torch.finfo(log_p_B.dtype).tiny)
            columns.append(log_p_B - torch.log(-torch.expm1(log_p_B)))
        return torch.stack(columns, dim=1)


def _chain(parents: Sequence[int | None], task: int) -> list[int]:
    chain, above = [task], parents[task]
    while above is not None:
        if above in chain:
            raise ValueError(f"the parents of tasks have a cycle: {[*chain, above]}")
        chain.append(above)
        above = parents[above]
    return chain
