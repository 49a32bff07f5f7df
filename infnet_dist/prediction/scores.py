"""Logits -> the columns of a prediction: scores, then logits.

Letters: B rows, K tasks.
"""

from collections.abc import Sequence

import torch

from infnet_dist.model.scores import scores_of
from infnet_dist.schema import Task


class Scores:
    """The scores (`model.scores`) of some tasks of a model.

    Args:
        tasks: all tasks of the model, in its order.
        names: of those to score.
    """

    def __init__(self, tasks: Sequence[Task], names: Sequence[str]) -> None:
        places = {task.name: place for place, task in enumerate(tasks)}
        self._chosen = [(places[name], _mean_ms(tasks[places[name]])) for name in names]

    def __call__(self, logits_BK: torch.Tensor) -> torch.Tensor:
        """Scores and logits of the chosen tasks side by side, float32 [B, 2k]."""
        logits = [(logits_BK[:, place].float(), mean_ms) for place, mean_ms in self._chosen]
        scores = [scores_of(logits_B, mean_ms) for logits_B, mean_ms in logits]
        return torch.stack([*scores, *(logits_B for logits_B, _ in logits)], dim=1)


def _mean_ms(task: Task) -> float | None:
    return task.mean_ms if task.kind == "watch_time" else None
