"""Continues a chain of publications after a run has loaded a checkpoint."""

from collections.abc import Sequence

import torch

from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.checkpoint.snapshot import KernelTable
from infnet_dist.checkpoint.tensor_names import CHANGED, TABLE
from infnet_dist.deltas.chain import InterruptedChainError, Publication, newest_chain
from infnet_dist.deltas.live.tracking import ChangedRows
from infnet_dist.deltas.manifest import DeltaManifest, identity, table_in
from infnet_dist.deltas.reading import Base, Delta
from infnet_dist.deltas.table_rows import num_embeddings_of
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.io.filesystem import Folder


def continue_chain(
    folder: Folder,
    loaded: Base,
    rows: ChangedRows,
    shards: Sequence[LocalShard],
    context: WorkerContext,
) -> list[Publication]:
    """Mark the rows that may differ from the end of the newest chain; all ranks call it.

    They are those marked in the checkpoint, which changed since the publication that it names, and
    those of the deltas after that one, which a lost attempt may have published.

    Args:
        folder: of the publications.
        loaded: the checkpoint that was loaded.
        rows: tracks the rows; its marks are replaced.
        shards: of the model on this rank.
        context: this worker.

    Returns:
        The chain; empty if it no longer has the publication that the checkpoint names.

    Raises:
        UnreadableError: the storage failed; on all ranks, as all errors.
        InterruptedChainError: the chain leads to tables of other sizes.
        DamagedError: a block of the checkpoint or of a delta is damaged.
    """
    chain = context.on_first(lambda: newest_chain(folder))
    named = loaded.manifest.published
    at = [n for n, one in enumerate(chain) if identity(one.manifest) == named]
    if not at:
        return []
    last = chain[-1]
    if num_embeddings_of(last.manifest) != num_embeddings_of(loaded.manifest):
        raise InterruptedChainError(
            f"tables of {last.folder} have other numbers of rows than in {loaded.folder}: another "
            "run published there; give each run a publish.folder of its own"
        )
    later = [
        Delta(one.folder, one.manifest)
        for one in chain[at[0] + 1 :]
        if isinstance(one.manifest, DeltaManifest)
    ]
    tables, _ = rows.tables(shards)
    context.together(lambda: _mark(rows, tables, loaded, later))
    return chain


def _mark(
    rows: ChangedRows, tables: Sequence[KernelTable], loaded: Base, later: Sequence[Delta]
) -> None:
    reader = TensorReader(*loaded)
    rows.clear()
    for table in tables:
        rows.load(table, _marked(table, reader, loaded.manifest, later))


def _marked(
    table: KernelTable,
    reader: TensorReader,
    manifest: CheckpointManifest,
    later: Sequence[Delta],
) -> torch.Tensor:
    """The rows of a shard that a checkpoint marks, or that deltas after it changed, bool [rows]."""
    (weight,) = (shard for shard in table.shards if TABLE.fullmatch(shard.name))
    name, first, count = table_in(weight.name) or "", weight.offsets[0], len(weight.tensor)
    saved = f"{CHANGED}{name}"
    if saved not in manifest.tensors:  # of a plan under which it wasn't tracked
        return torch.ones(count, dtype=torch.bool)
    marked = reader.rows(saved, first, first + count)
    for delta in later:
        if name not in delta.manifest.delta.tables:
            return torch.ones(count, dtype=torch.bool)
        indices = delta.indices(name)
        here = indices[(indices >= first) & (indices < first + count)]
        marked[here - first] = True
    return marked
