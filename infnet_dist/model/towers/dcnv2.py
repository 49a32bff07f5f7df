"""DCN V2 (Wang et al. 2021, arXiv 2008.13535): crosses with a matrix, of low rank."""

from collections.abc import Sequence

import torch
from torch import nn

from infnet_dist.model.towers.deep import Deep


class DCNv2(nn.Module):
    """Tokens [B, N, D] -> [B, N D + last hidden width], cross and deep part side by side.

    x_{l+1} = x_0 * (U_l V_l x_l + b_l) + x_l (equations 1 and 2), with x_0 = vec of the tokens.

    Args:
        num_tokens: N.
        token_dim: D.
        num_layers: cross layers.
        rank: columns of U and rows of V; the paper finds N D / 4 enough.
        hidden_dims: widths of the deep part's layers.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_layers: int = 3,
        rank: int = 64,
        hidden_dims: Sequence[int] = (128, 64),
    ) -> None:
        super().__init__()
        dim = num_tokens * token_dim
        self.down = nn.ModuleList(nn.Linear(dim, rank, bias=False) for _ in range(num_layers))
        self.up = nn.ModuleList(nn.Linear(rank, dim) for _ in range(num_layers))
        self.deep = Deep(num_tokens=num_tokens, token_dim=token_dim, hidden_dims=hidden_dims)
        self.out_dim = dim + self.deep.out_dim

    def forward(self, token_BND: torch.Tensor) -> torch.Tensor:
        """[B, out_dim]."""
        first_BX = cross_BX = token_BND.flatten(1)
        for down, up in zip(self.down, self.up, strict=True):
            cross_BX = first_BX * up(down(cross_BX)) + cross_BX
        return torch.cat([cross_BX, self.deep(token_BND)], dim=1)
