"""INFNet v2, "Aggregate and Broadcast" (arXiv 2508.11565v2): the default tower.

Each group of tokens X_g (g = C categorical, S sequence, T task) has a few *hubs* H_g. In a block
the hubs aggregate from the tokens of all groups by attention, then broadcast a gate back to the
tokens of their own group. The cost is linear in the number of tokens: O(hubs x tokens).

Letters: B batch, M fields, L history tokens, F behaviours, K tasks, D width, H hubs of all groups.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from infnet_dist.models.blocks import MeanPooling, TaskHeads, attend, mlp
from infnet_dist.tokens import Tokens


class INFNet(nn.Module):
    """Tokens -> logits [B, K].

    Args:
        num_fields: M, at least 1.
        sequence_lengths: L_f of each behaviour; empty for none.
        num_tasks: K.
        token_dim: D.
        num_blocks: blocks, at least 2: the last one's hubs of C and S would be read by none.
        num_hubs: categorical hubs n_c.
        num_shared_tasks: shared task tokens n_s, which join the task hubs.
        num_heads: attention heads; divides D.
    """

    def __init__(
        self,
        *,
        num_fields: int,
        sequence_lengths: Sequence[int],
        num_tasks: int,
        token_dim: int = 32,
        num_blocks: int = 2,
        num_hubs: int = 16,
        num_shared_tasks: int = 2,
        num_heads: int = 2,
    ) -> None:
        """Make hubs, blocks and heads."""
        super().__init__()
        assert num_blocks >= 2, "with one block nothing reads C's and S's"
        self.hubs = Hubs(num_fields, sequence_lengths, token_dim, num_hubs, num_shared_tasks)
        hub_counts = {"C": num_hubs, "S": len(sequence_lengths), "T": num_tasks + num_shared_tasks}
        if not sequence_lengths:
            del hub_counts["S"]
        receivers = [list(hub_counts)] * (num_blocks - 1) + [["T"]]  # heads read T alone
        self.blocks = nn.ModuleList(
            HubBlock(hub_counts, token_dim, num_heads, receivers=last) for last in receivers
        )
        self.heads = TaskHeads(num_tasks, token_dim)

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Logits [B, K]."""
        groups = {"C": tokens.categorical_BMD, "S": tokens.sequence_BLD, "T": tokens.task_BKD}
        hubs = self.hubs(tokens)
        groups = {name: groups[name] for name in hubs}
        for block in self.blocks:
            groups, hubs = block(groups, hubs, tokens.mask_BL)
        logits_BK: torch.Tensor = self.heads(groups["T"])
        return logits_BK


class Hubs(nn.Module):
    """The first hubs of each group (v2, section "hub initialisation")."""

    def __init__(
        self,
        num_fields: int,
        sequence_lengths: Sequence[int],
        token_dim: int,
        num_hubs: int,
        num_shared_tasks: int,
    ) -> None:
        """One MLP for C, one per behaviour for S, free tokens for T."""
        super().__init__()
        self.token_dim = token_dim
        self.categorical = mlp(num_fields * token_dim, 4 * token_dim, num_hubs * token_dim)
        self.behaviours = nn.ModuleList(
            mlp(token_dim, token_dim, token_dim) for _ in sequence_lengths
        )
        self.shared_ND = nn.Parameter(torch.randn(num_shared_tasks, token_dim) * token_dim**-0.5)
        groups = "CST" if sequence_lengths else "CT"
        self.norm = nn.ModuleDict({g: nn.LayerNorm(token_dim) for g in groups})
        self.pooling = MeanPooling(sequence_lengths=sequence_lengths, token_dim=token_dim)

    def forward(self, tokens: Tokens) -> dict[str, torch.Tensor]:
        """Hubs [B, hubs, D] by group.

        H_C = reshape(MLP(vec C)); H_S,a = MLP_a(mean of the valid items); H_T = [T ; shared].
        Then a LayerNorm each (our choice: without it the first queries are near 0, attention
        starts out uniform, and learning to match candidate and history takes longer).
        """
        batch = len(tokens.task_BKD)
        hubs = {"C": self.categorical(tokens.categorical_BMD.flatten(1))}
        hubs["C"] = hubs["C"].unflatten(1, (-1, self.token_dim))
        if self.behaviours:
            mean_BFD = self.pooling(tokens)
            hubs["S"] = torch.stack(
                [f(mean_BFD[:, a]) for a, f in enumerate(self.behaviours)], dim=1
            )
        shared_BND = self.shared_ND.expand(batch, -1, -1)
        hubs["T"] = torch.cat([tokens.task_BKD, shared_BND], dim=1)
        return {g: self.norm[g](hub_BHD) for g, hub_BHD in hubs.items()}


class HubBlock(nn.Module):
    """Aggregate, then broadcast.

    aggregate  Z_gj = MHA(W_Qg H_g, W_Kj X_j, W_Vj X_j) for all groups j, the own one included;
               H_g <- LN(H_g + W_g [Z_gC ; Z_gS ; Z_gT])
    broadcast  (alpha_g, beta_g) = MLP_g(vec H_g);  X_g <- LN(X_g + X_g * sigmoid(alpha_g) + beta_g)

    Keys and values are projected once per group and read by the hubs of all receivers in one call.
    """

    def __init__(
        self,
        hub_counts: Mapping[str, int],
        token_dim: int,
        num_heads: int,
        *,
        receivers: Sequence[str],
    ) -> None:
        """Make the block.

        Args:
            hub_counts: the groups that exist, in order, and their number of hubs.
            token_dim: D.
            num_heads: attention heads.
            receivers: the groups to update; in the last block only those that a head reads.
        """
        super().__init__()
        self.groups = list(hub_counts)
        self.receivers = {g: hub_counts[g] for g in receivers}
        self.num_heads = num_heads
        read_dim = len(hub_counts) * token_dim
        self.key_value = nn.ModuleDict(
            {g: nn.Linear(token_dim, 2 * token_dim, bias=False) for g in self.groups}
        )
        self.query = nn.ModuleDict(
            {g: nn.Linear(token_dim, token_dim, bias=False) for g in receivers}
        )
        for weight in (*self.query.parameters(), *self.key_value.parameters()):
            for part in weight.split(token_dim):  # queries, keys and values of unit variance
                nn.init.xavier_uniform_(part)
        self.mix = nn.ModuleDict({g: nn.Linear(read_dim, token_dim, bias=False) for g in receivers})
        self.hub_norm = nn.ModuleDict({g: nn.LayerNorm(token_dim) for g in receivers})
        self.gate = nn.ModuleDict(
            {g: mlp(n * token_dim, token_dim, 2 * token_dim) for g, n in self.receivers.items()}
        )
        self.token_norm = nn.ModuleDict({g: nn.LayerNorm(token_dim) for g in receivers})

    def forward(
        self,
        groups: dict[str, torch.Tensor],
        hubs: dict[str, torch.Tensor],
        mask_BL: torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """New tokens and new hubs of the receivers; `mask_BL` leaves padded history out."""
        query_BHD = torch.cat([self.query[g](hubs[g]) for g in self.receivers], dim=1)
        read = []
        for g in self.groups:
            key_BND, value_BND = self.key_value[g](groups[g]).chunk(2, dim=-1)
            mask = mask_BL if g == "S" else None
            read.append(
                attend(query_BHD, key_BND, value_BND, num_heads=self.num_heads, mask_BN=mask)
            )
        read_by_group = torch.cat(read, dim=-1).split(list(self.receivers.values()), dim=1)
        new_hubs, new_groups = {}, {}
        for g, read_BHZ in zip(self.receivers, read_by_group, strict=True):
            new_hubs[g] = self.hub_norm[g](hubs[g] + self.mix[g](read_BHZ))
            alpha_BD, beta_BD = self.gate[g](new_hubs[g].flatten(1)).chunk(2, dim=-1)
            gate_B1D, shift_B1D = torch.sigmoid(alpha_BD).unsqueeze(1), beta_BD.unsqueeze(1)
            new_groups[g] = self.token_norm[g](groups[g] + groups[g] * gate_B1D + shift_B1D)
        return new_groups, new_hubs
