"""INFNet v2, "Aggregate and Broadcast" (arXiv 2508.11565v2), with three additions; the default.

Each group of tokens X_g (g = C categorical, S sequence, T task) has a few *hubs* H_g. In a block
the hubs aggregate from the tokens of all groups by attention, then broadcast a gate back to the
tokens of their own group. The cost is linear in the number of tokens: O(hubs x tokens).

Ours (docs/research-log.md has what each is worth; `ablate` leaves it out):

target_hubs   the candidate, seen as an item of each behaviour, is a hub of S beside the behaviour's
              mean: it reads the history by likeness from the first block on (target attention)
task_hubs     task k's head reads its own hub beside its token. In the paper all that a token gets
              from the sample is a gate and a shift that the tasks share
interaction   a factorization machine between fields and hubs, Wukong's, is read by all heads. In
              the paper fields and hubs meet in sums alone

Letters: B batch, M fields, L history tokens, F behaviours, K tasks, D width, H hubs of all groups.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from infnet_dist.model.tokens import Tokens
from infnet_dist.model.towers.blocks import MeanPooling, TaskHeads, attend, mlp
from infnet_dist.model.towers.wukong import Wukong


class INFNet(nn.Module):
    """Tokens -> logits [B, K]; y_k = MLP_k([T_k ; H_T,k ; FM(X_C ; H_S ; H_T)]).

    Args:
        num_fields: M, at least 1.
        sequence_lengths: L_f of each behaviour; empty for none.
        num_tasks: K.
        token_dim: D.
        num_blocks: blocks, at least 2: the last one's hubs of C would be read by none.
        num_hubs: categorical hubs n_c.
        num_shared_tasks: shared task tokens n_s, which join the task hubs.
        num_heads: attention heads; divides D.
        ablate: parts to leave out: the three above; task_tokens: all tasks share one token;
            homogeneous_flow: hubs don't broadcast (so C's reach nothing); heterogeneous_flow: hubs
            of C and S read their own group alone (those of T, through which all reaches the heads,
            read every group).
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
        ablate: Collection[str] = (),
    ) -> None:
        """Make hubs, blocks and heads."""
        super().__init__()
        assert num_blocks >= 2, "with one block nothing reads C's hubs"
        self.ablate = frozenset(ablate)
        self.num_tasks = num_tasks
        targets = "target_hubs" not in self.ablate
        self.hubs = Hubs(
            num_fields, sequence_lengths, token_dim, num_hubs, num_shared_tasks, targets=targets
        )
        counts = {"C": num_hubs, "S": len(sequence_lengths) * (1 + targets)}
        counts["T"] = num_shared_tasks + (1 if "task_tokens" in self.ablate else num_tasks)
        counts = {g: n for g, n in counts.items() if g != "S" or sequence_lengths}
        self.blocks = self._make_blocks(counts, token_dim, num_heads, num_blocks)
        self.interaction = None
        in_dim = token_dim * (1 + ("task_hubs" not in self.ablate))
        if "interaction" not in self.ablate:
            num_tokens = num_fields + sum(n for g, n in counts.items() if g != "C")
            self.interaction = Wukong(num_tokens=num_tokens, token_dim=token_dim)
            in_dim += self.interaction.out_dim
        self.heads = TaskHeads(num_tasks, in_dim, 2 * token_dim)

    def _make_blocks(
        self, counts: Mapping[str, int], token_dim: int, num_heads: int, num_blocks: int
    ) -> nn.ModuleList:
        """The blocks, given the number of hubs by group; the last makes only what is read later."""
        sources = {g: list(counts) for g in counts}
        if "heterogeneous_flow" in self.ablate:
            sources |= {g: [g] for g in counts if g != "T"}
        last = [g for g in counts if g == "T" or (g == "S" and "interaction" not in self.ablate)]
        plan = [(list(counts), list(counts))] * (num_blocks - 1) + [(last, ["T"])]
        return nn.ModuleList(
            HubBlock(
                {g: counts[g] for g in receivers},
                token_dim,
                num_heads,
                sources={g: sources[g] for g in receivers},
                told=[] if "homogeneous_flow" in self.ablate else told,
            )
            for receivers, told in plan
        )

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Logits [B, K]."""
        task_BKD = tokens.task_BKD
        if "task_tokens" in self.ablate:
            task_BKD = task_BKD.mean(dim=1, keepdim=True)
        hubs = self.hubs(tokens, task_BKD)
        groups = {"C": tokens.categorical_BMD, "S": tokens.sequence_BLD, "T": task_BKD}
        for block in self.blocks:
            groups, hubs = block(groups, hubs, tokens.mask_BL)
        read = [groups["T"]]
        if "task_hubs" not in self.ablate:
            read.append(hubs["T"][:, : task_BKD.shape[1]])
        if self.interaction is not None:
            later = [hubs[g] for g in hubs if g != "C"]
            mixed_BX = self.interaction(torch.cat([tokens.categorical_BMD, *later], dim=1))
            read.append(mixed_BX.unsqueeze(1).expand(-1, task_BKD.shape[1], -1))
        read_BKX = torch.cat(read, dim=-1).expand(-1, self.num_tasks, -1)
        logits_BK: torch.Tensor = self.heads(read_BKX)
        return logits_BK


class Hubs(nn.Module):
    """The first hubs of each group (v2, section "hub initialisation"), and the target hubs."""

    def __init__(
        self,
        num_fields: int,
        sequence_lengths: Sequence[int],
        token_dim: int,
        num_hubs: int,
        num_shared_tasks: int,
        *,
        targets: bool,
    ) -> None:
        """One MLP for C, one per behaviour for S, free tokens for T."""
        super().__init__()
        self.token_dim = token_dim
        self.targets = targets
        self.categorical = mlp(num_fields * token_dim, 4 * token_dim, num_hubs * token_dim)
        self.behaviours = nn.ModuleList(
            mlp(token_dim, token_dim, token_dim) for _ in sequence_lengths
        )
        self.shared_ND = nn.Parameter(torch.randn(num_shared_tasks, token_dim) * token_dim**-0.5)
        groups = "CST" if sequence_lengths else "CT"
        self.norm = nn.ModuleDict({g: nn.LayerNorm(token_dim) for g in groups})
        self.pooling = MeanPooling(sequence_lengths=sequence_lengths, token_dim=token_dim)

    def forward(self, tokens: Tokens, task_BKD: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hubs [B, hubs, D] by group.

        H_C = reshape(MLP(vec C)); H_S = [MLP_a(mean of the valid items) per behaviour a ; the
        candidate as an item of each]; H_T = [T ; shared].
        Then a LayerNorm each (our choice: without it the first queries are near 0, attention
        starts out uniform, and learning to match candidate and history takes longer).
        """
        hubs = {"C": self.categorical(tokens.categorical_BMD.flatten(1))}
        hubs["C"] = hubs["C"].unflatten(1, (-1, self.token_dim))
        if self.behaviours:
            mean_BFD = self.pooling(tokens)
            hubs["S"] = torch.stack(
                [f(mean_BFD[:, a]) for a, f in enumerate(self.behaviours)], dim=1
            )
            if self.targets:
                hubs["S"] = torch.cat([hubs["S"], tokens.target_BFD], dim=1)
        shared_BND = self.shared_ND.expand(len(task_BKD), -1, -1)
        hubs["T"] = torch.cat([task_BKD, shared_BND], dim=1)
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
        receivers: Mapping[str, int],
        token_dim: int,
        num_heads: int,
        *,
        sources: Mapping[str, Sequence[str]],
        told: Sequence[str],
    ) -> None:
        """Make the block.

        Args:
            receivers: the groups whose hubs are updated, and how many hubs they have.
            token_dim: D.
            num_heads: attention heads.
            sources: for each receiver the groups that its hubs read.
            told: the groups whose tokens are updated, all of them receivers.
        """
        super().__init__()
        self.receivers = dict(receivers)
        self.sources = sources
        self.num_heads = num_heads
        read = dict.fromkeys(j for groups in sources.values() for j in groups)
        self.key_value = nn.ModuleDict(
            {j: nn.Linear(token_dim, 2 * token_dim, bias=False) for j in read}
        )
        self.query = nn.ModuleDict(
            {g: nn.Linear(token_dim, token_dim, bias=False) for g in receivers}
        )
        for weight in (*self.query.parameters(), *self.key_value.parameters()):
            for part in weight.split(token_dim):  # queries, keys and values of unit variance
                nn.init.xavier_uniform_(part)
        self.mix = nn.ModuleDict(
            {g: nn.Linear(len(sources[g]) * token_dim, token_dim, bias=False) for g in receivers}
        )
        self.hub_norm = nn.ModuleDict({g: nn.LayerNorm(token_dim) for g in receivers})
        self.gate = nn.ModuleDict(
            {g: mlp(receivers[g] * token_dim, token_dim, 2 * token_dim) for g in told}
        )
        self.token_norm = nn.ModuleDict({g: nn.LayerNorm(token_dim) for g in told})

    def forward(
        self,
        groups: dict[str, torch.Tensor],
        hubs: dict[str, torch.Tensor],
        mask_BL: torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Tokens and hubs with those of the receivers new; `mask_BL` leaves padded history out."""
        query_BHD = torch.cat([self.query[g](hubs[g]) for g in self.receivers], dim=1)
        read: dict[str, dict[str, torch.Tensor]] = {}
        for j, project in self.key_value.items():
            key_BND, value_BND = project(groups[j]).chunk(2, dim=-1)
            mask_BN = mask_BL if j == "S" else None
            all_BHD = attend(
                query_BHD, key_BND, value_BND, num_heads=self.num_heads, mask_BN=mask_BN
            )
            parts = all_BHD.split(list(self.receivers.values()), dim=1)
            read[j] = dict(zip(self.receivers, parts, strict=True))
        hubs = dict(hubs)
        for g in self.receivers:
            read_BHZ = torch.cat([read[j][g] for j in self.sources[g]], dim=-1)
            hubs[g] = self.hub_norm[g](hubs[g] + self.mix[g](read_BHZ))
        groups = dict(groups)
        for g, gate in self.gate.items():
            alpha_BD, beta_BD = gate(hubs[g].flatten(1)).chunk(2, dim=-1)
            gate_B1D, shift_B1D = torch.sigmoid(alpha_BD).unsqueeze(1), beta_BD.unsqueeze(1)
            groups[g] = self.token_norm[g](groups[g] + groups[g] * gate_B1D + shift_B1D)
        return groups, hubs
