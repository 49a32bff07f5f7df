"""A block of INFNet v2: hubs aggregate from the tokens of all groups, then broadcast to their own.

Letters: B batch, H hubs of all receivers, N tokens of a group, L history tokens, D width.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from infnet_dist.model.towers.blocks import attend, mlp


class Flow(NamedTuple):
    """Which groups a block updates.

    Attributes:
        reads: for each group whose hubs are updated, the groups whose tokens these hubs read.
        gated: the groups whose tokens are updated by their hubs, all of them keys of `reads`.
    """

    reads: Mapping[str, Sequence[str]]
    gated: Sequence[str]


class HubBlock(nn.Module):
    """Aggregate, then broadcast.

    aggregate  Z_gj = MHA(W_Qg H_g, W_Kj X_j, W_Vj X_j) for all groups j, the own one included;
               H_g <- LN(H_g + W_g [Z_gC ; Z_gS ; Z_gT])
    broadcast  (alpha_g, beta_g) = MLP_g(vec H_g);  X_g <- LN(X_g + X_g * sigmoid(alpha_g) + beta_g)

    Keys and values are projected once per group, and the hubs of all receivers, the keys of
    `flow.reads`, read them in one attention call.

    Args:
        num_hubs_by_group: hubs of each group.
        token_dim: D.
        num_heads: attention heads.
        flow: which groups read which, and whose tokens are gated.
    """

    def __init__(
        self,
        num_hubs_by_group: Mapping[str, int],
        token_dim: int,
        num_heads: int,
        flow: Flow,
    ) -> None:
        super().__init__()
        self.reads = flow.reads
        self.num_hubs = {g: num_hubs_by_group[g] for g in flow.reads}
        self.num_heads = num_heads
        receivers = list(flow.reads)
        sources = list(dict.fromkeys(j for groups in flow.reads.values() for j in groups))
        self.key_value = _linears(sources, token_dim, 2 * token_dim)
        self.query = _linears(receivers, token_dim, token_dim)
        for weight in (*self.query.parameters(), *self.key_value.parameters()):
            for part in weight.split(token_dim):  # queries, keys and values of unit variance
                nn.init.xavier_uniform_(part)
        self.mix = nn.ModuleDict(
            {
                g: nn.Linear(len(groups) * token_dim, token_dim, bias=False)
                for g, groups in flow.reads.items()
            }
        )
        self.hub_norm = nn.ModuleDict({g: nn.LayerNorm(token_dim) for g in receivers})
        self.gate = nn.ModuleDict(
            {g: mlp(self.num_hubs[g] * token_dim, token_dim, 2 * token_dim) for g in flow.gated}
        )
        self.token_norm = nn.ModuleDict({g: nn.LayerNorm(token_dim) for g in flow.gated})

    def forward(
        self,
        groups: dict[str, torch.Tensor],
        hubs: dict[str, torch.Tensor],
        mask_BL: torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The tokens and hubs of all groups, updated; `mask_BL` leaves padded history out."""
        query_BHD = torch.cat([self.query[g](hubs[g]) for g in self.reads], dim=1)
        masks = {"S": mask_BL}
        read = {
            j: self.read(query_BHD, *self.keys_and_values(j, groups[j]), masks.get(j))
            for j in self.key_value
        }
        hubs = self.aggregate(hubs, {j: self.by_receiver(all_BHD) for j, all_BHD in read.items()})
        return groups | {g: self.broadcast(g, groups[g], hubs) for g in self.gate}, hubs

    def keys_and_values(
        self, source: str, token_BND: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the tokens of a group, [B, N, D] each."""
        key_BND, value_BND = self.key_value[source](token_BND).chunk(2, dim=-1)
        return key_BND, value_BND

    def read(
        self,
        query_BHD: torch.Tensor,
        key_BND: torch.Tensor,
        value_BND: torch.Tensor,
        mask_BN: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention, [B, H, D]."""
        return attend(query_BHD, key_BND, value_BND, num_heads=self.num_heads, mask_BN=mask_BN)

    def by_receiver(self, read_BHD: torch.Tensor) -> dict[str, torch.Tensor]:
        """What each receiver's hubs have read, [B, its hubs, D]."""
        parts = read_BHD.split(list(self.num_hubs.values()), dim=1)
        return dict(zip(self.reads, parts, strict=True))

    def aggregate(
        self,
        hubs: Mapping[str, torch.Tensor],
        read: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        """The hubs, those of receivers updated; `read` is by source, then receiver."""
        return {**hubs, **{g: self.updated(g, hubs[g], read) for g in self.reads}}

    def updated(
        self, group: str, hub_BHD: torch.Tensor, read: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> torch.Tensor:
        """The new hubs of a receiver, [B, hubs, D]; `read` as in `aggregate`."""
        read_BHZ = torch.cat([read[j][group] for j in self.reads[group]], dim=-1)
        new_BHD: torch.Tensor = self.hub_norm[group](hub_BHD + self.mix[group](read_BHZ))
        return new_BHD

    def broadcast(
        self, group: str, token_BND: torch.Tensor, hubs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The new tokens of a gated group, [B, N, D]."""
        gate_B1D, shift_B1D = self.gate_and_shift(group, hubs)
        new_BND: torch.Tensor = self.token_norm[group](token_BND + token_BND * gate_B1D + shift_B1D)
        return new_BND

    def gate_and_shift(
        self, group: str, hubs: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """sigmoid(alpha_g) and beta_g, [B, 1, D] each."""
        alpha_BD, beta_BD = self.gate[group](hubs[group].flatten(1)).chunk(2, dim=-1)
        return torch.sigmoid(alpha_BD).unsqueeze(1), beta_BD.unsqueeze(1)


def _linears(groups: Sequence[str], in_dim: int, out_dim: int) -> nn.ModuleDict:
    """One linear map without bias per group."""
    return nn.ModuleDict({g: nn.Linear(in_dim, out_dim, bias=False) for g in groups})
