"""Logits -> scores; torch alone, as predictions of files and of requests share them."""

import torch


def scores_of(logits: torch.Tensor, mean_ms: float | None) -> torch.Tensor:
    """Scores of a task, of the shape of its logits z.

    That of a binary task is P(label = 1), the sigmoid of z. That of a watch time is the expected
    time in ms, exp(z) times the training window's mean (`MultiTaskLoss`).

    Args:
        logits: float32.
        mean_ms: the mean watch time of the training window; None for binary tasks.
    """
    return logits.sigmoid() if mean_ms is None else logits.exp() * mean_ms
