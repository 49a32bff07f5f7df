"""Tasks that happen under others (ESMM, Ma et al. 2018, arXiv 1804.07931): like given click."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class EntireSpace(nn.Module):
    """Conditional logits [B, K] -> logits over all rows, [B, K].

    The tower's logit z_k of a task under another is that of P(k | parent); over all rows p_k =
    p_parent sigmoid(z_k) (equations 1 and 2), so that no task trains on a selected sample. The
    result is logit(p_k): losses and metrics needn't know.

    Args:
        parents: for each task the number of the task it happens under; None: of none.
    """

    def __init__(self, parents: Sequence[int | None]) -> None:
        """Remember each task's chain up to the task that stands under none.

        Raises:
            ValueError: tasks stand under one another in a ring.
        """
        super().__init__()
        self.chains = [_chain(parents, task) for task in range(len(parents))]

    def forward(self, logits_BK: torch.Tensor) -> torch.Tensor:
        """[B, K]; the logits of tasks under none stay as they are."""
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
            raise ValueError(f"a ring of tasks: {[*chain, above]}")
        chain.append(above)
        above = parents[above]
    return chain
