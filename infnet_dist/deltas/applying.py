"""Base + deltas = the full checkpoint, byte for byte if the deltas' rows are exact."""

from collections.abc import Sequence
from functools import partial

import torch

from infnet_dist.checkpoint.differences import kind
from infnet_dist.checkpoint.inspection import Advance
from infnet_dist.checkpoint.manifest import AppliedDeltas, CheckpointManifest, read_manifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.saved_tensors import SavedTensor
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.checkpoint.tensor_names import CHANGED, TABLE
from infnet_dist.deltas.assembling import check_output, whole_shard, write_folder
from infnet_dist.deltas.manifest import identity, table_in
from infnet_dist.deltas.reading import Base, Delta, check_chain
from infnet_dist.deltas.table_rows import fill_known, num_embeddings_of, resized
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder


def apply_deltas(
    base: Folder,
    deltas: Sequence[Folder],
    out: Folder,
    advance: Advance = lambda num_bytes: None,
) -> CheckpointManifest:
    """Write the checkpoint that a base and its deltas make up.

    Without the optimizers' state in one of them, it has none. Tables have the rows of the last one.

    Args:
        base: a checkpoint.
        deltas: in order, at least one.
        out: a new folder.
        advance: called with the bytes written.

    Raises:
        CheckpointError: a delta doesn't fit, or the checkpoint would replace something.
        DamagedError: a block of one of them is damaged.
    """
    opened = Base(base, read_manifest(base))
    layers = [Delta(folder) for folder in deltas]
    check_chain(opened, layers)
    last = layers[-1]
    check_output(out, last.manifest.progress.step)
    with_optimizer = all(layer.manifest.delta.optimizer_state for layer in layers)
    wanted = {
        name: tensor
        for name, tensor in opened.manifest.tensors.items()
        if not name.startswith(CHANGED) and (with_optimizer or name.startswith("model."))
    }
    for layer in layers:
        _check_fits(opened, wanted, layer)
    reader = TensorReader(*opened)
    before, sizes = num_embeddings_of(opened.manifest), last.num_embeddings

    def read(shard: LocalShard, start: int, stop: int) -> torch.Tensor:
        name, table = shard.name, table_in(shard.name)
        if table not in sizes:
            return last.reader.rows(name, start, stop)
        whole = [n for n, layer in enumerate(layers) if not layer.has_indices(name)]
        used = layers[whole[-1] :] if whole else layers
        values = torch.empty((stop - start, *shard.shape[1:]), dtype=shard.tensor.dtype)
        if not whole:
            known, after = before[table], sizes[table]
            fill_known(values, partial(reader.rows, name), start, known=known, num_embeddings=after)
        for layer in used:
            layer.overlay(values, name, start, sizes[table])
        return values

    shards = []
    for name, tensor in wanted.items():
        shape, table = tensor.shape, table_in(name)
        if table in sizes:
            shape = resized(shape, before[table], sizes[table])
        shards.append(whole_shard(name, shape, tensor.dtype))
    heads = opened.manifest.applied.base if opened.manifest.applied else identity(opened.manifest)
    applied = AppliedDeltas(base=heads, last=last.manifest.delta.state or identity(last.manifest))
    return write_folder(
        out,
        (last.folder, last.manifest),
        shards,
        read,
        changes={"applied": applied},
        advance=advance,
    )


def _check_fits(base: Base, wanted: dict[str, SavedTensor], delta: Delta) -> None:
    """Raise a CheckpointError unless a delta has all tensors of a base, of fitting shapes."""
    before, sizes = num_embeddings_of(base.manifest), delta.num_embeddings
    for name, tensor in wanted.items():
        changed = delta.manifest.tensors.get(name)
        if changed is None:
            raise CheckpointError(f"{delta.folder} lacks {name}, which {base.folder} has")
        shape, table = tensor.shape, table_in(name)
        if table in before and table in sizes:
            count = len(delta.indices(table)) if delta.has_indices(name) else sizes[table]
            shape = resized(shape, before[table], count)
        rounded = TABLE.fullmatch(name) is not None and not delta.manifest.is_exact
        if changed.shape != shape or not (rounded or changed.data_type == tensor.data_type):
            raise CheckpointError(
                f"{name} is {kind(tensor)} in {base.folder}, so {list(shape)} was expected in "
                f"{delta.folder}, which has {kind(changed)}; publish that state in full"
            )
