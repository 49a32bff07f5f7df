"""The dense part in the form that scores a request: one user with a history, and N candidates.

    UserArch: history -> what candidates need of the user
    CandidateArch: that, and the embeddings of N candidates -> logits [N, K]

Fields of the user are given to `CandidateArch` N times, as views. torch.export takes both modules:
their outputs are tensors and lists of tensors.

Letters: N candidates, E_m width of field m, V floats of all vectors, L history items, K tasks.
"""

from collections.abc import Sequence

import torch
from torch import nn

from infnet_dist.model.dense import DenseArch
from infnet_dist.model.towers.request import request_form


class UserArch(nn.Module):
    """The part that reads the user's history; of models that have one."""

    def __init__(self, dense: DenseArch) -> None:
        """`dense` shares its parameters."""
        super().__init__()
        self.tokens = dense.tokens
        self.form = request_form(dense.tower)

    def forward(
        self,
        sequences: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor],
        time_gap_1L: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """Arguments as in `TokenArch`, with batch size 1; see `towers.request`."""
        sequence_1LD, mask_1L = self.tokens.history_tokens(sequences, masks, time_gap_1L)
        return self.form.user(sequence_1LD, mask_1L, self.tokens.task_tokens(sequence_1LD))


class CandidateArch(nn.Module):
    """The part that reads candidates, and all fields."""

    def __init__(self, dense: DenseArch) -> None:
        """`dense` shares its parameters."""
        super().__init__()
        self.dense = dense
        self.form = request_form(dense.tower)

    def forward(
        self,
        user: list[torch.Tensor],
        fields: list[torch.Tensor],
        vectors_NV: torch.Tensor,
        dense_NN: torch.Tensor,
    ) -> torch.Tensor:
        """Logits [N, K]; `user` is `UserArch`'s, empty for models without history."""
        dense, tokens = self.dense, self.dense.tokens
        fields = dense.with_vectors(fields, vectors_NV)
        categorical_NMD = tokens.field_tokens(fields, dense_NN)
        target_NFD = tokens.target_tokens(fields) if user else categorical_NMD[:, :0]
        task_NKD = tokens.task_tokens(categorical_NMD)
        logits_NK = self.form.candidates(user, categorical_NMD, target_NFD, task_NKD)
        return dense.completed(logits_NK, fields, dense_NN)
