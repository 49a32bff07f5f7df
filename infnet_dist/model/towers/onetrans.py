"""OneTrans (Zhang et al. 2025, arXiv 2510.26104): one transformer over history and field tokens.

Letters: B batch, S history tokens with separators, N field tokens, Q queries, D width, h heads.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from infnet_dist.model.tokens import Tokens
from infnet_dist.model.towers.rankmixer import PerToken


class OneTrans(nn.Module):
    """Tokens -> logits [B, K].

    The sequence is the history, each behaviour from oldest to newest and followed by a separator,
    and then the fields. A token reads itself and the tokens before it (causal attention), so the
    fields read all history. History tokens share weights, each field token has its own ("mixed
    parameterization"). Each block has fewer history tokens, the last ones, as queries ("pyramid");
    the last block has only the fields. The head reads the mean of the fields (our choice).

    Args:
        num_fields: N.
        sequence_lengths: L_f of each behaviour; empty for none.
        num_tasks: K.
        token_dim: D.
        num_blocks: blocks.
        num_heads: h; divides D.
    """

    def __init__(
        self,
        *,
        num_fields: int,
        sequence_lengths: Sequence[int],
        num_tasks: int,
        token_dim: int = 32,
        num_blocks: int = 2,
        num_heads: int = 2,
    ) -> None:
        super().__init__()
        self.sequence_lengths = list(sequence_lengths)
        self.separator_FD = None
        if self.sequence_lengths:
            count = len(self.sequence_lengths)
            self.separator_FD = nn.Parameter(torch.randn(count, token_dim) * 0.02)
        length = sum(self.sequence_lengths) + len(self.sequence_lengths)
        # History tokens that remain after each block: evenly fewer, none after the last block.
        left = [length * (num_blocks - i) // num_blocks for i in range(num_blocks + 1)]
        self.blocks = nn.ModuleList(
            OneTransBlock(num_fields, token_dim, num_heads, reads=reads, asks=asks)
            for reads, asks in pairwise(left)
        )
        self.norm = nn.RMSNorm(token_dim)
        self.head = nn.Linear(token_dim, num_tasks)

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """[B, K]."""
        history_BSD, mask_BS = self._history(tokens)
        token_BXD = torch.cat([history_BSD, tokens.categorical_BMD], dim=1)
        mask_BX = functional.pad(mask_BS, (0, tokens.categorical_BMD.shape[1]), value=True)
        for block in self.blocks:
            token_BXD = block(token_BXD, mask_BX)
            mask_BX = mask_BX[:, -token_BXD.shape[1] :]
        logits_BK: torch.Tensor = self.head(self.norm(token_BXD).mean(dim=1))
        return logits_BK

    def _history(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Each behaviour, oldest item first, then its separator: [B, S, D], and the mask [B, S]."""
        if self.separator_FD is None:
            return tokens.sequence_BLD, tokens.mask_BL
        batch = tokens.mask_BL.shape[0]
        items = tokens.sequence_BLD.split(self.sequence_lengths, dim=1)
        masks = tokens.mask_BL.split(self.sequence_lengths, dim=1)
        parts, valid = [], []
        for item_BLD, mask_BL, separator_D in zip(items, masks, self.separator_FD, strict=True):
            parts += [item_BLD.flip(1), separator_D.expand(batch, 1, -1)]
            valid += [mask_BL.flip(1), mask_BL.new_ones(batch, 1)]
        return torch.cat(parts, dim=1), torch.cat(valid, dim=1)


class OneTransBlock(nn.Module):
    """Z = MixedMHA(RMSNorm(X)) + X; X <- MixedFFN(RMSNorm(Z)) + Z."""

    def __init__(
        self, num_fields: int, token_dim: int, num_heads: int, *, reads: int, asks: int
    ) -> None:
        """The input has `reads` history tokens; the last `asks` of them are queries and outputs."""
        super().__init__()
        self.num_heads = num_heads
        self.num_queries = asks + num_fields
        self.norm = nn.RMSNorm(token_dim)
        self.key_value = Mixed(num_fields, token_dim, 2 * token_dim, with_history=reads > 0)
        self.query = Mixed(num_fields, token_dim, token_dim, with_history=asks > 0)
        self.out = nn.Linear(token_dim, token_dim)
        self.ffn_norm = nn.RMSNorm(token_dim)
        self.up = Mixed(num_fields, token_dim, 2 * token_dim, with_history=asks > 0)
        self.down = Mixed(num_fields, 2 * token_dim, token_dim, with_history=asks > 0)

    def forward(self, token_BXD: torch.Tensor, mask_BX: torch.Tensor) -> torch.Tensor:
        """History [B, reads, D] and then fields [B, N, D] -> the last `asks` and the fields."""
        count = token_BXD.shape[1]
        causal_XX = torch.ones(count, count, dtype=torch.bool, device=mask_BX.device).tril()
        itself_XX = torch.eye(count, dtype=torch.bool, device=mask_BX.device)
        reads_BXX = (causal_XX & mask_BX.unsqueeze(1)) | itself_XX
        normed_BXD = self.norm(token_BXD)
        query_BQD = self.query(normed_BXD[:, -self.num_queries :])
        parts = [query_BQD, *self.key_value(normed_BXD).chunk(2, dim=-1)]
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts
        )
        read_BhQd = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=reads_BXX[:, -self.num_queries :].unsqueeze(1)
        )
        mixed_BQD = self.out(read_BhQd.transpose(1, 2).flatten(-2))
        mixed_BQD = mixed_BQD + token_BXD[:, -self.num_queries :]
        hidden_BQZ = functional.silu(self.up(self.ffn_norm(mixed_BQD)))
        new_BQD: torch.Tensor = mixed_BQD + self.down(hidden_BQZ)
        return new_BQD


class Mixed(nn.Module):
    """One linear map shared by history tokens, and one per field token."""

    def __init__(self, num_fields: int, in_dim: int, out_dim: int, *, with_history: bool) -> None:
        """`with_history=False` has only the maps of the fields."""
        super().__init__()
        self.num_fields = num_fields
        self.fields = PerToken(num_fields, in_dim, out_dim)
        self.history = nn.Linear(in_dim, out_dim) if with_history else None

    def forward(self, token_BXI: torch.Tensor) -> torch.Tensor:
        """History and then fields [B, X, in] -> [B, X, out]."""
        field_BNO = self.fields(token_BXI[:, -self.num_fields :])
        if self.history is None:
            return field_BNO
        history_BSO = self.history(token_BXI[:, : -self.num_fields])
        return torch.cat([history_BSO, field_BNO], dim=1)
