"""Saving in the background: the state is copied, then written while training continues."""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.shards import LocalShard, ModelState
from infnet_dist.checkpoint.writing import CheckpointMetadata, CheckpointWriter
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.io.filesystem import Folder
from infnet_dist.sharding.build import ShardedModel

ShardKey = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint.

    Attributes:
        seconds: from the call of `save` to the manifest.
        num_bytes: of all ranks' tensors.
    """

    folder: Folder
    step: int
    seconds: float
    num_bytes: int


class Saver:
    """Saves checkpoints of one model into `folder`, one at a time; all ranks make the same calls.

    Args:
        folder: of the run's checkpoints.
        sharded: the model.
        config: the run.
        context: this worker.
        damaged: names of checkpoints that were skipped when the run resumed.
    """

    def __init__(
        self,
        folder: Folder,
        sharded: ShardedModel,
        config: Config,
        context: WorkerContext,
        damaged: Iterable[str] = (),
    ) -> None:
        self._sharded = sharded
        self._context = context
        context = context.with_own_group()
        self._writer = CheckpointWriter(folder, sharded, config, context, damaged)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[SavedCheckpoint] | None = None
        self._copies: Future[dict[ShardKey, torch.Tensor]] | None = None
        if config.checkpoint.background:
            # Fresh pages cost more than the copy: they are touched while training starts.
            self._copies = self._thread.submit(_allocate_copies, self._shards())

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing a checkpoint."""
        return self._pending is not None and not self._pending.done()

    def folder_of(self, step: int) -> Folder:
        """The folder of a step's checkpoint."""
        return self._writer.folder_of(step)

    def save(self, metadata: CheckpointMetadata) -> None:
        """Copy the state and begin to write it; on return the model may change again.

        Call `wait` for the checkpoint before first.
        """
        assert self._pending is None, "wait for the checkpoint before"
        start = time.perf_counter()
        shards = self._shards()
        if self._copies:
            shards = self._copy(shards, self._copies.result())
        self._pending = self._thread.submit(self._write, shards, metadata, start)
        if not self._copies:
            self._pending.exception()  # blocks until it is written; `wait` raises the error

    def wait(self) -> SavedCheckpoint | None:
        """Wait for the checkpoint that is being written; None if there is none.

        Raises:
            NotFiniteError: the model holds NaN or infinity; on all ranks.
            CheckpointError: it can't be written; on all ranks. Earlier checkpoints are untouched.
        """
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()

    def amend(self, manifest: CheckpointManifest, metadata: CheckpointMetadata) -> None:
        """As `CheckpointWriter.amend`; call `wait` first."""
        assert self._pending is None, "wait for the checkpoint before"
        self._writer.amend(manifest, metadata)

    def close(self) -> None:
        """Wait for the last checkpoint, complete or failed, and end the thread."""
        self._thread.shutdown(wait=True)

    def _shards(self) -> list[LocalShard]:
        context = self._context
        return ModelState(self._sharded).shards_to_save(context.rank, context.world_size)

    def _copy(
        self, shards: Sequence[LocalShard], copies: Mapping[ShardKey, torch.Tensor]
    ) -> list[LocalShard]:
        """The shards' present values, in memory of their own."""
        for shard in shards:
            copies[_key(shard)].copy_(shard.tensor, non_blocking=True)
        if self._context.device.type == "cuda":
            torch.cuda.synchronize(self._context.device)
        return [replace(shard, tensor=copies[_key(shard)]) for shard in shards]

    def _write(
        self, shards: Sequence[LocalShard], metadata: CheckpointMetadata, start: float
    ) -> SavedCheckpoint:
        """Runs in the thread, on all ranks together."""
        num_bytes = self._writer.write(shards, metadata)
        step, seconds = metadata.progress.step, time.perf_counter() - start
        return SavedCheckpoint(self.folder_of(step), step, seconds, num_bytes)


def _key(shard: LocalShard) -> ShardKey:
    return shard.name, shard.offsets


def _allocate_copies(shards: Sequence[LocalShard]) -> dict[ShardKey, torch.Tensor]:
    """Memory for a copy of each shard, pinned for those on a GPU."""
    copies = {}
    for shard in shards:
        copy = torch.empty(
            shard.tensor.shape, dtype=shard.tensor.dtype, pin_memory=shard.tensor.is_cuda
        )
        copies[_key(shard)] = copy.zero_()  # touches its pages
    return copies
