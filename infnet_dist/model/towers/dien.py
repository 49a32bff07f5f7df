"""Deep Interest Evolution Network (Zhou et al. 2019, arXiv 1809.03672): interests over time.

Not implemented: the auxiliary loss, which needs sampled negatives for every step of the history.

Letters: B batch, L history positions of the longest behaviour, F behaviours, D width, N = B F.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from infnet_dist.model.tokens import Tokens


class DIEN(nn.Module):
    """Tokens -> one summary per behaviour, [B, F, D].

    A GRU reads the items from the oldest to the newest ("interest extractor layer"); its states are
    compared with the candidate, a_t = softmax(h_t W e_A), and a GRU whose update gate is scaled by
    a_t reads them ("interest evolving layer", AUGRU); its last state is the summary. All behaviours
    share the same cells.

    Args:
        sequence_lengths: L_f of each behaviour.
        token_dim: D.
    """

    def __init__(self, *, sequence_lengths: Sequence[int], token_dim: int) -> None:
        super().__init__()
        self.sequence_lengths = list(sequence_lengths)
        if self.sequence_lengths:
            self.extractor = nn.GRU(token_dim, token_dim, batch_first=True)
            self.compare = nn.Linear(token_dim, token_dim, bias=False)
            self.evolution = AUGRU(token_dim)

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """[B, F, D]; 0 for an empty history."""
        if not self.sequence_lengths:
            return tokens.target_BFD
        item_NLD, mask_NL = self._oldest_first(tokens)
        state_NLD, _ = self.extractor(item_NLD)
        target_ND = self.compare(tokens.target_BFD.flatten(0, 1))
        score_NL = (state_NLD @ target_ND.unsqueeze(-1)).squeeze(-1)
        score_NL = score_NL.masked_fill(~mask_NL, torch.finfo(score_NL.dtype).min)
        weight_NL = score_NL.softmax(dim=1) * mask_NL
        summary_ND = self.evolution(state_NLD, weight_NL)
        return summary_ND.unflatten(0, (-1, len(self.sequence_lengths)))

    def _oldest_first(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Items [N, L, D] from oldest to newest, then padding, and their mask [N, L]."""
        longest = max(self.sequence_lengths)
        items, masks = [], []
        for item_BLD, mask_BL in zip(
            tokens.sequence_BLD.split(self.sequence_lengths, dim=1),
            tokens.mask_BL.split(self.sequence_lengths, dim=1),
            strict=True,
        ):
            missing = longest - item_BLD.shape[1]
            items.append(functional.pad(item_BLD.flip(1), (0, 0, 0, missing)))
            masks.append(functional.pad(mask_BL.flip(1), (0, missing)))
        item_NLD = torch.stack(items, dim=1).flatten(0, 1)
        mask_NL = torch.stack(masks, dim=1).flatten(0, 1)
        order_NL = torch.argsort((~mask_NL).int(), dim=1, stable=True)
        item_NLD = item_NLD.gather(1, order_NL.unsqueeze(-1).expand_as(item_NLD))
        return item_NLD, mask_NL.gather(1, order_NL)


class AUGRU(nn.Module):
    """GRU with attentional update gate: u' = a_t u_t, h_t = (1 - u') h_{t-1} + u' h~_t."""

    def __init__(self, dim: int) -> None:
        """The maps have the gates in the order update, reset, candidate."""
        super().__init__()
        self.dim = dim
        self.input = nn.Linear(dim, 3 * dim)
        self.state = nn.Linear(dim, 3 * dim, bias=False)

    def forward(self, input_NLD: torch.Tensor, weight_NL: torch.Tensor) -> torch.Tensor:
        """The last state [N, D]."""
        state_ND = torch.zeros_like(input_NLD[:, 0])
        for part_NZ, weight_N in zip(
            self.input(input_NLD).unbind(1), weight_NL.unbind(1), strict=True
        ):
            update_x, reset_x, new_x = part_NZ.chunk(3, dim=-1)
            update_h, reset_h, new_h = self.state(state_ND).chunk(3, dim=-1)
            update_ND = weight_N.unsqueeze(-1) * torch.sigmoid(update_x + update_h)
            new_ND = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
            state_ND = (1 - update_ND) * state_ND + update_ND * new_ND
        return state_ND
