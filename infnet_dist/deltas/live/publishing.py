"""Publishes a model while it trains: a full checkpoint first, then deltas of the changed rows."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from infnet_dist.checkpoint.files import DamagedError
from infnet_dist.checkpoint.manifest import (
    CheckpointManifest,
    UnreadableError,
    dump_manifest,
)
from infnet_dist.checkpoint.saving import SnapshotMaker
from infnet_dist.checkpoint.shards import LocalShard, ModelState
from infnet_dist.checkpoint.snapshot import LiveState, Snapshot
from infnet_dist.checkpoint.step_folders import DELTA_MANIFEST, MANIFEST
from infnet_dist.checkpoint.tensor_names import TABLE
from infnet_dist.checkpoint.writable import as_checkpoint_error
from infnet_dist.checkpoint.writing import CheckpointMetadata, FolderWriter, Written
from infnet_dist.config.run import Config
from infnet_dist.deltas.chain import (
    InterruptedChainError,
    Publication,
    name_of_version,
    prune_publications,
    version_of,
    versions,
)
from infnet_dist.deltas.live.layout import ChangedPart, DeltaState, changed_part
from infnet_dist.deltas.live.resuming import continue_chain
from infnet_dist.deltas.live.tracking import ChangedRows
from infnet_dist.deltas.manifest import DeltaLink, DeltaManifest, Identity, identity, table_in
from infnet_dist.deltas.reading import Base
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import ConfigError
from infnet_dist.io.filesystem import Folder
from infnet_dist.sharding.build import ShardedModel

log = logging.getLogger("infnet_dist")


@dataclass(frozen=True)
class ChainEnd:
    """The last complete publication: its identity, version, and its chain's base and length."""

    own: Identity
    base: Identity
    version: int
    deltas: int


@dataclass(frozen=True)
class Published:
    """A complete publication.

    Attributes:
        end: what the next delta changes.
        changed_rows: rows of tables in a delta; None of a full publication.
        seconds: from the call of `publish` to the manifest.
        waited_s: seconds of it that steps of this rank took for copies of rows.
        num_bytes: of all ranks' tensors.
    """

    folder: Folder
    end: ChainEnd
    changed_rows: int | None
    seconds: float
    waited_s: float
    num_bytes: int


@dataclass(frozen=True)
class _Changes:
    """What a delta is made of: copies."""

    parts: list[ChangedPart]
    whole: list[LocalShard]


class Publisher:
    """Publishes one model into `config.publish.folder`; all ranks make the same calls.

    Args:
        sharded: the model.
        config: the run.
        context: this worker.
        rows: tracks the rows that change.
        snapshots: takes the state of full publications; not while a checkpoint is being written.

    Raises:
        ConfigError: int8 rows are asked for where a table is cut by columns; on all ranks.
    """

    def __init__(
        self,
        sharded: ShardedModel,
        config: Config,
        context: WorkerContext,
        *,
        rows: ChangedRows,
        snapshots: SnapshotMaker,
    ) -> None:
        assert config.publish.folder is not None
        self._folder = Folder(config.publish.folder)
        self._sharded, self._settings, self._context = sharded, config.publish, context
        context.together(self._check_columns)
        self._rows, self._snapshots = rows, snapshots
        self._state: LiveState | None = None  # of a full publication
        self._last: ChainEnd | None = None
        self._pending: Future[Published] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._own = context.with_own_group()
        self._writer = FolderWriter(sharded, config, self._own)

    @property
    def next_is_full(self) -> bool:
        """Whether the next publication is a full one."""
        return self._last is None or self._last.deltas >= self._settings.max_chain

    @property
    def writes_full(self) -> bool:
        """Whether a full publication hasn't been waited for."""
        return self._state is not None

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing a publication."""
        return self._pending is not None and not self._pending.done()

    @property
    def published(self) -> str | None:
        """Identity of the publication since which the tracked rows changed."""
        return self._last.own.digest if self._last else None

    def resume(self, checkpoint: Folder, manifest: CheckpointManifest) -> bool:
        """Continue the chain after loading a checkpoint; returns whether that is possible.

        If the chain no longer has the publication that the checkpoint names, the next one is full.
        """
        shards = ModelState(self._sharded, with_optimizer=False).shards()
        loaded = Base(checkpoint, manifest)
        try:
            chain = continue_chain(self._folder, loaded, self._rows, shards, self._context)
        except (UnreadableError, InterruptedChainError, DamagedError) as error:
            if self._context.is_first:
                log.warning("%s; the next publication is a full one", error)
            return False
        self._last = _end_of(chain) if chain else None
        return bool(chain)

    def publish(self, metadata: CheckpointMetadata) -> None:
        """Begin to publish the state; on return the model may change again.

        Call `wait` for the publication before first.
        """
        assert self._pending is None, "wait for the publication before"
        start, last = time.perf_counter(), self._last
        metadata = replace(metadata, published=None)
        state: LiveState | _Changes
        if self.next_is_full:
            shards = [shard for shard in self._shards() if shard.name.startswith(self._prefix)]
            last, state = None, self._snapshots.take(shards)
            self._state = state
            self._rows.take()
        else:
            state = self._changes()
        self._pending = self._thread.submit(self._write, state, metadata, last, start)
        if not isinstance(state, Snapshot | _Changes):
            self._pending.exception()  # blocks until it is written; `wait` raises the error

    def wait(self) -> Published | None:
        """Wait for the publication that is being written; None if there is none.

        After an error the rows that it would have published are in the next one.

        Raises:
            NotFiniteError: the model holds NaN or infinity; on all ranks.
            CheckpointError: it can't be written; on all ranks. Earlier publications are untouched.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        try:
            done = pending.result()
        except BaseException as error:
            self._rows.restore()
            if isinstance(error, InterruptedChainError):
                self._last = None
            raise
        finally:
            self._detach()
        self._rows.complete()
        self._last = done.end
        return done

    def close(self) -> None:
        """Wait for the last publication, complete or failed, and leave the kernels."""
        self._thread.shutdown(wait=True)
        self._detach()
        self._rows.close()

    def _detach(self) -> None:
        state, self._state = self._state, None
        if state is not None:
            self._snapshots.detach(state)

    def _shards(self) -> list[LocalShard]:
        context = self._context
        return ModelState(self._sharded).shards_to_save(context.rank, context.world_size)

    @property
    def _prefix(self) -> str:
        return "" if self._settings.optimizer_state else "model."

    def _check_columns(self) -> None:
        for shard in self._shards() if self._settings.rows == "int8" else ():
            if TABLE.fullmatch(shard.name) and shard.tensor.shape[1] != shard.shape[1]:
                raise ConfigError(
                    f"publish.rows is int8, but table {table_in(shard.name)!r} is cut by columns, "
                    "so no worker knows the scale of a row; set publish.rows: fp16, or other "
                    "sharding_types for it"
                )

    def _changes(self) -> _Changes:
        """Copies of the changed rows and of everything that isn't tracked."""
        marks = self._rows.take()
        tables, others = self._rows.tables(self._shards())
        parts = [changed_part(table, self._rows.of(table, marks), self._prefix) for table in tables]
        whole = [
            replace(shard, tensor=shard.tensor.detach().to("cpu", copy=True))
            for shard in others
            if shard.name.startswith(self._prefix)
        ]
        return _Changes(parts, whole)

    def _write(
        self,
        state: LiveState | _Changes,
        metadata: CheckpointMetadata,
        last: ChainEnd | None,
        start: float,
    ) -> Published:
        """Runs in the thread, on all ranks together.

        Args:
            state: to write.
            metadata: of the publication.
            last: the publication that a delta changes; None of a full one.
            start: time of the call of `publish`.
        """
        version = self._own.on_first(
            lambda: as_checkpoint_error(self._folder, lambda: self._next_version(last))
        )
        folder = self._folder / name_of_version(version)
        tables: dict[str, int] = {}
        if isinstance(state, _Changes):
            state = DeltaState(state.parts, state.whole, self._settings.rows, self._own)
            tables = state.tables
        try:
            written = self._writer.write_state(folder, state)
        finally:
            state.close()
        end, size, changed = self._own.on_first(
            lambda: as_checkpoint_error(
                folder, lambda: self._complete(version, metadata, written, last, tables)
            )
        )
        seconds = time.perf_counter() - start
        return Published(folder, end, changed, seconds, state.waited_s, size)

    def _next_version(self, last: ChainEnd | None) -> int:
        found = versions(self._folder)
        newest = max((version for version, file in found.items() if file), default=0)
        if last is not None and newest != last.version:
            raise InterruptedChainError(
                f"{self._folder} has {name_of_version(newest)}, expected "
                f"{name_of_version(last.version)} as the newest: another run published there; give "
                "each run a publish.folder of its own"
            )
        return max(found, default=0) + 1

    def _complete(
        self,
        version: int,
        metadata: CheckpointMetadata,
        written: Sequence[Written],
        last: ChainEnd | None,
        tables: dict[str, int],
    ) -> tuple[ChainEnd, int, int | None]:
        """Write the manifest, which completes the publication; then delete older ones.

        Returns:
            The end of the chain, the bytes of the tensors, the rows of a delta.
        """
        folder = self._folder / name_of_version(version)
        manifest = self._writer.description(folder, metadata, written)
        file, changed = MANIFEST, None
        if last is not None:
            settings = self._settings
            link = DeltaLink(
                base=last.base,
                previous=last.own,
                number=last.deltas + 1,
                rows=settings.rows,
                optimizer_state=settings.optimizer_state,
                tables=tables,
            )
            keys = {key: getattr(manifest, key) for key in CheckpointManifest.model_fields}
            manifest, file = DeltaManifest(**keys, delta=link), DELTA_MANIFEST
            changed = manifest.changed_rows
        self._writer.retry(folder.put, file, dump_manifest(manifest))
        prune_publications(self._folder, self._settings.keep)
        own = Identity(name=folder.name, digest=identity(manifest))
        size = sum(manifest.tensor_files.values())
        if last is None:
            return ChainEnd(own, own, version, 0), size, None
        return ChainEnd(own, last.base, version, last.deltas + 1), size, changed


def _end_of(chain: Sequence[Publication]) -> ChainEnd:
    own, base = (
        Identity(name=one.folder.name, digest=identity(one.manifest))
        for one in (chain[-1], chain[0])
    )
    version = version_of(chain[-1].folder.name)
    assert version is not None
    return ChainEnd(own, base, version, len(chain) - 1)
