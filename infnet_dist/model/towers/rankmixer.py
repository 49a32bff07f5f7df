"""RankMixer (Zhu et al. 2025, arXiv 2507.15551): tokens exchange parts, then per-token FFNs.

Letters: B batch, T tokens of the mixer, D their width.
"""

import torch
from torch import nn
from torch.nn import functional


class RankMixer(nn.Module):
    """Tokens [B, N, token_dim] -> [B, D], the mean of the last block's tokens.

    The concatenated inputs are split into T equal pieces with a projection each ("tokenization").
    Block: S = LN(mix(X) + X), X <- LN(PFFN(S) + S).

    Args:
        num_tokens: N.
        token_dim: width of the inputs.
        num_mixed: T, and the number of heads.
        mixed_dim: D, a multiple of T.
        num_blocks: blocks.
        expansion: hidden width of the per-token FFN over D.

    Raises:
        ValueError: T doesn't divide D.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        token_dim: int,
        num_mixed: int = 8,
        mixed_dim: int = 64,
        num_blocks: int = 2,
        expansion: int = 2,
    ) -> None:
        super().__init__()
        if mixed_dim % num_mixed:
            raise ValueError(
                f"num_mixed: {num_mixed} doesn't divide mixed_dim {mixed_dim}; choose a divisor"
            )
        self.piece = -(-num_tokens * token_dim // num_mixed)
        self.num_mixed = num_mixed
        self.pad = self.piece * num_mixed - num_tokens * token_dim
        self.project = PerToken(num_mixed, self.piece, mixed_dim)
        self.blocks = nn.ModuleList(
            MixerBlock(num_mixed, mixed_dim, expansion) for _ in range(num_blocks)
        )
        self.out_dim = mixed_dim

    def forward(self, token_BND: torch.Tensor) -> torch.Tensor:
        """[B, out_dim]."""
        flat_BX = functional.pad(token_BND.flatten(1), (0, self.pad))
        mixed_BTD = self.project(flat_BX.unflatten(1, (self.num_mixed, self.piece)))
        for block in self.blocks:
            mixed_BTD = block(mixed_BTD)
        return mixed_BTD.mean(dim=1)


class PerToken(nn.Module):
    """A separate linear map per token."""

    def __init__(self, num_tokens: int, in_dim: int, out_dim: int) -> None:
        """Weights are initialised as in `nn.Linear`, biases are 0."""
        super().__init__()
        bound = in_dim**-0.5
        self.weight_TIO = nn.Parameter(torch.empty(num_tokens, in_dim, out_dim))
        nn.init.uniform_(self.weight_TIO, -bound, bound)
        self.bias_TO = nn.Parameter(torch.zeros(num_tokens, out_dim))

    def forward(self, token_BTI: torch.Tensor) -> torch.Tensor:
        """[B, T, O]."""
        return torch.einsum("bti,tio->bto", token_BTI, self.weight_TIO) + self.bias_TO


class MixerBlock(nn.Module):
    """Multi-head token mixing and per-token FFN."""

    def __init__(self, num_tokens: int, dim: int, expansion: int) -> None:
        """There are as many heads as tokens, so that the residual has the same shape."""
        super().__init__()
        self.num_tokens = num_tokens
        self.mix_norm = nn.LayerNorm(dim)
        self.up = PerToken(num_tokens, dim, expansion * dim)
        self.down = PerToken(num_tokens, expansion * dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, token_BTD: torch.Tensor) -> torch.Tensor:
        """[B, T, D]; new token h holds head h of every token."""
        heads_BThd = token_BTD.unflatten(-1, (self.num_tokens, -1))
        mixed_BTD = self.mix_norm(heads_BThd.transpose(1, 2).flatten(-2) + token_BTD)
        new_BTD: torch.Tensor = self.norm(
            self.down(functional.gelu(self.up(mixed_BTD))) + mixed_BTD
        )
        return new_BTD
