"""Deep & Cross Network (Wang et al. 2017, arXiv 1708.05123): crosses of growing degree."""

from collections.abc import Sequence

import torch
from torch import nn

from infnet_dist.model.towers.deep import Deep


class DCN(nn.Module):
    """Tokens [B, N, D] -> [B, N D + last hidden width], cross and deep part side by side.

    x_{l+1} = x_0 (x_l . w_l) + b_l + x_l (equation 3), with x_0 = vec of the tokens.

    Args:
        num_tokens: N.
        token_dim: D.
        num_layers: cross layers.
        hidden_dims: widths of the deep part's layers.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_layers: int = 3,
        hidden_dims: Sequence[int] = (128, 64),
    ) -> None:
        super().__init__()
        dim = num_tokens * token_dim
        self.weight = nn.ModuleList(nn.Linear(dim, 1, bias=False) for _ in range(num_layers))
        self.bias = nn.ParameterList(torch.zeros(dim) for _ in range(num_layers))
        self.deep = Deep(num_tokens=num_tokens, token_dim=token_dim, hidden_dims=hidden_dims)
        self.out_dim = dim + self.deep.out_dim

    def forward(self, token_BND: torch.Tensor) -> torch.Tensor:
        """[B, out_dim]."""
        first_BX = cross_BX = token_BND.flatten(1)
        for weight, bias in zip(self.weight, self.bias, strict=True):
            cross_BX = first_BX * weight(cross_BX) + bias + cross_BX
        return torch.cat([cross_BX, self.deep(token_BND)], dim=1)
