"""The servable model, which knows no labels: ids and dense features -> logits.

The flow: ids -> SparseArch -> DenseArch (TokenArch -> tower) -> logits [B, K].

Letters: B batch, K tasks.
"""

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.model.dense import DenseArch
from infnet_dist.model.sparse import SparseArch


class RankingModel(nn.Module):
    """The servable model: ids, vectors and dense features -> logits [B, K]."""

    def __init__(self, sparse: SparseArch, dense: DenseArch) -> None:
        """`sparse` is sharded, `dense` replicated."""
        super().__init__()
        self.sparse = sparse
        self.dense = dense

    def forward(
        self,
        sparse_features: KeyedJaggedTensor,
        weighted_features: KeyedJaggedTensor | None,
        vectors_BV: torch.Tensor,
        dense_BN: torch.Tensor,
        time_gap_BL: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits [B, K]; arguments as in `RankingBatch`."""
        embeddings = self.sparse(sparse_features, weighted_features)
        logits_BK: torch.Tensor = self.dense(embeddings, vectors_BV, dense_BN, time_gap_BL)
        return logits_BK
