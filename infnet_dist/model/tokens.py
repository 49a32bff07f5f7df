"""Embeddings -> categorical, sequence and task tokens, all of width D (docs/infnet.md, section 1).

Letters: B batch, M field tokens, L history tokens of all behaviours, K tasks, D token width,
N plain numbers, E embedding width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


class Tokens(NamedTuple):
    """What every model reads.

    Attributes:
        categorical_BMD: one token per field.
        sequence_BLD: one token per history item, behaviours one after the other, newest first;
            zeros where padded.
        mask_BL: bool, True where there is an item.
        target_BFD: the candidate as an item of each behaviour, without position and time gap: its
            attributes go through the map and norm of the history's items. What target attention
            compares the items with.
        task_BKD: one learnable token per task; K = 0 for towers that don't read them.
    """

    categorical_BMD: torch.Tensor
    sequence_BLD: torch.Tensor
    mask_BL: torch.Tensor
    target_BFD: torch.Tensor
    task_BKD: torch.Tensor


class FieldProjections(nn.Module):
    """One linear map E -> D per field, all in one batched product."""

    def __init__(self, num_fields: int, embedding_dim: int, token_dim: int) -> None:
        """Initialised like `nn.Linear`."""
        super().__init__()
        bound = embedding_dim**-0.5
        weight_MED = torch.empty(num_fields, embedding_dim, token_dim).uniform_(-bound, bound)
        bias_M1D = torch.empty(num_fields, 1, token_dim).uniform_(-bound, bound)
        self.weight_MED, self.bias_M1D = nn.Parameter(weight_MED), nn.Parameter(bias_M1D)

    def forward(self, fields: Sequence[torch.Tensor]) -> torch.Tensor:
        """M fields [B, E] -> [B, M, D]."""
        fields_MBE = torch.stack(list(fields))
        return torch.baddbmm(self.bias_M1D, fields_MBE, self.weight_MED).transpose(0, 1)


class TokenArch(nn.Module):
    """Projects embeddings and numbers to tokens, and normalises them (LayerNorm, our choice).

    Args:
        num_fields: number of fields.
        embedding_dim: E.
        sequence_lengths: L_f of each behaviour.
        target_fields: for each behaviour and item attribute the number of the candidate's field of
            the same kind; None where there is none: zeros stand in for it.
        num_numbers: N; their projection is one more field token when N > 0.
        num_tasks: K; 0 makes no task tokens.
        token_dim: D.
        num_time_gap_buckets: rows of the time-gap embedding.
        positions: whether sequence tokens carry a learnable position and a time-gap embedding
            (INFNet v2; v1 has neither).
        dropout: dropout of the projected field and sequence tokens.
    """

    def __init__(
        self,
        *,
        num_fields: int,
        embedding_dim: int,
        sequence_lengths: Sequence[int],
        target_fields: Sequence[Sequence[int | None]],
        num_numbers: int,
        num_tasks: int,
        token_dim: int,
        num_time_gap_buckets: int,
        positions: bool = True,
        dropout: float = 0.0,
    ) -> None:
        """Make one projection per field and behaviour."""
        super().__init__()
        self.fields = FieldProjections(num_fields, embedding_dim, token_dim)
        self.numbers = nn.Linear(num_numbers, token_dim) if num_numbers else None
        self.items = nn.ModuleList(
            nn.Linear(embedding_dim * len(attributes), token_dim) for attributes in target_fields
        )
        self.task_KD = None
        if num_tasks:
            self.task_KD = nn.Parameter(torch.randn(num_tasks, token_dim) * token_dim**-0.5)
        self.field_norm = nn.LayerNorm(token_dim)
        self.item_norm = nn.LayerNorm(token_dim) if sequence_lengths else None
        self.dropout = nn.Dropout(dropout)
        self.target_fields = target_fields
        self.token_dim = token_dim
        self.num_fields = num_fields + (num_numbers > 0)
        self.position_LD = self.time_gap = None
        if positions and sequence_lengths:
            length = sum(sequence_lengths)
            self.position_LD = nn.Parameter(torch.randn(length, token_dim) * 0.02)
            self.time_gap = nn.Embedding(num_time_gap_buckets, token_dim)
            nn.init.normal_(self.time_gap.weight, std=0.02)

    def forward(
        self,
        fields: Sequence[torch.Tensor],
        sequences: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor],
        dense_BN: torch.Tensor,
        time_gap_BL: torch.Tensor,
    ) -> Tokens:
        """Make tokens.

        Args:
            fields: one [B, E] per field.
            sequences: one [B, L_f, attributes x E] per behaviour.
            masks: one bool [B, L_f] per behaviour.
            dense_BN: standardised numbers.
            time_gap_BL: buckets, of any integer type, 0 where padded.
        """
        projected_BMD = self.fields(fields)
        if self.numbers is not None:
            projected_BMD = torch.cat([projected_BMD, self.numbers(dense_BN).unsqueeze(1)], dim=1)
        categorical_BMD = self.dropout(self.field_norm(projected_BMD))
        batch = len(categorical_BMD)
        task_BKD = categorical_BMD.new_zeros(batch, 0, self.token_dim)
        if self.task_KD is not None:
            task_BKD = self.task_KD.expand(batch, -1, -1)
        if self.item_norm is None:
            nothing_B0D = categorical_BMD.new_zeros(batch, 0, self.token_dim)
            mask_B0 = torch.zeros(batch, 0, dtype=torch.bool, device=nothing_B0D.device)
            return Tokens(categorical_BMD, nothing_B0D, mask_B0, nothing_B0D, task_BKD)
        sequence_BLD = torch.cat(
            [project(x_BLE) for project, x_BLE in zip(self.items, sequences, strict=True)], dim=1
        )
        if self.position_LD is not None and self.time_gap is not None:
            sequence_BLD = sequence_BLD + self.position_LD + self.time_gap(time_gap_BL.int())
        mask_BL = torch.cat(list(masks), dim=1)
        sequence_BLD = self.dropout(self.item_norm(sequence_BLD))
        sequence_BLD = sequence_BLD.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
        target_BFD = self.dropout(self.item_norm(self._targets(fields)))
        return Tokens(categorical_BMD, sequence_BLD, mask_BL, target_BFD, task_BKD)

    def _targets(self, fields: Sequence[torch.Tensor]) -> torch.Tensor:
        """The candidate's attributes, mapped as each behaviour's items are: [B, F, D]."""
        targets = []
        for project, numbers in zip(self.items, self.target_fields, strict=True):
            nothing_BE = torch.zeros_like(fields[0])
            parts = [nothing_BE if n is None else fields[n] for n in numbers]
            targets.append(project(torch.cat(parts, dim=1)))
        return torch.stack(targets, dim=1)
