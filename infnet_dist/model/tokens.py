"""Embeddings -> categorical, sequence and task tokens, all of width D (docs/infnet.md, section 1).

Letters: B batch, M field tokens, L history tokens of all behaviours, K tasks, D token width,
N standardised dense features, E_m width of field m.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


class SparseEmbeddings(NamedTuple):
    """Embeddings after the lookup, always float32; SparseArch makes them.

    Attributes:
        fields: one [B, E_m] per field, in the order of `Lookups.fields`; zeros for padding rows.
        sequences: one [B, L_f, sum of the attributes' widths] per behaviour; zeros where padded.
        masks: one bool [B, L_f] per behaviour, True for items, False for padding.
    """

    fields: list[torch.Tensor]
    sequences: list[torch.Tensor]
    masks: list[torch.Tensor]


class Tokens(NamedTuple):
    """The input of every tower.

    Attributes:
        categorical_BMD: one token per field, then one for all dense features if there are any.
        sequence_BLD: one token per history item, one behaviour after the other, newest first;
            zeros where padded.
        mask_BL: bool, True where there is an item.
        target_BFD: the candidate as an item of each behaviour, without position and time gap:
            target attention compares the history with it. The projection and norm of the
            behaviour's items are applied to its attributes.
        task_BKD: one learnable token per task; K = 0 for towers that don't read them.
    """

    categorical_BMD: torch.Tensor
    sequence_BLD: torch.Tensor
    mask_BL: torch.Tensor
    target_BFD: torch.Tensor
    task_BKD: torch.Tensor


class FieldProjections(nn.Module):
    """One linear map E_m -> D per field m, in one batched product per width."""

    def __init__(self, widths: Sequence[int], token_dim: int) -> None:
        """`widths`: E_m of each field."""
        super().__init__()
        groups: dict[int, list[int]] = {}
        for field, width in enumerate(widths):
            groups.setdefault(width, []).append(field)
        self.groups = list(groups.values())
        order = [field for group in self.groups for field in group]
        self.order = None if order == sorted(order) else [order.index(i) for i in sorted(order)]
        self.by_width = nn.ModuleList(
            _Projections(len(group), width, token_dim) for width, group in groups.items()
        )

    def forward(self, fields: Sequence[torch.Tensor]) -> torch.Tensor:
        """M fields [B, E_m] -> [B, M, D]."""
        projected_BMD = torch.cat(
            [
                project([fields[i] for i in group])
                for group, project in zip(self.groups, self.by_width, strict=True)
            ],
            dim=1,
        )
        return projected_BMD if self.order is None else projected_BMD[:, self.order]


class _Projections(nn.Module):
    """One linear map E -> D per field, all in one batched product; initialised like nn.Linear."""

    def __init__(self, num_fields: int, width: int, token_dim: int) -> None:
        super().__init__()
        bound = width**-0.5
        weight_MED = torch.empty(num_fields, width, token_dim).uniform_(-bound, bound)
        bias_M1D = torch.empty(num_fields, 1, token_dim).uniform_(-bound, bound)
        self.weight_MED, self.bias_M1D = nn.Parameter(weight_MED), nn.Parameter(bias_M1D)

    def forward(self, fields: Sequence[torch.Tensor]) -> torch.Tensor:
        """M fields [B, E] -> [B, M, D]."""
        fields_MBE = torch.stack(list(fields))
        return torch.baddbmm(self.bias_M1D, fields_MBE, self.weight_MED).transpose(0, 1)


class TokenArch(nn.Module):
    """Projects embeddings and dense features to tokens and normalises them (LayerNorm, our choice).

    Args:
        field_widths: E_m of each field.
        sequence_lengths: L_f of each behaviour.
        item_widths: for each behaviour the width of each item attribute.
        target_fields: for each behaviour and item attribute the index of the candidate's field of
            the same kind; None if it has none, which is replaced by zeros.
        num_dense: N; their projection is one more field token if N > 0.
        num_tasks: K; 0: no task tokens.
        token_dim: D.
        num_time_gap_buckets: rows of the time-gap embedding.
        positions: whether sequence tokens carry a learnable position and a time-gap embedding
            (INFNet v2; v1 has neither).
        dropout: dropout of the projected field and sequence tokens.
    """

    def __init__(
        self,
        *,
        field_widths: Sequence[int],
        sequence_lengths: Sequence[int],
        item_widths: Sequence[Sequence[int]],
        target_fields: Sequence[Sequence[int | None]],
        num_dense: int,
        num_tasks: int,
        token_dim: int,
        num_time_gap_buckets: int,
        positions: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.target_fields = target_fields
        self.token_dim = token_dim
        self.item_widths = item_widths
        self.num_fields = len(field_widths) + (num_dense > 0)
        self.fields = FieldProjections(field_widths, token_dim)
        # Checkpoints have the projection of the dense features, N -> D, under the name `numbers`.
        self.numbers = nn.Linear(num_dense, token_dim) if num_dense else None
        self.items = _item_projections(item_widths, token_dim)
        self.task_KD = _task_tokens(num_tasks, token_dim) if num_tasks else None
        self.field_norm = nn.LayerNorm(token_dim)
        self.item_norm = nn.LayerNorm(token_dim) if sequence_lengths else None
        self.dropout = nn.Dropout(dropout)
        self.position_LD = self.time_gap = None
        if positions and sequence_lengths:
            self.position_LD = _position_embeddings(sum(sequence_lengths), token_dim)
            self.time_gap = _time_gap_embeddings(num_time_gap_buckets, token_dim)

    def forward(
        self,
        fields: Sequence[torch.Tensor],
        sequences: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor],
        dense_BN: torch.Tensor,
        time_gap_BL: torch.Tensor | None,
    ) -> Tokens:
        """Make tokens.

        Args:
            fields: one [B, E_m] per field.
            sequences: one [B, L_f, sum of the attributes' widths] per behaviour.
            masks: one bool [B, L_f] per behaviour.
            dense_BN: standardised dense features.
            time_gap_BL: buckets, of any integer type, 0 where padded; None: all are 0.
        """
        categorical_BMD = self.field_tokens(fields, dense_BN)
        task_BKD = self.task_tokens(categorical_BMD)
        if self.item_norm is None:
            nothing_B0D = categorical_BMD[:, :0]
            mask_B0 = torch.zeros(
                nothing_B0D.shape[:2], dtype=torch.bool, device=nothing_B0D.device
            )
            return Tokens(categorical_BMD, nothing_B0D, mask_B0, nothing_B0D, task_BKD)
        sequence_BLD, mask_BL = self.history_tokens(sequences, masks, time_gap_BL)
        target_BFD = self.target_tokens(fields)
        return Tokens(categorical_BMD, sequence_BLD, mask_BL, target_BFD, task_BKD)

    def history_tokens(
        self,
        sequences: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor],
        time_gap_BL: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B, L, D] and mask [B, L] of all behaviours, of which there is at least one."""
        assert self.item_norm is not None
        mask_BL = torch.cat(list(masks), dim=1)
        sequence_BLD = self.dropout(self.item_norm(self._history(sequences, time_gap_BL)))
        return sequence_BLD.masked_fill(~mask_BL.unsqueeze(-1), 0.0), mask_BL

    def field_tokens(self, fields: Sequence[torch.Tensor], dense_BN: torch.Tensor) -> torch.Tensor:
        """One token per field, and one for all dense features, [B, M, D]."""
        projected_BMD = self.fields(fields)
        if self.numbers is not None:
            projected_BMD = torch.cat([projected_BMD, self.numbers(dense_BN).unsqueeze(1)], dim=1)
        token_BMD: torch.Tensor = self.dropout(self.field_norm(projected_BMD))
        return token_BMD

    def task_tokens(self, like_BMD: torch.Tensor) -> torch.Tensor:
        """The task tokens for each row, [B, K, D]; K is 0 where there are none."""
        if self.task_KD is None:
            return like_BMD[:, :0]
        return self.task_KD.expand(like_BMD.shape[0], -1, -1)  # len() isn't traced by export

    def _history(
        self, sequences: Sequence[torch.Tensor], time_gap_BL: torch.Tensor | None
    ) -> torch.Tensor:
        """The items of all behaviours, projected, with position and time gap added, [B, L, D]."""
        projected = [project(x) for project, x in zip(self.items, sequences, strict=True)]
        item_BLD = torch.cat(projected, dim=1)
        if self.position_LD is None or self.time_gap is None:
            return item_BLD
        if time_gap_BL is None:
            return item_BLD + (self.position_LD + self.time_gap.weight[0])
        gap_BLD: torch.Tensor = self.time_gap(time_gap_BL.int())
        return item_BLD + self.position_LD + gap_BLD

    def target_tokens(self, fields: Sequence[torch.Tensor]) -> torch.Tensor:
        """The candidate as an item of each behaviour, [B, F, D]; there is at least one."""
        assert self.item_norm is not None
        target_BFD: torch.Tensor = self.dropout(self.item_norm(self._targets(fields)))
        return target_BFD

    def _targets(self, fields: Sequence[torch.Tensor]) -> torch.Tensor:
        """The candidate as an item of each behaviour, by that behaviour's projection, [B, F, D]."""
        targets = []
        for project, places, widths in zip(
            self.items, self.target_fields, self.item_widths, strict=True
        ):
            attributes = [
                fields[0].new_zeros(fields[0].shape[0], width) if place is None else fields[place]
                for place, width in zip(places, widths, strict=True)
            ]
            targets.append(project(torch.cat(attributes, dim=1)))
        return torch.stack(targets, dim=1)


def _item_projections(item_widths: Sequence[Sequence[int]], token_dim: int) -> nn.ModuleList:
    """One linear map per behaviour: the attributes of an item side by side -> D."""
    return nn.ModuleList(nn.Linear(sum(widths), token_dim) for widths in item_widths)


def _task_tokens(num_tasks: int, token_dim: int) -> nn.Parameter:
    """[K, D], rows of norm 1 in the mean."""
    return nn.Parameter(torch.randn(num_tasks, token_dim) * token_dim**-0.5)


def _position_embeddings(length: int, token_dim: int) -> nn.Parameter:
    """[L, D]."""
    return nn.Parameter(torch.randn(length, token_dim) * 0.02)


def _time_gap_embeddings(num_buckets: int, token_dim: int) -> nn.Embedding:
    """[num_buckets, D]."""
    embedding = nn.Embedding(num_buckets, token_dim)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding
