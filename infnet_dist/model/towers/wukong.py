"""Wukong (Zhang et al. 2024, arXiv 2403.02545): stacked factorization machines.

Letters: B batch, N tokens, D width, r rank of the factorization machine.
"""

from collections.abc import Sequence

import torch
from torch import nn

from infnet_dist.model.towers.blocks import perceptron


class Wukong(nn.Module):
    """Tokens [B, N, D] -> [B, n D] after `num_layers` layers, n = num_fm + num_compressed.

    Args:
        num_tokens: N.
        token_dim: D.
        num_layers: layers; layer l has interactions of up to 2^l tokens.
        num_fm: output tokens of the factorization machine block.
        num_compressed: output tokens of the linear compression.
        rank: r.
        hidden_dims: widths of the factorization machine block's MLP.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_layers: int = 2,
        num_fm: int = 8,
        num_compressed: int = 8,
        rank: int = 8,
        hidden_dims: Sequence[int] = (128,),
    ) -> None:
        super().__init__()
        width = num_fm + num_compressed
        self.layers = nn.ModuleList(
            WukongLayer(
                num_tokens=width if number else num_tokens,
                token_dim=token_dim,
                num_fm=num_fm,
                num_compressed=num_compressed,
                rank=rank,
                hidden_dims=hidden_dims,
            )
            for number in range(num_layers)
        )
        self.out_dim = width * token_dim

    def forward(self, token_BND: torch.Tensor) -> torch.Tensor:
        """[B, out_dim]."""
        for layer in self.layers:
            token_BND = layer(token_BND)
        return token_BND.flatten(1)


class WukongLayer(nn.Module):
    """X <- LN([FMB(X) ; LCB(X)] + X); a linear map adapts the number of X's tokens.

    FMB(X) = reshape(MLP(LN(vec(X X^T Y)))) with a learnable Y [N, r] (the paper's "optimized FM"),
    LCB(X) = W_L X ("linear compress block").
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_fm: int,
        num_compressed: int,
        rank: int,
        hidden_dims: Sequence[int],
    ) -> None:
        """Arguments as in `Wukong`."""
        super().__init__()
        self.num_fm = num_fm
        self.project = nn.Linear(num_tokens, rank, bias=False)
        self.fm_norm = nn.LayerNorm(num_tokens * rank)
        self.hidden = perceptron(num_tokens * rank, hidden_dims)
        self.fm_out = nn.Linear(hidden_dims[-1], num_fm * token_dim)
        self.compress = nn.Linear(num_tokens, num_compressed, bias=False)
        fits = num_tokens == num_fm + num_compressed
        self.residual = (
            nn.Identity() if fits else nn.Linear(num_tokens, num_fm + num_compressed, bias=False)
        )
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, token_BND: torch.Tensor) -> torch.Tensor:
        """[B, num_fm + num_compressed, D]."""
        column_BDN = token_BND.transpose(1, 2)
        pairs_BNr = token_BND @ self.project(column_BDN)  # X (X^T Y), which avoids the N x N matrix
        fm_BX = self.fm_out(self.hidden(self.fm_norm(pairs_BNr.flatten(1))))
        fm_BnD = fm_BX.unflatten(1, (self.num_fm, -1))
        compressed_BnD = self.compress(column_BDN).transpose(1, 2)
        residual_BnD = self.residual(column_BDN).transpose(1, 2)
        new_BnD: torch.Tensor = self.norm(torch.cat([fm_BnD, compressed_BnD], dim=1) + residual_BnD)
        return new_BnD
