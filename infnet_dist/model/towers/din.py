"""Deep Interest Network (Zhou et al. 2018, arXiv 1706.06978): items weighted by the candidate.

Letters: B batch, L history tokens, F behaviours, D width.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

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
        """[B, F, D]; 0 for an empty history. One history (batch size 1) serves all candidates."""
        if not self.sequence_lengths:
            return tokens.target_BFD
        batch = tokens.target_BFD.shape[0]
        items = tokens.sequence_BLD.expand(batch, -1, -1).split(self.sequence_lengths, dim=1)
        masks = tokens.mask_BL.split(self.sequence_lengths, dim=1)
        summaries = []
        for f, (item_BLD, mask_BL) in enumerate(zip(items, masks, strict=True)):
            unit = self.activation[f]
            assert isinstance(unit, nn.Sequential) and isinstance(unit[0], nn.Linear)
            hidden_BLH = _pairs(unit[0], item_BLD, tokens.target_BFD[:, f])
            weight_BL = unit[1:](hidden_BLH).squeeze(-1).masked_fill(~mask_BL, 0.0)
            summaries.append(torch.bmm(weight_BL.unsqueeze(1), item_BLD))
        return torch.cat(summaries, dim=1)


def _pairs(layer: nn.Linear, item_BLD: torch.Tensor, target_BD: torch.Tensor) -> torch.Tensor:
    """`layer` of [e, v, e - v, e * v] for every item e and the row's target v, [B, L, H].

    It is linear in e for a given v, so a row has one matrix for all of its items.
    """
    item_HD, target_HD, difference_HD, product_HD = layer.weight.chunk(4, dim=1)
    weight_BHD = torch.addcmul(item_HD + difference_HD, product_HD, target_BD.unsqueeze(1))
    bias_BH = functional.linear(target_BD, target_HD - difference_HD, layer.bias)
    return torch.baddbmm(bias_BH.unsqueeze(1), item_BLD, weight_BHD.transpose(1, 2))
