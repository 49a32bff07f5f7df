"""Base + deltas = the full checkpoint, byte for byte if the deltas' rows are exact."""

from collections.abc import Sequence

import torch

from infnet_dist.checkpoint.inspection import Advance
from infnet_dist.checkpoint.manifest import AppliedDeltas, CheckpointManifest, read_manifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.saved_tensors import SavedTensor
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.checkpoint.tensor_names import CHANGED
from infnet_dist.deltas.assembling import check_output, whole_shard, write_folder
from infnet_dist.deltas.manifest import identity, table_in
from infnet_dist.deltas.reading import Base, Delta, check_chain
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder


def apply_deltas(
    base: Folder,
    deltas: Sequence[Folder],
    out: Folder,
    advance: Advance = lambda num_bytes: None,
) -> CheckpointManifest:
    """Write the checkpoint that a base and its deltas make up.

    Without the optimizers' state in one of them, it has none.

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

    def read(shard: LocalShard, start: int, stop: int) -> torch.Tensor:
        name = shard.name
        whole = [n for n, layer in enumerate(layers) if not layer.has_indices(name)]
        used = layers[whole[-1] :] if whole else layers
        values = torch.empty((stop - start, *shard.shape[1:]), dtype=shard.tensor.dtype)
        if not whole:
            values.copy_(reader.rows(name, start, stop))
        for layer in used:
            layer.overlay(values, name, start)
        return values

    shards = [whole_shard(name, tensor.shape, tensor.dtype) for name, tensor in wanted.items()]
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
    """Raise a CheckpointError unless a delta has all tensors of a base, of their shapes."""
    for name, tensor in wanted.items():
        changed = delta.manifest.tensors.get(name)
        if changed is None:
            raise CheckpointError(f"{delta.folder} lacks {name}, which {base.folder} has")
        shape = changed.shape
        if delta.has_indices(name):
            table = table_in(name) or ""
            rows, count = delta.manifest.delta.tables[table], len(delta.indices(table))
            copies = tensor.shape[0] // rows
            if tensor.shape[0] == copies * rows and changed.shape[0] == copies * count:
                shape = (tensor.shape[0], *changed.shape[1:])
        if shape != tensor.shape:
            raise CheckpointError(
                f"{name} is {list(tensor.shape)} in {base.folder}, but the rows of "
                f"{delta.folder} are of another shape: {list(changed.shape)}"
            )
