"""Writing a checkpoint: all ranks their tensors, then rank 0 the manifest.

<folder>/step-00000500/
  rank-00000-00-1f3a9c02.safetensors, ...   tensors of rank 0: rows and optimizer state
  plan.json, config.yaml, schema.json       the plan, config and schema of the run
  manifest.json                             step, progress, metrics, all tensors with checksums

Every rank writes its own files into the final folder. Once all are complete, rank 0 publishes the
manifest by rename (in an object store as one object): until then readers ignore the folder. File
names are new in each attempt, so a damaged checkpoint of the same step is replaced, never mixed.
Older checkpoints are deleted only after that.
"""

import secrets
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from infnet_dist.checkpoint.files import BLOCK_BYTES, NotFiniteError, pack, write_file
from infnet_dist.checkpoint.manifest import (
    CheckpointManifest,
    DataOrder,
    SavedProgress,
    Throughput,
    dump_manifest,
)
from infnet_dist.checkpoint.retention import prune
from infnet_dist.checkpoint.saved_tensors import SavedFile, SavedTensor
from infnet_dist.checkpoint.snapshot import LiveState
from infnet_dist.checkpoint.step_folders import MANIFEST, name_of
from infnet_dist.checkpoint.trained_schema import SCHEMA
from infnet_dist.checkpoint.writable import as_checkpoint_error, retrying_writes
from infnet_dist.config.run import Config, dump_config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.json_files import null_nonfinite
from infnet_dist.planning.plan_file import dump_plan
from infnet_dist.sharding.build import ShardedModel

T = TypeVar("T")
Written = tuple[dict[str, int], list[tuple[str, SavedTensor]]]  # a rank's files and tensors
_TRIAL = ".trial"


@dataclass(frozen=True)
class CheckpointMetadata:
    """The content of a manifest beside files and tensors; the same on all ranks.

    Attributes: as in `CheckpointManifest`.
    """

    progress: SavedProgress
    order: DataOrder
    metrics: dict[str, float]
    unknown_id_rates: dict[str, float] | None = None
    totals: Throughput = field(default_factory=Throughput)
    published: str | None = None


class FolderWriter:
    """Writes tensors and plain files into a folder, with retries; the parts of a checkpoint.

    Args:
        sharded: the model.
        config: the run.
        context: this worker, with a process group for the writing thread.
    """

    def __init__(self, sharded: ShardedModel, config: Config, context: WorkerContext) -> None:
        self._sharded = sharded
        self._config = config
        self._context = context

    def write_state(self, folder: Folder, state: LiveState) -> list[Written]:
        """Write this rank's `state`; returns what all ranks wrote, on rank 0.

        Raises:
            NotFiniteError: the model holds NaN or infinity; on all ranks.
            CheckpointError: it can't be written; on all ranks.
        """
        attempt = self._context.broadcast(secrets.token_hex(4))
        # Only failures of the storage become a CheckpointError: a broken collective means that a
        # worker is gone, which isn't the checkpoint's fault.
        own = self._context.together(
            lambda: as_checkpoint_error(folder, lambda: self._write_tensors(folder, state, attempt))
        )
        return self._context.gather_to_first(own) or []

    def description(
        self, folder: Folder, metadata: CheckpointMetadata, written: Sequence[Written]
    ) -> CheckpointManifest:
        """Write the files without tensors; returns the manifest of the whole."""
        return CheckpointManifest(
            progress=metadata.progress,
            order=metadata.order,
            world_size=self._context.world_size,
            metrics=null_nonfinite(metadata.metrics),
            unknown_id_rates=metadata.unknown_id_rates,
            totals=metadata.totals,
            published=metadata.published,
            block_bytes=BLOCK_BYTES,
            files={
                "plan.json": self.put(folder, "plan.json", dump_plan(self._sharded.plan)),
                "config.yaml": self.put(folder, "config.yaml", dump_config(self._config)),
                SCHEMA: self.put(folder, SCHEMA, self._sharded.lookups.schema.model_dump_json()),
            },
            tensor_files={name: size for sizes, _ in written for name, size in sizes.items()},
            tensors=merge_chunks(tensor for _, tensors in written for tensor in tensors),
        )

    def put(self, folder: Folder, name: str, text: str) -> SavedFile:
        """Write a small file."""
        content = text.encode()
        self.retry(folder.put, name, content)
        return SavedFile(size=len(content), crc32=zlib.crc32(content))

    def retry(self, action: Callable[..., T], *arguments: object) -> T:
        """Call `action` until it doesn't fail, for `checkpoint.retry_s` at most."""
        longest_wait_s = min(10.0, self._config.scaling.hang_timeout_s / 2)  # or it looks hung
        seconds = self._config.checkpoint.retry_s
        return retrying_writes(seconds, (NotFiniteError,), longest_wait_s)(action, *arguments)

    def _write_tensors(self, folder: Folder, state: LiveState, attempt: str) -> Written:
        sizes: dict[str, int] = {}
        tensors: list[tuple[str, SavedTensor]] = []
        for number, together in enumerate(pack(state.parts())):
            name = f"rank-{self._context.rank:05d}-{number:02d}-{attempt}.safetensors"
            sizes[name], found = self.retry(write_file, folder, name, together, state.read)
            tensors += found
            state.release(together)
        return sizes, tensors


class CheckpointWriter(FolderWriter):
    """Writes checkpoints into `folder`; all ranks make the same calls.

    Args:
        folder: of the run's checkpoints.
        sharded: the model.
        config: the run.
        context: this worker, with a process group for the writing thread.
        damaged: names of checkpoints that were skipped when the run resumed.
    """

    def __init__(
        self,
        folder: Folder,
        sharded: ShardedModel,
        config: Config,
        context: WorkerContext,
        damaged: Iterable[str],
    ) -> None:
        super().__init__(sharded, config, context)
        self._folder = folder
        self._damaged = set(damaged)

    def folder_of(self, step: int) -> Folder:
        """The folder of a step's checkpoint."""
        return self._folder / name_of(step)

    def write(self, state: LiveState, metadata: CheckpointMetadata) -> int:
        """Write a checkpoint of this rank's `state`; returns the bytes of all ranks' tensors.

        Raises:
            NotFiniteError: the model holds NaN or infinity; on all ranks.
            CheckpointError: it can't be written; on all ranks.
        """
        folder = self.folder_of(metadata.progress.step)
        written = self.write_state(folder, state)
        return self._context.on_first(
            lambda: as_checkpoint_error(folder, lambda: self._publish(folder, metadata, written))
        )

    def amend(self, manifest: CheckpointManifest, metadata: CheckpointMetadata) -> None:
        """Replace the metrics and totals of a checkpoint's manifest.

        Raises:
            CheckpointError: they can't be replaced; on all ranks.
        """
        folder = self.folder_of(metadata.progress.step)
        changes = {
            "metrics": null_nonfinite(metadata.metrics),
            "interval": (),  # was logged before the evaluation
            "totals": metadata.totals,
        }
        changed = manifest.model_copy(update=changes)
        self._context.on_first(
            lambda: as_checkpoint_error(folder, lambda: self._replace_manifest(folder, changed))
        )

    def _publish(
        self, folder: Folder, metadata: CheckpointMetadata, written: Sequence[Written]
    ) -> int:
        """Write the manifest, which makes the checkpoint complete; then delete older ones."""
        manifest = self.description(folder, metadata, written)
        self.retry(folder.put, MANIFEST, dump_manifest(manifest))
        self._damaged.discard(folder.name)  # replaced
        self._prune(folder, manifest)
        return sum(manifest.tensor_files.values())

    def _replace_manifest(self, folder: Folder, manifest: CheckpointManifest) -> None:
        content = dump_manifest(manifest)
        # A failed write may delete an object store's manifest (`create_whole`): try another first.
        self.retry(folder.put, f"{MANIFEST}{_TRIAL}", content)
        self.retry(folder.put, MANIFEST, content)
        self._prune(folder, manifest)

    def _prune(self, folder: Folder, manifest: CheckpointManifest) -> None:
        prune(
            self._folder,
            self._config.checkpoint,
            newest=folder,
            manifest=manifest,
            damaged=self._damaged,
        )


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
