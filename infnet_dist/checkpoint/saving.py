"""Saving in the background: a snapshot of the state is written while training continues."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.shards import LocalShard, ModelState
from infnet_dist.checkpoint.snapshot import (
    LiveState,
    ShardKey,
    Snapshot,
    kernel_tables,
    shard_key,
)
from infnet_dist.checkpoint.writing import CheckpointMetadata, CheckpointWriter
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.io.filesystem import Folder
from infnet_dist.sharding.build import ShardedModel
from infnet_dist.sharding.optimizers import kernels_of


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint.

    Attributes:
        seconds: from the call of `save` to the manifest.
        waited_s: seconds of it that steps of this rank took for copies of rows.
        num_bytes: of all ranks' tensors.
    """

    folder: Folder
    step: int
    seconds: float
    waited_s: float
    num_bytes: int


class SnapshotMaker:
    """Takes the state of a model that is written while training continues, one at a time.

    Args:
        sharded: the model.
        context: this worker.
        background: False: training waits until all is written, so nothing is copied.
        thread: in which memory for the copies is prepared.
        shards: all that may be in a snapshot.
    """

    def __init__(
        self,
        sharded: ShardedModel,
        context: WorkerContext,
        *,
        background: bool,
        thread: ThreadPoolExecutor,
        shards: Sequence[LocalShard],
    ) -> None:
        self._context = context
        self._kernels = list(kernels_of(sharded.sparse_optimizer))
        self._taken: LiveState | None = None
        self._copies: Future[dict[ShardKey, torch.Tensor]] | None = None
        if background:
            # Fresh pages cost more than the copy: they are touched while training starts.
            _, others = kernel_tables(shards, self._kernels)
            self._copies = thread.submit(_allocate_copies, others)

    def take(self, shards: Sequence[LocalShard]) -> LiveState:
        """The state as of now; call `detach` with it once it is written."""
        assert self._taken is None, "the copies of the state before are still needed"
        if self._copies is None:
            self._taken = LiveState(shards)
        else:
            tables, others = kernel_tables(shards, self._kernels)
            self._taken = Snapshot(tables, copied(others, self._copies.result(), self._context))
        return self._taken

    def detach(self, state: LiveState) -> None:
        """The state is written, or given up: leave the kernels without its hooks."""
        if isinstance(state, Snapshot):
            state.detach()
        if state is self._taken:
            self._taken = None


class Saver:
    """Saves checkpoints of one model into `folder`, one at a time; all ranks make the same calls.

    Args:
        folder: of the run's checkpoints.
        sharded: the model.
        config: the run.
        context: this worker.
        damaged: names of checkpoints that were skipped when the run resumed.
        more_shards: returns further shards to save beside the model's and optimizers'.

    Attributes:
        snapshots: those of the saves; others may be taken while none is being written.
    """

    def __init__(
        self,
        folder: Folder,
        sharded: ShardedModel,
        config: Config,
        context: WorkerContext,
        damaged: Iterable[str] = (),
        more_shards: Callable[[], list[LocalShard]] = list,
    ) -> None:
        self._sharded = sharded
        self._context = context
        self._more_shards = more_shards
        context = context.with_own_group()
        self._writer = CheckpointWriter(folder, sharded, config, context, damaged)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[SavedCheckpoint] | None = None
        self._state: LiveState | None = None
        self.snapshots = SnapshotMaker(
            sharded,
            self._context,
            background=config.checkpoint.background,
            thread=self._thread,
            shards=self._shards(),
        )

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing a checkpoint."""
        return self._pending is not None and not self._pending.done()

    def folder_of(self, step: int) -> Folder:
        """The folder of a step's checkpoint."""
        return self._writer.folder_of(step)

    def save(self, metadata: CheckpointMetadata) -> None:
        """Begin to write the state; on return the model may change again.

        Call `wait` for the checkpoint before first.
        """
        assert self._pending is None, "wait for the checkpoint before"
        start = time.perf_counter()
        state = self._state = self.snapshots.take(self._shards())
        self._pending = self._thread.submit(self._write, state, metadata, start)
        if not isinstance(state, Snapshot):
            self._pending.exception()  # blocks until it is written; `wait` raises the error

    def wait(self) -> SavedCheckpoint | None:
        """Wait for the checkpoint that is being written; None if there is none.

        Raises:
            NotFiniteError: the model holds NaN or infinity; on all ranks.
            CheckpointError: it can't be written; on all ranks. Earlier checkpoints are untouched.
        """
        pending, self._pending = self._pending, None
        try:
            return None if pending is None else pending.result()
        finally:
            self._detach()

    def amend(self, manifest: CheckpointManifest, metadata: CheckpointMetadata) -> None:
        """As `CheckpointWriter.amend`; call `wait` first."""
        assert self._pending is None, "wait for the checkpoint before"
        self._writer.amend(manifest, metadata)

    def close(self) -> None:
        """Wait for the last checkpoint, complete or failed, and end the thread."""
        self._thread.shutdown(wait=True)
        self._detach()

    def _detach(self) -> None:
        state, self._state = self._state, None
        if state is not None:
            self.snapshots.detach(state)

    def _shards(self) -> list[LocalShard]:
        context = self._context
        own = ModelState(self._sharded).shards_to_save(context.rank, context.world_size)
        return own + self._more_shards()

    def _write(
        self, state: LiveState, metadata: CheckpointMetadata, start: float
    ) -> SavedCheckpoint:
        """Runs in the thread, on all ranks together."""
        try:
            num_bytes = self._writer.write(state, metadata)
        finally:
            state.close()
        step, seconds = metadata.progress.step, time.perf_counter() - start
        return SavedCheckpoint(self.folder_of(step), step, seconds, state.waited_s, num_bytes)


def copied(
    shards: Sequence[LocalShard], copies: Mapping[ShardKey, torch.Tensor], context: WorkerContext
) -> list[LocalShard]:
    """The shards' present values, in memory of their own."""
    for shard in shards:
        copies[shard_key(shard)].copy_(shard.tensor, non_blocking=True)
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)
    return [replace(shard, tensor=copies[shard_key(shard)]) for shard in shards]


def _allocate_copies(shards: Sequence[LocalShard]) -> dict[ShardKey, torch.Tensor]:
    """Memory for a copy of each shard, pinned for those on a GPU."""
    copies = {}
    for shard in shards:
        copy = torch.empty(
            shard.tensor.shape, dtype=shard.tensor.dtype, pin_memory=shard.tensor.is_cuda
        )
        copies[shard_key(shard)] = copy.zero_()  # touches its pages
    return copies
