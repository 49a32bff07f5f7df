"""Clips the gradient of each lookup of a row, where the embeddings leave the tables.

There it is the same under every sharding. A row that several examples of a batch look up gets the
sum of their clipped gradients.

Letters: B rows of the batch, L history items, E_t width of table t.
"""

from functools import partial
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.lookups import Lookup, Lookups
from infnet_dist.model.tokens import SparseEmbeddings
from infnet_dist.schema import sequence_keys


class RowClipping:
    """A forward hook of `Pooling`: limits gradients as they come back.

    All rows of a bag get its gradient: of a mean divided by their number, multiplied by their
    weights. It is scaled down so far that none of them gets more than the limit.

    Args:
        lookups: of the run.
        max_norm: limit of the L2 norm.
    """

    def __init__(self, lookups: Lookups, max_norm: float) -> None:
        self._max_norm = max_norm
        self._fields = lookups.fields
        widths = {lookup.feature: lookup.width for lookup in lookups}
        self._widths = [
            [widths[key] for key in sequence_keys(sequence)]
            for sequence in lookups.schema.sequences
        ]

    def __call__(self, pooling: Any, inputs: tuple[Any, ...], embeddings: SparseEmbeddings) -> None:
        """Register hooks on all embeddings."""
        _, _, sparse_features, weighted_features = inputs
        for field, rows_BE in zip(self._fields, embeddings.fields, strict=True):
            if rows_BE.requires_grad:
                share_B1 = _largest_share(field, sparse_features, weighted_features)
                rows_BE.register_hook(partial(self._clip, share_B1))
        for widths, items_BLE in zip(self._widths, embeddings.sequences, strict=True):
            if items_BLE.requires_grad:
                items_BLE.register_hook(partial(self._clip_items, widths))

    def _clip(self, share: torch.Tensor | float, gradient: torch.Tensor) -> torch.Tensor:
        """Scale down vectors whose norm, times `share`, is above the limit."""
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True) * share
        return gradient * (self._max_norm / norm).clamp(max=1.0)  # 1 where the norm is 0

    def _clip_items(self, widths: list[int], gradient_BLE: torch.Tensor) -> torch.Tensor:
        """The same for the rows of each attribute of a history's items."""
        return torch.cat([self._clip(1.0, part) for part in gradient_BLE.split(widths, -1)], dim=-1)


def _largest_share(
    field: Lookup,
    sparse_features: KeyedJaggedTensor,
    weighted_features: KeyedJaggedTensor | None,
) -> torch.Tensor | float:
    """The largest factor with which a field's gradient reaches one of its rows, [B, 1]."""
    if field.kind == "single":
        return 1.0
    if not field.weighted:
        if field.pooling == "sum":
            return 1.0
        features = weighted_features if field.home == "weighted" else sparse_features
        assert features is not None
        return (1.0 / features[field.feature].lengths().clamp(min=1)).unsqueeze(1)
    assert weighted_features is not None
    ids = weighted_features[field.feature]
    weights, lengths = ids.weights(), ids.lengths()
    largest_B = torch.segment_reduce(weights, "max", lengths=lengths, initial=0)
    if field.pooling == "mean":
        total_B = torch.segment_reduce(weights, "sum", lengths=lengths, initial=0)
        largest_B = largest_B / total_B.where(total_B > 0, 1.0)
    return largest_B.unsqueeze(1)
