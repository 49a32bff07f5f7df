"""INFNet v1, "A Task-aware Information Flow Network" (arXiv 2508.11565v1), for fidelity.

Proxies of each group (C~ categorical, S~ sequence, T~ shared task tokens) read the tokens of the
*other* two groups (heterogeneous flow), then gate the tokens of their own (homogeneous flow, PGU).
Our choices where the paper gives no detail: a residual around each stage, pre-norm on queries and
keys, an output projection, and the gate reads the new proxies of the block.

Letters: B batch, M fields, L history tokens, F behaviours, K tasks, D width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from infnet_dist.model.tokens import Tokens
from infnet_dist.model.towers.blocks import TaskHeads, attend, behaviour_matrix, mlp


class INFNetPaper(nn.Module):
    """Tokens -> logits [B, K].

    Args:
        num_fields: M, at least 1.
        sequence_lengths: L_f of each behaviour; empty for none.
        num_tasks: K.
        token_dim: D.
        num_blocks: blocks, at least 2: nothing reads the proxies of C and S of the last block.
        num_proxies: categorical proxies m.
        num_shared_tasks: shared task tokens N_s.
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
        num_proxies: int = 4,
        num_shared_tasks: int = 2,
        num_heads: int = 2,
    ) -> None:
        super().__init__()
        assert num_blocks >= 2, "with one block nothing reads C's and S's"
        self.token_dim = token_dim
        self.categorical_proxies = mlp(
            num_fields * token_dim, 4 * token_dim, num_proxies * token_dim
        )
        self.sequence_proxies = mlp(token_dim, token_dim, token_dim) if sequence_lengths else None
        self.shared_ND = nn.Parameter(torch.randn(num_shared_tasks, token_dim) * token_dim**-0.5)
        self.register_buffer("behaviour_LF", behaviour_matrix(sequence_lengths), persistent=False)
        proxy_counts = {"C": num_proxies, "S": len(sequence_lengths), "T": num_shared_tasks}
        if not sequence_lengths:
            del proxy_counts["S"]
        receivers = [list(proxy_counts)] * (num_blocks - 1) + [["T"]]  # heads read only T
        self.blocks = nn.ModuleList(
            ProxyBlock(proxy_counts, token_dim, num_heads, receivers=updated)
            for updated in receivers
        )
        self.heads = TaskHeads(num_tasks, token_dim, token_dim)

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Logits [B, K]."""
        groups = {"C": tokens.categorical_BMD, "S": tokens.sequence_BLD, "T": tokens.task_BKD}
        proxies = self._proxies(tokens)
        groups = {name: groups[name] for name in proxies}
        for block in self.blocks:
            groups, proxies = block(groups, proxies, tokens.mask_BL)
        logits_BK: torch.Tensor = self.heads(groups["T"])
        return logits_BK

    def _proxies(self, tokens: Tokens) -> dict[str, torch.Tensor]:
        """C~ = reshape(phi_cat(vec C)); S~_a = sum of phi_seq(s) over items; T~ learnable."""
        categorical = self.categorical_proxies(tokens.categorical_BMD.flatten(1))
        proxies = {"C": categorical.unflatten(1, (-1, self.token_dim))}
        if self.sequence_proxies is not None:
            items_BLD = self.sequence_proxies(tokens.sequence_BLD)
            items_BLD = items_BLD.masked_fill(~tokens.mask_BL.unsqueeze(-1), 0.0)
            proxies["S"] = torch.einsum("bld,lf->bfd", items_BLD, self.behaviour_LF)
        proxies["T"] = self.shared_ND.expand(tokens.task_BKD.shape[0], -1, -1)
        return proxies


class ProxyBlock(nn.Module):
    """One layer: heterogeneous flow, then homogeneous flow. Right-hand sides are of layer l.

    heterogeneous  X~ <- X~ + sum over the other groups Y of CA(X~, Y, Y)
                   T^ <- T + CA(T, C, C) + CA(T, S, S)
    homogeneous    X <- X + X * sigmoid(MLP_X(vec X~)) for X in {C, S}
                   T <- T^ + T^ * sigmoid(MLP_T(vec T~))

    Args:
        proxy_counts: the groups that exist, in order, and their number of proxies.
        token_dim: D.
        num_heads: attention heads.
        receivers: the groups to update; in the last block only those that heads read.
    """

    def __init__(
        self,
        proxy_counts: Mapping[str, int],
        token_dim: int,
        num_heads: int,
        *,
        receivers: Sequence[str],
    ) -> None:
        super().__init__()
        self.others = {g: [o for o in proxy_counts if o != g] for g in receivers}
        self.proxy_reads = nn.ModuleDict(
            {
                f"{g}_from_{other}": CrossAttention(token_dim, num_heads)
                for g, others in self.others.items()
                for other in others
            }
        )
        self.task_reads = nn.ModuleDict(
            {other: CrossAttention(token_dim, num_heads) for other in self.others["T"]}
        )
        self.gate = nn.ModuleDict(
            {g: mlp(proxy_counts[g] * token_dim, token_dim, token_dim) for g in receivers}
        )

    def forward(
        self,
        groups: dict[str, torch.Tensor],
        proxies: dict[str, torch.Tensor],
        mask_BL: torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """New tokens and new proxies by group."""
        masks = {"S": mask_BL}
        new_proxies = {
            g: proxies[g]
            + sum(
                self.proxy_reads[f"{g}_from_{o}"](proxies[g], groups[o], masks.get(o))
                for o in others
            )
            for g, others in self.others.items()
        }
        new_tasks = groups["T"] + sum(
            self.task_reads[o](groups["T"], groups[o], masks.get(o)) for o in self.others["T"]
        )
        tokens = {**groups, "T": new_tasks}
        return {
            g: x_BND + x_BND * torch.sigmoid(self.gate[g](new_proxies[g].flatten(1))).unsqueeze(1)
            for g, x_BND in tokens.items()
            if g in self.others
        }, new_proxies


class CrossAttention(nn.Module):
    """CA(Q, K, K) with pre-norm, heads and an output projection."""

    def __init__(self, token_dim: int, num_heads: int) -> None:
        """Norms and projections of queries, keys and values are separate."""
        super().__init__()
        self.num_heads = num_heads
        self.query_norm = nn.LayerNorm(token_dim)
        self.key_norm = nn.LayerNorm(token_dim)
        self.query = nn.Linear(token_dim, token_dim, bias=False)
        self.key_value = nn.Linear(token_dim, 2 * token_dim, bias=False)
        self.out = nn.Linear(token_dim, token_dim, bias=False)

    def forward(
        self, query_BQD: torch.Tensor, token_BND: torch.Tensor, mask_BN: torch.Tensor | None
    ) -> torch.Tensor:
        """[B, Q, D]; rows without a valid key get 0 (hence no output bias)."""
        key_BND, value_BND = self.key_value(self.key_norm(token_BND)).chunk(2, dim=-1)
        read_BQD = attend(
            self.query(self.query_norm(query_BQD)),
            key_BND,
            value_BND,
            num_heads=self.num_heads,
            mask_BN=mask_BN,
        )
        out_BQD: torch.Tensor = self.out(read_BQD)
        return out_BQD
