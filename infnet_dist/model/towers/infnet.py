"""INFNet v2, "Aggregate and Broadcast" (arXiv 2508.11565v2), with three additions; the default.

Each group of tokens X_g (g = C categorical, S sequence, T task) has a few *hubs* H_g. In a block
the hubs aggregate from the tokens of all groups by attention, then broadcast a gate back to the
tokens of their own group. The cost is linear in the number of tokens: O(hubs x tokens).

The additions (docs/research-log.md has the gain of each; `ablate` removes it):

target_hubs   the candidate, as an item of each behaviour, is a hub of S beside the behaviour's
              mean: it reads the history by similarity from the first block on (target attention)
task_hubs     the head of task k reads the task's hub beside its token. In the paper a token gets
              only a gate and a shift from the sample, which all tasks share
interaction   all heads read Wukong's factorization machine over fields and hubs. In the paper
              fields and hubs are only added

Letters: B batch, M fields, L history tokens, F behaviours, K tasks, D width, H hubs of all groups.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

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
        num_blocks: blocks, at least 2: nothing reads C's hubs of the last block.
        num_hubs: categorical hubs n_c.
        num_shared_tasks: shared task tokens n_s, which join the task hubs.
        num_heads: attention heads; divides D.
        ablate: parts to remove: the three above; task_tokens: all tasks share one token;
            homogeneous_flow: hubs don't broadcast (so nothing reads C's); heterogeneous_flow: hubs
            of C and S read only their own group (those of T, which the heads depend on, read every
            group).
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
        super().__init__()
        assert num_blocks >= 2, "with one block nothing reads C's hubs"
        self.ablate = frozenset(ablate)
        self.num_tasks = num_tasks
        num_hubs_by_group = self._count_hubs(num_hubs, len(sequence_lengths), num_shared_tasks)
        self.hubs = Hubs(
            num_fields,
            sequence_lengths,
            token_dim,
            num_hubs,
            num_shared_tasks,
            targets="target_hubs" not in self.ablate,
        )
        self.blocks = nn.ModuleList(
            HubBlock(num_hubs_by_group, token_dim, num_heads, flow)
            for flow in self._flows(list(num_hubs_by_group), num_blocks)
        )
        self.interaction = None
        if "interaction" not in self.ablate:  # of M fields and the last hubs of S and T
            num_tokens = num_fields + sum(n for g, n in num_hubs_by_group.items() if g != "C")
            self.interaction = Wukong(num_tokens=num_tokens, token_dim=token_dim)
        self.heads = TaskHeads(num_tasks, self._head_dim(token_dim), 2 * token_dim)

    def _count_hubs(
        self, num_hubs: int, num_behaviours: int, num_shared_tasks: int
    ) -> dict[str, int]:
        """The number of hubs of each group that exists."""
        per_behaviour = 1 if "target_hubs" in self.ablate else 2  # the mean, and the candidate
        num_task_tokens = 1 if "task_tokens" in self.ablate else self.num_tasks
        counts = {"C": num_hubs}
        if num_behaviours:
            counts["S"] = num_behaviours * per_behaviour
        return counts | {"T": num_task_tokens + num_shared_tasks}

    def _flows(self, groups: Sequence[str], num_blocks: int) -> list["Flow"]:
        """Which hubs read what in each block; the last block updates only what is read after it."""
        reads = {g: groups for g in groups}
        if "heterogeneous_flow" in self.ablate:
            reads |= {g: [g] for g in groups if g != "T"}
        gated, last_gated = groups, ["T"]
        if "homogeneous_flow" in self.ablate:
            gated, last_gated = [], []
        read_last = {"T"} if "interaction" in self.ablate else {"S", "T"}
        last_reads = {g: reads[g] for g in groups if g in read_last}
        return [Flow(reads, gated)] * (num_blocks - 1) + [Flow(last_reads, last_gated)]

    def _head_dim(self, token_dim: int) -> int:
        """Width of a head's input: the task's token, its hub, and the interaction."""
        dim = token_dim if "task_hubs" in self.ablate else 2 * token_dim
        return dim if self.interaction is None else dim + self.interaction.out_dim

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Logits [B, K]."""
        task_BKD = tokens.task_BKD
        if "task_tokens" in self.ablate:
            task_BKD = task_BKD.mean(dim=1, keepdim=True)
        hubs = self.hubs(tokens, task_BKD)
        groups = {"C": tokens.categorical_BMD, "S": tokens.sequence_BLD, "T": task_BKD}
        for block in self.blocks:
            groups, hubs = block(groups, hubs, tokens.mask_BL)
        logits_BK: torch.Tensor = self.heads(self._head_inputs(tokens, groups["T"], hubs))
        return logits_BK

    def _head_inputs(
        self, tokens: Tokens, task_BkD: torch.Tensor, hubs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Input of each head, [B, K, in_dim]; k is 1 where all tasks share one token, else K."""
        parts = [task_BkD]
        num_task_tokens = task_BkD.shape[1]
        if "task_hubs" not in self.ablate:
            parts.append(hubs["T"][:, :num_task_tokens])
        if self.interaction is not None:
            others = [hubs[g] for g in hubs if g != "C"]
            mixed_BX = self.interaction(torch.cat([tokens.categorical_BMD, *others], dim=1))
            parts.append(mixed_BX.unsqueeze(1).expand(-1, num_task_tokens, -1))
        return torch.cat(parts, dim=-1).expand(-1, self.num_tasks, -1)


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
        """MLPs for C and for each behaviour of S, learned tokens for T, and their norms."""
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
        hubs = {"C": self._categorical_hubs(tokens.categorical_BMD)}
        if self.behaviours:
            hubs["S"] = self._sequence_hubs(tokens)
        shared_BnD = self.shared_ND.expand(len(task_BKD), -1, -1)
        hubs["T"] = torch.cat([task_BKD, shared_BnD], dim=1)
        return {g: self.norm[g](hub_BHD) for g, hub_BHD in hubs.items()}

    def _categorical_hubs(self, categorical_BMD: torch.Tensor) -> torch.Tensor:
        """reshape(MLP(vec C)), [B, n_c, D]."""
        hub_BX: torch.Tensor = self.categorical(categorical_BMD.flatten(1))
        return hub_BX.unflatten(1, (-1, self.token_dim))

    def _sequence_hubs(self, tokens: Tokens) -> torch.Tensor:
        """An MLP of each behaviour's mean, then the candidate as its item, [B, F or 2F, D]."""
        mean_BFD = self.pooling(tokens)
        hubs = [make_hub(mean_BFD[:, f]) for f, make_hub in enumerate(self.behaviours)]
        hub_BFD = torch.stack(hubs, dim=1)
        return torch.cat([hub_BFD, tokens.target_BFD], dim=1) if self.targets else hub_BFD


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
        hubs = hubs | self._aggregate(groups, hubs, mask_BL)
        return groups | self._broadcast(groups, hubs), hubs

    def _aggregate(
        self,
        groups: Mapping[str, torch.Tensor],
        hubs: Mapping[str, torch.Tensor],
        mask_BL: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The new hubs of each receiver, [B, hubs, D]."""
        query_BHD = torch.cat([self.query[g](hubs[g]) for g in self.reads], dim=1)
        read: dict[str, dict[str, torch.Tensor]] = {}  # by source, then receiver
        for j, project in self.key_value.items():
            key_BND, value_BND = project(groups[j]).chunk(2, dim=-1)
            mask_BN = mask_BL if j == "S" else None
            all_BHD = attend(
                query_BHD, key_BND, value_BND, num_heads=self.num_heads, mask_BN=mask_BN
            )
            parts = all_BHD.split(list(self.num_hubs.values()), dim=1)
            read[j] = dict(zip(self.reads, parts, strict=True))
        new = {}
        for g, sources in self.reads.items():
            read_BHZ = torch.cat([read[j][g] for j in sources], dim=-1)
            new[g] = self.hub_norm[g](hubs[g] + self.mix[g](read_BHZ))
        return new

    def _broadcast(
        self, groups: Mapping[str, torch.Tensor], hubs: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The new tokens of each gated group, [B, tokens, D]."""
        new = {}
        for g, gate in self.gate.items():
            alpha_BD, beta_BD = gate(hubs[g].flatten(1)).chunk(2, dim=-1)
            gate_B1D, shift_B1D = torch.sigmoid(alpha_BD).unsqueeze(1), beta_BD.unsqueeze(1)
            new[g] = self.token_norm[g](groups[g] + groups[g] * gate_B1D + shift_B1D)
        return new


def _linears(groups: Sequence[str], in_dim: int, out_dim: int) -> nn.ModuleDict:
    """One linear map without bias per group."""
    return nn.ModuleDict({g: nn.Linear(in_dim, out_dim, bias=False) for g in groups})
