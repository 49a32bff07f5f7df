"""The deep part: an MLP of all tokens (Wide & Deep, arXiv 1606.07792; DIN's upper layers)."""

from collections.abc import Sequence

import torch
from torch import nn

from infnet_dist.model.towers.blocks import perceptron


class Deep(nn.Module):
    """Tokens [B, N, D] -> [B, last hidden width].

    Args:
        num_tokens: N.
        token_dim: D.
        hidden_dims: widths of the hidden layers.
    """

    def __init__(
        self, *, num_tokens: int, token_dim: int, hidden_dims: Sequence[int] = (128, 64)
    ) -> None:
        super().__init__()
        self.layers = perceptron(num_tokens * token_dim, hidden_dims)
        self.out_dim = hidden_dims[-1]

    def forward(self, token_BND: torch.Tensor) -> torch.Tensor:
        """[B, out_dim]."""
        out_BR: torch.Tensor = self.layers(token_BND.flatten(1))
        return out_BR
