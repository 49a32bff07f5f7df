"""DenseArch: everything but the tables; imports torch alone, so it runs where torchrec is missing.

Letters: B batch, E_m width of field m, V floats of all vectors, N standardised dense features,
L history items, K tasks.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn

from infnet_dist.model.compute import bf16_autocast
from infnet_dist.model.tokens import SparseEmbeddings, TokenArch
from infnet_dist.model.towers.esmm import EntireSpace


class FirstOrder(nn.Module):
    """First-order logits: linear in each field's embedding and in the dense features; initially 0.

    The first-order term of Wide & Deep (arXiv 1606.07792) and DeepFM (arXiv 1703.04247, eq. 2), but
    on the embeddings that the tower reads instead of a table of its own. In INFNet a field's own
    effect passes through a gate that all tokens of its group share (docs/infnet.md, section 4).
    """

    def __init__(self, num_inputs: int, num_tasks: int) -> None:
        """`num_inputs`: floats of all fields and dense features together."""
        super().__init__()
        self.linear = nn.Linear(num_inputs, num_tasks)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, fields: Sequence[torch.Tensor], dense_BN: torch.Tensor) -> torch.Tensor:
        """Fields [B, E_m] and dense features [B, N] -> logits [B, K]."""
        logits_BK: torch.Tensor = self.linear(torch.cat([*fields, dense_BN], dim=1))
        return logits_BK


class Vectors(nn.Module):
    """Given vectors, each a field; a learned default, initially 0, replaces those that are null."""

    def __init__(self, dims: Sequence[int]) -> None:
        """`dims`: floats of each vector."""
        super().__init__()
        self.dims = list(dims)
        self.default_V = nn.Parameter(torch.zeros(sum(dims)))

    def forward(self, vectors_BV: torch.Tensor) -> list[torch.Tensor]:
        """All vectors side by side, NaN where null -> one [B, dim] per vector."""
        filled_BV = torch.where(vectors_BV.isnan(), self.default_V, vectors_BV)
        return list(filled_BV.split(self.dims, dim=1))


class DenseArch(nn.Module):
    """Everything but the tables: tokens, tower and heads. Replicated on every worker."""

    def __init__(
        self,
        tokens: TokenArch,
        tower: nn.Module,
        vectors: Vectors | None = None,
        first_order: FirstOrder | None = None,
        entire_space: EntireSpace | None = None,
        *,
        bf16: bool = False,
    ) -> None:
        """`vectors`, `first_order` and `entire_space` are optional parts; None leaves them out.

        With `bf16`, tokens and tower are trained under `bf16_autocast`. They are evaluated in
        float32, as they are served: the 8 bits of a bfloat16 logit would tie rows that differ.
        """
        super().__init__()
        self.bf16 = bf16
        self.vectors = vectors
        self.tokens = tokens
        self.tower = tower
        self.first_order = first_order
        self.entire_space = entire_space

    def forward(
        self,
        embeddings: SparseEmbeddings,
        vectors_BV: torch.Tensor,
        dense_BN: torch.Tensor,
        time_gap_BL: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits [B, K], float32."""
        fields = self.with_vectors(embeddings.fields, vectors_BV)
        with bf16_autocast(dense_BN.device) if self.bf16 and self.training else nullcontext():
            tokens = self.tokens(
                fields, embeddings.sequences, embeddings.masks, dense_BN, time_gap_BL
            )
            logits_BK: torch.Tensor = self.tower(tokens).float()
        return self.completed(logits_BK, fields, dense_BN)

    def with_vectors(
        self, fields: list[torch.Tensor], vectors_BV: torch.Tensor
    ) -> list[torch.Tensor]:
        """The embeddings of all fields, then the vectors, which are fields as well."""
        return fields if self.vectors is None else fields + self.vectors(vectors_BV)

    def completed(
        self, logits_BK: torch.Tensor, fields: Sequence[torch.Tensor], dense_BN: torch.Tensor
    ) -> torch.Tensor:
        """The tower's logits with the parts that aren't the tower's."""
        if self.first_order is not None:
            logits_BK = logits_BK + self.first_order(fields, dense_BN)
        if self.entire_space is not None:
            logits_BK = self.entire_space(logits_BK)
        return logits_BK
