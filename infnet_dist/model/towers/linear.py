"""Logistic regression: the sum of each token's own effect. The baseline of every comparison."""

import torch
from torch import nn


class Linear(nn.Module):
    """Tokens [B, N, D] -> [B, N D], all of them side by side for a linear head.

    A field's token depends only on its own id, so without history the logits are sums of effects of
    single ids and of one function of all dense features.

    Args:
        num_tokens: N.
        token_dim: D.
    """

    def __init__(self, *, num_tokens: int, token_dim: int) -> None:
        super().__init__()
        self.out_dim = num_tokens * token_dim

    def forward(self, token_BND: torch.Tensor) -> torch.Tensor:
        """[B, out_dim]."""
        return token_BND.flatten(1)
