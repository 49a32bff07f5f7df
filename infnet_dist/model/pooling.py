"""The numbers that pooling and padding depend on; torch alone, as training and serving share them.

Letters: B rows, L_f items kept of a behaviour.
"""

import torch


def num_ids(lengths: torch.Tensor) -> torch.Tensor:
    """What a mean divides by, float32 [..., 1]: the number of ids, 1 where there are none."""
    return lengths.unsqueeze(-1).float().clamp(min=1.0)


def total_weight(weights: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """What a weighted mean divides by, [B, 1]: the sum of weights, 1 where it is 0, as the rows'.

    Args:
        weights: of the ids of all rows, one row after the other.
        lengths_B: number of ids per row.
    """
    total_B = torch.segment_reduce(weights, "sum", lengths=lengths_B, initial=0)
    return total_B.where(total_B > 0, 1.0).unsqueeze(1)


def item_mask(lengths_B: torch.Tensor, length: int) -> torch.Tensor:
    """Bool [B, L_f]: True for the items of a history, False for its padding."""
    return torch.arange(length, device=lengths_B.device) < lengths_B.unsqueeze(1)
