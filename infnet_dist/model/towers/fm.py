"""Factorization machine (Rendle 2010): all pairs of fields, in time linear in their number."""

import torch
from torch import nn


class FM(nn.Module):
    """Tokens [B, N, D] -> [B, N D + D]: the first-order terms, and the pairs by factor.

    sum_{i<j} v_i * v_j = ((sum_i v_i)^2 - sum_i v_i^2) / 2 (lemma 3.1, before the sum over the D
    factors). A linear head gives each task a weight per factor; with weights of 1 it is the paper's
    pair term. The inputs are tokens, which are projected and normalised as for all towers, so the
    norm of an embedding has no effect.

    Args:
        num_tokens: N.
        token_dim: D.
    """

    def __init__(self, *, num_tokens: int, token_dim: int) -> None:
        super().__init__()
        self.out_dim = (num_tokens + 1) * token_dim

    def forward(self, token_BND: torch.Tensor) -> torch.Tensor:
        """[B, out_dim]."""
        pairs_BD = (token_BND.sum(1).square() - token_BND.square().sum(1)) / 2
        return torch.cat([token_BND.flatten(1), pairs_BD], dim=1)
