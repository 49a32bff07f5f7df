"""Logits -> scores: probabilities, and watch times in milliseconds.

Letters: B rows, K tasks.
"""

from collections.abc import Sequence

import torch
from torch import nn

from infnet_dist.schema import Task


class Scores(nn.Module):
    """The scores of some tasks of a model.

    The score of a binary task is P(label = 1), the sigmoid of its logit z. That of a watch time is
    the expected time, exp(z) times the training window's mean (`MultiTaskLoss`), in ms.

    Args:
        tasks: all tasks of the model, in its order.
        names: of those to score.
    """

    places_k: torch.Tensor
    mean_ms_k: torch.Tensor
    watch_time_k: torch.Tensor

    def __init__(self, tasks: Sequence[Task], names: Sequence[str]) -> None:
        super().__init__()
        known = [task.name for task in tasks]
        places = [known.index(name) for name in names]
        kinds = [tasks[place].kind == "watch_time" for place in places]
        self.register_buffer("places_k", torch.tensor(places), persistent=False)
        means = torch.tensor([tasks[place].mean_ms for place in places])
        self.register_buffer("mean_ms_k", means, persistent=False)
        self.register_buffer("watch_time_k", torch.tensor(kinds), persistent=False)

    def forward(self, logits_BK: torch.Tensor) -> torch.Tensor:
        """Scores and logits of the chosen tasks side by side, float32 [B, 2k]."""
        logits_Bk = logits_BK.float().index_select(1, self.places_k)
        times_Bk = logits_Bk.exp() * self.mean_ms_k
        scores_Bk = torch.where(self.watch_time_k, times_Bk, logits_Bk.sigmoid())
        return torch.cat([scores_Bk, logits_Bk], dim=1)
