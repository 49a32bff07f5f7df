"""RankingBatch: the rows that one worker reads for one step.

Letters: B rows, N standardised dense features, V floats of all vectors, K tasks, L history items
over all behaviours (each padded).
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass(frozen=True)
class BatchRows:
    """The rows of a batch: intervals [start, stop) of an epoch's shuffled order."""

    epoch: int
    intervals: tuple[tuple[int, int], ...]


@dataclass
class RankingBatch(Pipelineable):
    """B rows; the last rows of an epoch may be padding, which has no ids and weight 0.

    Attributes:
        sparse_features: int64 ids by key, in the order of `Schema.unweighted_keys`; padding rows
            have none.
        weighted_features: int64 ids and float32 weights by key, in the order of
            `Schema.weighted_keys`; None if there are no such keys.
        vectors_BV: float32, all vector features side by side; NaN where a vector is null.
        dense_BN: float32, standardised dense features.
        time_gap_BL: uint8, bucket of the time since each history item, 0 if there is no item; None
            if no behaviour has time gaps (all buckets are 0).
        labels_BK: float32 in {0, 1}, or a watch time divided by the training window's mean; NaN if
            unknown.
        weights_B: float32, the weight of a row in losses and metrics; 0 for padding.
        group_B: int64, the user for gAUC.
        truth_BK: float32, P(label = 1) if known (synthetic logs), else NaN.
        rows: position of the rows in the epoch's order.
        teacher_BK: float32, a teacher's P(label = 1), NaN for tasks that it doesn't have; None
            without a teacher. The reader doesn't set it, a step does.
    """

    sparse_features: KeyedJaggedTensor
    weighted_features: KeyedJaggedTensor | None
    vectors_BV: torch.Tensor
    dense_BN: torch.Tensor
    time_gap_BL: torch.Tensor | None
    labels_BK: torch.Tensor
    weights_B: torch.Tensor
    group_B: torch.Tensor
    truth_BK: torch.Tensor
    rows: BatchRows
    teacher_BK: torch.Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows without padding."""
        return sum(stop - start for start, stop in self.rows.intervals)

    def to(self, device: torch.device, non_blocking: bool = False) -> "RankingBatch":
        """A copy on `device`."""
        return self._map(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> "RankingBatch":
        """A copy in pinned host memory, for asynchronous copies to a GPU."""
        return self._map(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Mark these tensors as used by `stream` for the allocator."""
        for part in self._tensors().values():
            part.record_stream(stream)

    def _tensors(self) -> dict[str, Any]:
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rows"}
        return {name: part for name, part in parts.items() if part is not None}

    def _map(self, function: Any) -> "RankingBatch":
        return replace(self, **{name: function(part) for name, part in self._tensors().items()})
