"""Building blocks of several towers.

Letters: B batch, Q queries, N keys, D token width, h heads, F behaviours, L history tokens.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from infnet_dist.model.tokens import Tokens


def mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Linear, SiLU, Linear; the last bias is initially 0."""
    last = nn.Linear(hidden_dim, out_dim)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.SiLU(), last)


def perceptron(in_dim: int, hidden_dims: Sequence[int]) -> nn.Sequential:
    """Linear and ReLU per hidden width; the output is the last hidden layer."""
    dims = [in_dim, *hidden_dims]
    layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(dims)]
    return nn.Sequential(*(part for layer in layers for part in layer))


def attend(
    query_BQD: torch.Tensor,
    key_BND: torch.Tensor,
    value_BND: torch.Tensor,
    *,
    num_heads: int,
    mask_BN: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multi-head softmax(Q K^T / sqrt(d)) V, without projections.

    Args:
        query_BQD: projected queries.
        key_BND: projected keys.
        value_BND: projected values.
        num_heads: h; D is a multiple of it.
        mask_BN: bool, False for keys to ignore. A row without any key gets 0, not NaN.

    Returns:
        [B, Q, D].
    """
    query, key, value = (_split(x, num_heads) for x in (query_BQD, key_BND, value_BND))
    if mask_BN is None:
        return _join(functional.scaled_dot_product_attention(query, key, value))
    any_B = mask_BN.any(dim=1)
    usable_BN = mask_BN | ~any_B.unsqueeze(1)  # an all-False row would make the softmax NaN
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=usable_BN[:, None, None, :]
    )
    return _join(mixed) * any_B[:, None, None]


def behaviour_matrix(sequence_lengths: Sequence[int]) -> torch.Tensor:
    """float32 [L, F]: 1 where history position l belongs to behaviour f."""
    behaviour_L = torch.repeat_interleave(
        torch.arange(len(sequence_lengths)), torch.tensor(list(sequence_lengths), dtype=torch.long)
    )
    return functional.one_hot(behaviour_L, max(len(sequence_lengths), 1)).float()


class MeanPooling(nn.Module):
    """The mean of each behaviour's valid items; 0 for an empty history."""

    behaviour_LF: torch.Tensor

    def __init__(self, *, sequence_lengths: Sequence[int], token_dim: int) -> None:
        super().__init__()
        self.register_buffer("behaviour_LF", behaviour_matrix(sequence_lengths), persistent=False)

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """[B, F, D]."""
        if not tokens.target_BFD.shape[1]:
            return tokens.target_BFD
        return self.mean(tokens.sequence_BLD, tokens.mask_BL)

    def mean(self, sequence_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """[B, F, D], F at least 1."""
        valid_BL = mask_BL.to(sequence_BLD.dtype)
        total_BFD = torch.einsum("bl,bld,lf->bfd", valid_BL, sequence_BLD, self.behaviour_LF)
        return total_BFD / (valid_BL @ self.behaviour_LF).clamp(min=1).unsqueeze(-1)


def _split(x_BND: torch.Tensor, num_heads: int) -> torch.Tensor:
    return x_BND.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _join(x_BhNd: torch.Tensor) -> torch.Tensor:
    return x_BhNd.transpose(1, 2).flatten(-2)


class TaskHeads(nn.Module):
    """y_k = MLP_k(x_k): separate parameters per task (INFNet v1 and v2, head)."""

    def __init__(self, num_tasks: int, in_dim: int, hidden_dim: int) -> None:
        """One MLP per task."""
        super().__init__()
        self.heads = nn.ModuleList(mlp(in_dim, hidden_dim, 1) for _ in range(num_tasks))

    def forward(self, task_BKX: torch.Tensor) -> torch.Tensor:
        """Inputs of the heads [B, K, in_dim] -> logits [B, K]."""
        logits = [head(task_BKX[:, k]) for k, head in enumerate(self.heads)]
        return torch.cat(logits, dim=1)
