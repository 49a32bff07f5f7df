"""DeepFM (Guo et al. 2017, arXiv 1703.04247): a factorization machine and an MLP side by side."""

from collections.abc import Sequence

import torch
from torch import nn

from infnet_dist.model.towers.deep import Deep
from infnet_dist.model.towers.fm import FM


class DeepFM(nn.Module):
    """Tokens [B, N, D] -> [B, N D + D + last hidden width].

    A linear head sums both parts (equation 1); they share the embeddings.

    Args:
        num_tokens: N.
        token_dim: D.
        hidden_dims: widths of the MLP's layers.
    """

    def __init__(
        self, *, num_tokens: int, token_dim: int, hidden_dims: Sequence[int] = (128, 64)
    ) -> None:
        super().__init__()
        self.fm = FM(num_tokens=num_tokens, token_dim=token_dim)
        self.deep = Deep(num_tokens=num_tokens, token_dim=token_dim, hidden_dims=hidden_dims)
        self.out_dim = self.fm.out_dim + self.deep.out_dim

    def forward(self, token_BND: torch.Tensor) -> torch.Tensor:
        """[B, out_dim]."""
        return torch.cat([self.fm(token_BND), self.deep(token_BND)], dim=1)
