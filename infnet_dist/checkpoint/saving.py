"""Saving: the state is copied, then written while training goes on.

    <folder>/step-00000500/
      rank-00000-00-1f3a9c02.safetensors, ...   tensors that rank 0 held: rows and optimizer state
      plan.json, config.yaml, schema.json       what it was trained under
      manifest.json                             step, position, metrics, all tensors with checksums

Every rank writes its own files into the final folder. Rank 0 writes the manifest once all are
there, by rename (or as one object of an object store): until then the folder doesn't exist for
readers. The names of files are new in each attempt, so a damaged checkpoint of the same step is
replaced, not mixed up. Only then do older checkpoints go.
"""

import logging
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import tenacity
import torch

from infnet_dist.checkpoint.files import BLOCK_BYTES, NotFiniteError, pack, write_file
from infnet_dist.checkpoint.manifest import (
    MANIFEST,
    CheckpointManifest,
    DataOrder,
    SavedFile,
    SavedProgress,
    SavedTensor,
    Throughput,
    dump_manifest,
    name_of,
)
from infnet_dist.checkpoint.retention import prune
from infnet_dist.checkpoint.shards import LocalShard, ModelState
from infnet_dist.checkpoint.trained_schema import SCHEMA
from infnet_dist.config.run import Config, dump_config
from infnet_dist.distributed import heartbeat
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError, UserError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.json_files import null_nonfinite
from infnet_dist.io.retries import one_line, retrying
from infnet_dist.planning.plan_file import dump_plan
from infnet_dist.sharding.build import ShardedModel

T = TypeVar("T")
ShardKey = tuple[str, tuple[int, ...]]
_PROBE = "probe"
# Of a place that is wrong, which waiting doesn't mend.
_LASTING = (
    UserError,
    FileExistsError,
    FileNotFoundError,
    NotADirectoryError,
    PermissionError,
)
_TRIAL = ".trial"
log = logging.getLogger("infnet_dist")


@dataclass(frozen=True)
class CheckpointMetadata:
    """What a checkpoint says beside its tensors; the same on all ranks.

    Attributes: as in `CheckpointManifest`.
    """

    progress: SavedProgress
    order: DataOrder
    metrics: dict[str, float]
    unknown_id_rates: dict[str, float] | None = None
    totals: Throughput = field(default_factory=Throughput)


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that is complete.

    Attributes:
        seconds: from the call of `save` to the manifest.
        num_bytes: of all ranks' tensors.
    """

    folder: Folder
    step: int
    seconds: float
    num_bytes: int


class Saver:
    """Saves checkpoints of one model into `folder`, one at a time; every rank makes the same calls.

    Args:
        folder: of the run's checkpoints.
        sharded: the model.
        config: the run.
        context: this worker.
        damaged: names of checkpoints that were skipped when the run went on.
    """

    def __init__(
        self,
        folder: Folder,
        sharded: ShardedModel,
        config: Config,
        context: WorkerContext,
        damaged: Iterable[str] = (),
    ) -> None:
        self._damaged = set(damaged)
        self._folder = folder
        self._sharded = sharded
        self._config = config
        self._context = context.with_own_group()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[SavedCheckpoint] | None = None
        self._copies: Future[dict[ShardKey, torch.Tensor]] | None = None
        if config.checkpoint.background:
            # Fresh pages cost more than the copy: they are touched while training starts.
            self._copies = self._thread.submit(_make_room, self._shards())

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is still being written, by this rank's clock."""
        return self._pending is not None and not self._pending.done()

    def folder_of(self, step: int) -> Folder:
        """Where the checkpoint of a step stands, if there is one."""
        return self._folder / name_of(step)

    def save(self, facts: CheckpointMetadata) -> None:
        """Copy the state and start to write it; returns when the model may change again.

        Call `wait` for the one before first.
        """
        assert self._pending is None, "wait for the checkpoint before"
        start = time.perf_counter()
        shards = self._shards()
        if self._copies:
            shards = self._copy(shards, self._copies.result())
        self._pending = self._thread.submit(self._write, shards, facts, start)
        if not self._copies:
            self._pending.exception()  # wait; `wait` tells

    def wait(self) -> SavedCheckpoint | None:
        """The checkpoint that was being written, once it is complete; None if there is none.

        Raises:
            NotFiniteError: the model holds NaN or infinity; on all ranks.
            CheckpointError: it can't be written; on all ranks. Earlier checkpoints are untouched.
        """
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()

    def amend(self, manifest: CheckpointManifest, facts: CheckpointMetadata) -> None:
        """Replace metrics and totals of the checkpoint of this very step, no more.

        Args:
            manifest: that the checkpoint has.
            facts: what is known of it now.

        Raises:
            CheckpointError: they can't be replaced; on all ranks.
        """
        assert self._pending is None, "wait for the checkpoint before"
        folder = self.folder_of(facts.progress.step)
        changes = {
            "metrics": null_nonfinite(facts.metrics),
            "interval": (),  # was logged before the evaluation
            "totals": facts.totals,
        }
        changed = manifest.model_copy(update=changes)
        self._context.on_first(
            lambda: _as_checkpoint_error(folder, lambda: self._replace_manifest(folder, changed))
        )

    def _replace_manifest(self, folder: Folder, manifest: CheckpointManifest) -> None:
        content = dump_manifest(manifest)
        # Where nothing can be written, an object store's manifest might be lost (`create_whole`).
        self._retry(folder.put, f"{MANIFEST}{_TRIAL}", content)
        self._retry(folder.put, MANIFEST, content)
        self._prune(folder, manifest)

    def close(self) -> None:
        """Let the last checkpoint be finished, whatever comes of it, and end the thread."""
        self._thread.shutdown(wait=True)

    def _shards(self) -> list[LocalShard]:
        return ModelState(self._sharded).shards_to_save(
            self._context.rank, self._context.world_size
        )

    def _copy(
        self, shards: Sequence[LocalShard], copies: Mapping[ShardKey, torch.Tensor]
    ) -> list[LocalShard]:
        """The shards as they are now, in memory of their own."""
        for shard in shards:
            copies[_key(shard)].copy_(shard.tensor, non_blocking=True)
        if self._context.device.type == "cuda":
            torch.cuda.synchronize(self._context.device)
        return [replace(shard, tensor=copies[_key(shard)]) for shard in shards]

    def _write(
        self, shards: Sequence[LocalShard], facts: CheckpointMetadata, start: float
    ) -> SavedCheckpoint:
        """Runs in the thread, on all ranks together."""
        folder = self.folder_of(facts.progress.step)
        context = self._context
        attempt = context.broadcast(secrets.token_hex(4))
        # Only failures of the storage become a CheckpointError: a broken collective means that a
        # worker is gone, which isn't the checkpoint's fault.
        own = context.together(
            lambda: _as_checkpoint_error(
                folder, lambda: self._write_tensors(folder, shards, attempt)
            )
        )
        found = context.gather_to_first(own)
        num_bytes = context.on_first(
            lambda: _as_checkpoint_error(folder, lambda: self._finish(folder, facts, found or []))
        )
        step = facts.progress.step
        return SavedCheckpoint(folder, step, time.perf_counter() - start, num_bytes)

    def _write_tensors(
        self, folder: Folder, shards: Sequence[LocalShard], attempt: str
    ) -> tuple[dict[str, int], list[tuple[str, SavedTensor]]]:
        """Write this rank's files: bytes by name, and what tensors they hold."""
        sizes: dict[str, int] = {}
        tensors: list[tuple[str, SavedTensor]] = []
        for number, together in enumerate(pack(shards)):
            name = f"rank-{self._context.rank:05d}-{number:02d}-{attempt}.safetensors"
            sizes[name], found = self._retry(write_file, folder, name, together)
            tensors += found
        return sizes, tensors

    def _finish(
        self,
        folder: Folder,
        facts: CheckpointMetadata,
        found: Sequence[tuple[dict[str, int], list[tuple[str, SavedTensor]]]],
    ) -> int:
        """Write the manifest, which makes the checkpoint exist; then drop what it replaces."""
        sizes = {name: size for by_name, _ in found for name, size in by_name.items()}
        manifest = CheckpointManifest(
            progress=facts.progress,
            order=facts.order,
            world_size=self._context.world_size,
            metrics=null_nonfinite(facts.metrics),
            unknown_id_rates=facts.unknown_id_rates,
            totals=facts.totals,
            block_bytes=BLOCK_BYTES,
            files={
                "plan.json": self._put(folder, "plan.json", dump_plan(self._sharded.plan)),
                "config.yaml": self._put(folder, "config.yaml", dump_config(self._config)),
                SCHEMA: self._put(folder, SCHEMA, self._sharded.schema.model_dump_json()),
            },
            tensor_files=sizes,
            tensors=merge_chunks(tensor for _, tensors in found for tensor in tensors),
        )
        self._retry(folder.put, MANIFEST, dump_manifest(manifest))
        self._damaged.discard(folder.name)  # replaced
        self._prune(folder, manifest)
        return sum(sizes.values())

    def _prune(self, folder: Folder, manifest: CheckpointManifest) -> None:
        prune(
            self._folder,
            self._config.checkpoint,
            newest=folder,
            manifest=manifest,
            damaged=self._damaged,
        )

    def _put(self, folder: Folder, name: str, text: str) -> SavedFile:
        content = text.encode()
        self._retry(folder.put, name, content)
        return SavedFile(size=len(content), crc32=zlib.crc32(content))

    def _retry(self, action: Callable[..., T], *arguments: object) -> T:
        """Try again for a while if the storage fails."""
        scaling, seconds = self._config.scaling, self._config.checkpoint.retry_s
        longest = min(10.0, scaling.hang_timeout_s / 2)  # or it looks like hanging
        return _retrying(seconds, (NotFiniteError,), longest)(action, *arguments)


def check_writable(folder: Folder, config: Config, *, resumed: bool) -> None:
    """Find out now, rather than at the first save, that nothing can be written to `folder`.

    It is tried again for a while, as writing is, unless the place itself is wrong. A run that was
    `resumed` is only warned, and at once: it could write before, and its saves are tried again.

    Raises:
        CheckpointError: it can't.
    """
    seconds = 0.0 if resumed else config.checkpoint.retry_s
    seconds = min(seconds, config.scaling.timeout_s / 2)  # the other ranks wait
    put = _retrying(seconds, _LASTING)
    try:
        _as_checkpoint_error(folder, lambda: put(folder.put, _PROBE, b"can this be written?"))
    except CheckpointError as error:
        if not resumed:
            raise
        log.warning("%s; training goes on", error)
        return
    try:
        folder.delete(_PROBE)
    except Exception as error:
        log.warning("can't delete %s (%s)", folder / _PROBE, one_line(error))


def _retrying(
    seconds: float,
    lasting: tuple[type[Exception], ...],
    longest_wait_s: float = 10.0,
) -> tenacity.Retrying:
    """Retries after any error but the `lasting` ones, with a warning."""

    def warn(error: BaseException, wait_s: float) -> None:
        heartbeat.beat()
        log.warning("checkpoint: can't write (%s); retrying in %.1f s", one_line(error), wait_s)

    return retrying(
        seconds,
        lambda error: not isinstance(error, lasting),
        longest_wait_s=longest_wait_s,
        before_retry=warn,
    )


def _as_checkpoint_error(folder: Folder, action: Callable[[], T]) -> T:
    """Run `action`; whatever it raises becomes a CheckpointError."""
    try:
        return action()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"can't save to {folder}: {one_line(error)}; earlier checkpoints are untouched"
        ) from error


def _key(shard: LocalShard) -> ShardKey:
    return shard.name, shard.offsets


def _make_room(shards: Sequence[LocalShard]) -> dict[ShardKey, torch.Tensor]:
    """Memory for a copy of each shard, pinned for those on a GPU."""
    room = {}
    for shard in shards:
        here = torch.empty(
            shard.tensor.shape, dtype=shard.tensor.dtype, pin_memory=shard.tensor.is_cuda
        )
        room[_key(shard)] = here.zero_()
    return room


def merge_chunks(found: Iterable[tuple[str, SavedTensor]]) -> dict[str, SavedTensor]:
    """Tensors by name from those with one chunk each; a ValueError unless chunks tile them."""
    by_name: dict[str, list[SavedTensor]] = {}
    for name, tensor in found:
        by_name.setdefault(name, []).append(tensor)
    return {
        name: SavedTensor(
            data_type=parts[0].data_type,
            shape=parts[0].shape,
            chunks=tuple(chunk for part in parts for chunk in part.chunks),
        )
        for name, parts in by_name.items()
    }
