"""Tracks which rows of the tables may have changed: those that the kernels look up.

A kernel's update changes no row that its lookup didn't name, whatever the optimizer: fbgemm's
kernels are exact, weight decay included. The rows of a skipped step are marked too, so the marked
rows are a superset. Tables that no kernel updates (data-parallel ones, whose optimizer passes over
all rows) aren't tracked: all their rows count as changed.

docs/publish.md says why this isn't TorchRec's tracker (`torchrec.distributed.model_tracker`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from infnet_dist.checkpoint.shards import LocalShard, ModelState
from infnet_dist.checkpoint.snapshot import KernelTable, ids_by_table, kernel_tables
from infnet_dist.checkpoint.tensor_names import CHANGED, TABLE
from infnet_dist.sharding.build import ShardedModel
from infnet_dist.sharding.optimizers import kernels_of

DEVICES = ("cpu", "cuda")
Marks = dict[int, torch.Tensor]  # by kernel (its id), bool by row, table after table


class ChangedRows:
    """The rows of this rank's shards that may have changed since the marks were last taken.

    Args:
        sharded: the model; its kernels get hooks.

    Attributes:
        taken: marks of a publication that isn't complete; if it fails, `restore` them.
    """

    def __init__(self, sharded: ShardedModel) -> None:
        self._sharded = sharded
        self._kernels = [_Kernel(kernel) for kernel in kernels_of(sharded.sparse_optimizer)]
        self.taken: Marks = {}

    def tables(self, shards: Sequence[LocalShard]) -> tuple[list[KernelTable], list[LocalShard]]:
        """The tables that are tracked, and all other shards."""
        kernels = [kernel.module for kernel in self._kernels]
        return kernel_tables(shards, kernels, devices=DEVICES)

    def take(self) -> Marks:
        """The marks as of now; there are none afterwards."""
        assert not self.taken, "complete or restore the publication before"
        self.taken = {id(kernel.module): kernel.take() for kernel in self._kernels}
        return self.taken

    def complete(self) -> None:
        """The publication of the taken marks is complete: forget them."""
        self.taken = {}

    def restore(self) -> None:
        """The publication of the taken marks failed: mark their rows again."""
        for kernel in self._kernels:
            if (marks := self.taken.get(id(kernel.module))) is not None:
                kernel.marks |= marks
        self.taken = {}

    def of(self, table: KernelTable, marks: Marks) -> torch.Tensor:
        """The part of marks of one table, bool [rows]."""
        (kernel,) = (one for one in self._kernels if one.module is table.kernel)
        return kernel.part(marks[id(table.kernel)], table.number)

    def shards(self) -> list[LocalShard]:
        """All marks since the last complete publication, for a checkpoint: by table, bool [rows].

        They are copies.
        """
        marks = {}
        for kernel in self._kernels:
            key = id(kernel.module)
            marks[key] = kernel.marks | self.taken[key] if key in self.taken else kernel.marks
        found = []
        tables, _ = self.tables(ModelState(self._sharded, with_optimizer=False).shards())
        for table in tables:
            (weight,) = (shard for shard in table.shards if TABLE.fullmatch(shard.name))
            if weight.offsets[1] == 0:  # column shards of the same rows have the same marks
                marked = self.of(table, marks).clone()
                found.append(_shard(weight, marked))
        return found

    def load(self, table: KernelTable, marked: torch.Tensor) -> None:
        """Mark rows of a table, bool [rows]."""
        (kernel,) = (one for one in self._kernels if one.module is table.kernel)
        kernel.part(kernel.marks, table.number).logical_or_(marked.to(kernel.marks.device))

    def clear(self) -> None:
        """Mark no row."""
        for kernel in self._kernels:
            kernel.marks.zero_()

    def close(self) -> None:
        """Leave the kernels without hooks."""
        for kernel in self._kernels:
            kernel.hook.remove()


def _shard(weight: LocalShard, marked: torch.Tensor) -> LocalShard:
    match = TABLE.fullmatch(weight.name)
    assert match is not None
    name = f"{CHANGED}{match[1]}"
    return LocalShard(name, weight.shape[:1], weight.offsets[:1], marked, weight.replicated)


class _Kernel:
    """A kernel with its marks.

    Args:
        module: a `SplitTableBatchedEmbeddingBagsCodegen`.

    Attributes:
        marks: bool by row, table after table, on the kernel's device.
    """

    def __init__(self, module: Any) -> None:
        self.module: nn.Module = module
        weights = module.split_embedding_weights()
        self._rows = [len(weight) for weight in weights]
        self._first = torch.tensor([0, *self._rows]).cumsum(0).tolist()
        device = module.current_device
        self.marks = torch.zeros(self._first[-1], dtype=torch.bool, device=device)
        features: list[int] = module.feature_table_map
        self._first_F = torch.tensor([self._first[t] for t in features], device=device)
        self._rows_F = torch.tensor([self._rows[t] for t in features], device=device)
        self.hook = module.register_forward_pre_hook(self._before_lookup, with_kwargs=True)

    def take(self) -> torch.Tensor:
        """The marks; none are left."""
        taken = self.marks.clone()
        self.marks.zero_()
        return taken

    def part(self, marks: torch.Tensor, number: int) -> torch.Tensor:
        """The part of a table, a view."""
        return marks[self._first[number] : self._first[number + 1]]

    def _before_lookup(self, kernel: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        if not torch.is_grad_enabled():  # an evaluation changes nothing
            return
        given = dict(zip(("indices", "offsets"), args, strict=False)) | kwargs
        self._mark(given["indices"], given["offsets"], given.get("batch_size_per_feature_per_rank"))

    @torch.no_grad()
    def _mark(
        self,
        indices: torch.Tensor,
        offsets: torch.Tensor,
        batch_sizes: Sequence[Sequence[int]] | None,
    ) -> None:
        """Mark the rows of a lookup; on a GPU without waiting for it."""
        if self.marks.device.type == "cuda":
            self._mark_at_once(indices, offsets, batch_sizes)
            return
        tables: Any = self.module.feature_table_map
        for number, ids in ids_by_table(tables, indices, offsets, batch_sizes):
            inside = (ids >= 0) & (ids < self._rows[number])
            self.part(self.marks, number).index_fill_(0, ids.where(inside, 0), True)

    def _mark_at_once(
        self,
        indices: torch.Tensor,
        offsets: torch.Tensor,
        batch_sizes: Sequence[Sequence[int]] | None,
    ) -> None:
        """As `_mark`, in a few operations for all tables; half as fast on CPUs."""
        if not len(indices):
            return
        if batch_sizes is None:
            ends_F = offsets[:: (len(offsets) - 1) // len(self._first_F)]
        else:
            sizes = torch.tensor([0, *(sum(by_rank) for by_rank in batch_sizes)]).cumsum(0)
            ends_F = offsets[sizes.to(offsets.device, non_blocking=True)]
        counts_F, count = ends_F.diff(), len(indices)
        first = self._first_F.repeat_interleave(counts_F, output_size=count)
        rows = self._rows_F.repeat_interleave(counts_F, output_size=count)
        # The kernel reads, and changes, row 0 in place of an id that is out of range.
        inside = (indices >= 0) & (indices < rows)
        self.marks.index_fill_(0, torch.where(inside, indices, 0) + first, True)
