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
from typing import Literal

import torch
from torch import nn

from infnet_dist.model.tokens import Tokens
from infnet_dist.model.towers.blocks import MeanPooling, TaskHeads, mlp
from infnet_dist.model.towers.hub_block import Flow, HubBlock
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
        history_reads: "all": the hubs of S, the candidate's among them, update its tokens. "user":
            only the means do, and they read S alone. Then no history token depends on the
            candidate, so that a request computes them once; the target hubs, group "X", still
            read every group.
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
        history_reads: Literal["all", "user"] = "all",
    ) -> None:
        super().__init__()
        assert num_blocks >= 2, "with one block nothing reads C's hubs"
        self.ablate = frozenset(ablate)
        self.history_reads = history_reads
        self.num_tasks = num_tasks
        num_hubs_by_group = self._count_hubs(num_hubs, len(sequence_lengths), num_shared_tasks)
        self.hubs = Hubs(
            num_fields,
            sequence_lengths,
            token_dim,
            num_hubs,
            num_shared_tasks,
            targets=self._group_of_targets,
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
        num_task_tokens = 1 if "task_tokens" in self.ablate else self.num_tasks
        counts = {"C": num_hubs}
        if num_behaviours:
            counts["S"] = num_behaviours  # the means
            if (group := self._group_of_targets) is not None:
                counts[group] = counts.get(group, 0) + num_behaviours
        return counts | {"T": num_task_tokens + num_shared_tasks}

    @property
    def _group_of_targets(self) -> str | None:
        """The group whose hubs the candidate joins; None: it is no hub."""
        if "target_hubs" in self.ablate:
            return None
        if self.history_reads == "all":
            return "S"
        return None if "interaction" in self.ablate else "X"  # the only part that reads hubs of X

    def _flows(self, receivers: Sequence[str], num_blocks: int) -> list[Flow]:
        """Which hubs read what in each block; the last block updates only what is read after it."""
        groups = [g for g in receivers if g != "X"]  # those that have tokens
        reads = {g: groups for g in receivers}
        if "heterogeneous_flow" in self.ablate:
            reads |= {g: ["S" if g == "X" else g] for g in receivers if g != "T"}
        if "S" in groups and self.history_reads == "user":
            reads["S"] = ["S"]
        gated, last_gated = groups, ["T"]
        if "homogeneous_flow" in self.ablate:
            gated, last_gated = [], []
        read_last = {"T"} if "interaction" in self.ablate else {"S", "X", "T"}
        last_reads = {g: reads[g] for g in receivers if g in read_last}
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
        return self.logits(tokens.categorical_BMD, groups["T"], hubs)

    def logits(
        self,
        categorical_BMD: torch.Tensor,
        task_BkD: torch.Tensor,
        hubs: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Logits [B, K] of the first C, and the last T and hubs."""
        logits_BK: torch.Tensor = self.heads(self._head_inputs(categorical_BMD, task_BkD, hubs))
        return logits_BK

    def _head_inputs(
        self,
        categorical_BMD: torch.Tensor,
        task_BkD: torch.Tensor,
        hubs: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Input of each head, [B, K, in_dim]; k is 1 where all tasks share one token, else K."""
        parts = [task_BkD]
        num_task_tokens = task_BkD.shape[1]
        if "task_hubs" not in self.ablate:
            parts.append(hubs["T"][:, :num_task_tokens])
        if self.interaction is not None:
            others = [hubs[g] for g in hubs if g != "C"]
            mixed_BX = self.interaction(torch.cat([categorical_BMD, *others], dim=1))
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
        targets: str | None,
    ) -> None:
        """MLPs for C and for each behaviour of S, learned tokens for T, and their norms.

        `targets`: the group whose hubs the candidate joins; None: it is no hub.
        """
        super().__init__()
        self.token_dim = token_dim
        self.targets = targets
        self.categorical = mlp(num_fields * token_dim, 4 * token_dim, num_hubs * token_dim)
        self.behaviours = nn.ModuleList(
            mlp(token_dim, token_dim, token_dim) for _ in sequence_lengths
        )
        self.shared_ND = nn.Parameter(torch.randn(num_shared_tasks, token_dim) * token_dim**-0.5)
        groups = list("CST" if sequence_lengths else "CT")
        if sequence_lengths and targets == "X":
            groups.insert(2, "X")
        self.norm = nn.ModuleDict({g: nn.LayerNorm(token_dim) for g in groups})
        self.pooling = MeanPooling(sequence_lengths=sequence_lengths, token_dim=token_dim)

    def forward(self, tokens: Tokens, task_BKD: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hubs [B, hubs, D] by group.

        H_C = reshape(MLP(vec C)); H_S = [MLP_a(mean of the valid items) per behaviour a ; the
        candidate as an item of each]; H_T = [T ; shared].
        Then a LayerNorm each (our choice: without it the first queries are near 0, attention
        starts out uniform, and learning to match candidate and history takes longer).
        """
        hubs = {"C": self.of_fields(tokens.categorical_BMD)}
        if self.behaviours:
            hubs["S"] = self.of_history(tokens.sequence_BLD, tokens.mask_BL)
            hubs = self.with_targets(hubs, tokens.target_BFD)
        return hubs | {"T": self.of_tasks(task_BKD)}

    def of_fields(self, categorical_BMD: torch.Tensor) -> torch.Tensor:
        """reshape(MLP(vec C)), [B, n_c, D]."""
        hub_BX: torch.Tensor = self.categorical(categorical_BMD.flatten(1))
        return self._normed("C", hub_BX.unflatten(1, (-1, self.token_dim)))

    def of_history(self, sequence_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """An MLP of each behaviour's mean, [B, F, D]."""
        mean_BFD = self.pooling.mean(sequence_BLD, mask_BL)
        hubs = [make_hub(mean_BFD[:, f]) for f, make_hub in enumerate(self.behaviours)]
        return self._normed("S", torch.stack(hubs, dim=1))

    def with_targets(
        self, hubs: Mapping[str, torch.Tensor], target_BFD: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The hubs with the candidate as an item of each behaviour, in the group of `targets`."""
        if self.targets is None:
            return dict(hubs)
        target_BFD = self._normed(self.targets, target_BFD)
        if self.targets == "X":
            return {**hubs, "X": target_BFD}
        return {**hubs, "S": torch.cat([hubs["S"], target_BFD], dim=1)}

    def of_tasks(self, task_BKD: torch.Tensor) -> torch.Tensor:
        """[T ; shared], [B, K + n_s, D]."""
        shared_BnD = self.shared_ND.expand(task_BKD.shape[0], -1, -1)
        return self._normed("T", torch.cat([task_BKD, shared_BnD], dim=1))

    def _normed(self, group: str, hub_BHD: torch.Tensor) -> torch.Tensor:
        normed_BHD: torch.Tensor = self.norm[group](hub_BHD)
        return normed_BHD
