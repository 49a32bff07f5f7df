"""Deep Interest Network (Zhou et al. 2018, arXiv 1706.06978): items weighted by the candidate.

Letters: B batch, L history tokens, F behaviours, D width.
"""

from collections.abc import Sequence

import torch
from torch import nn

from infnet_dist.model.tokens import Tokens
from infnet_dist.model.towers.blocks import mlp


class DIN(nn.Module):
    """Tokens -> one summary per behaviour, [B, F, D].

    v_f = sum_j a(e_j, v_A) e_j (equation 3): the weights aren't normalised, so that several
    items similar to the candidate count more than one. The activation unit a is an MLP of [e, v,
    e - v, e * v], one per behaviour (SiLU is our choice: the paper's Dice normalises over the
    batch, so a row's logits would depend on the other rows).

    Args:
        sequence_lengths: L_f of each behaviour.
        token_dim: D.
        hidden_dim: hidden width of the activation unit.
    """

    def __init__(
        self, *, sequence_lengths: Sequence[int], token_dim: int, hidden_dim: int = 32
    ) -> None:
        super().__init__()
        self.sequence_lengths = list(sequence_lengths)
        self.activation = nn.ModuleList(
            mlp(4 * token_dim, hidden_dim, 1) for _ in self.sequence_lengths
        )

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """[B, F, D]; 0 for an empty history."""
        if not self.sequence_lengths:
            return tokens.target_BFD
        items = tokens.sequence_BLD.split(self.sequence_lengths, dim=1)
        masks = tokens.mask_BL.split(self.sequence_lengths, dim=1)
        summaries = []
        for f, (item_BLD, mask_BL) in enumerate(zip(items, masks, strict=True)):
            target_BLD = tokens.target_BFD[:, f : f + 1].expand_as(item_BLD)
            pair = [item_BLD, target_BLD, item_BLD - target_BLD, item_BLD * target_BLD]
            weight_BL1 = self.activation[f](torch.cat(pair, dim=-1))
            weight_BL1 = weight_BL1.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
            summaries.append((weight_BL1 * item_BLD).sum(dim=1))
        return torch.stack(summaries, dim=1)
