"""One delta in place of several that follow one another."""

from collections.abc import Sequence

import torch

from infnet_dist.checkpoint.inspection import Advance
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.deltas.assembling import check_output, whole_shard, write_folder
from infnet_dist.deltas.manifest import INDICES, DeltaManifest, identity, table_in
from infnet_dist.deltas.reading import Delta, check_chain
from infnet_dist.deltas.table_rows import pieces
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder


def compact(
    deltas: Sequence[Folder], out: Folder, advance: Advance = lambda num_bytes: None
) -> DeltaManifest:
    """Write one delta that changes what several change, in order: of each row the last values.

    The delta that follows the last of them fits on it.

    Raises:
        CheckpointError: they don't follow one another, their rows are of different types, or the
            delta would replace something.
        DamagedError: a block of one of them is damaged.
    """
    layers = [Delta(folder) for folder in deltas]
    check_chain(None, layers)
    first, last = layers[0].manifest.delta, layers[-1].manifest
    check_output(out, last.progress.step)
    types = sorted({layer.manifest.delta.rows for layer in layers})
    if len(types) > 1:
        raise CheckpointError(f"their rows are {' and '.join(types)}: apply them instead")
    with_optimizer = all(layer.manifest.delta.optimizer_state for layer in layers)
    tables = {
        table: count
        for table, count in layers[-1].num_embeddings.items()
        if any(table in layer.manifest.delta.tables for layer in layers)
    }
    rows = {table: _union(layers, table, count) for table, count in tables.items()}

    def read(shard: LocalShard, start: int, stop: int) -> torch.Tensor:
        table = table_in(shard.name)
        if table is None or table not in tables:
            return layers[-1].reader.rows(shard.name, start, stop)
        values = torch.empty((stop - start, *shard.shape[1:]), dtype=shard.tensor.dtype)
        for layer in layers:
            _fill(values, layer, shard.name, rows[table], start)
        return values

    shards = []
    for name, tensor in last.tensors.items():
        table, shape = table_in(name), tensor.shape
        if name.startswith(INDICES) or not (with_optimizer or not name.startswith("optimizer.")):
            continue
        if table in tables:
            copies = max(_copies(layer, name, table) for layer in layers)
            shape = (copies * len(rows[table]), *shape[1:])
        shards.append(whole_shard(name, shape, tensor.dtype))
    for table, indices in rows.items():
        name, count = f"{INDICES}{table}", len(indices)
        shards.append(LocalShard(name, (count,), (0,), indices, replicated=False))
    link = last.delta.model_copy(
        update={
            "base": first.base,
            "previous": first.previous,
            "number": first.number,
            "state": last.delta.state or identity(last),
            "optimizer_state": with_optimizer,
            "tables": tables,
        }
    )
    source = (layers[-1].folder, last)
    made = write_folder(out, source, shards, read, link=link, advance=advance)
    assert isinstance(made, DeltaManifest)
    return made


def _rows(layer: Delta, table: str) -> torch.Tensor:
    """The rows of a table that a delta changes: all, if it has the table as a whole."""
    if table in layer.manifest.delta.tables:
        return layer.indices(table)
    return torch.arange(layer.num_embeddings[table])


def _union(layers: Sequence[Delta], table: str, num_embeddings: int) -> torch.Tensor:
    changed = torch.zeros(num_embeddings, dtype=torch.bool)
    for layer in layers:
        changed[_rows(layer, table)] = True
    return changed.nonzero().squeeze(1)


def _copies(layer: Delta, name: str, table: str) -> int:
    """How many values of a tensor belong to a row: one by column shard."""
    count = len(_rows(layer, table))
    return layer.manifest.tensors[name].shape[0] // count if count else 1


def _fill(values: torch.Tensor, layer: Delta, name: str, rows: torch.Tensor, start: int) -> None:
    """Replace those of rows [start, start + len(values)) of the result that a delta has."""
    own = _rows(layer, table_in(name) or "")
    if not len(own):
        return
    for piece in pieces(start, start + len(values), len(rows)):
        wanted = rows[piece.start : piece.stop]
        places = torch.searchsorted(own, wanted).clamp(max=len(own) - 1)
        hit = own[places] == wanted
        if not hit.any():
            continue
        places = places[hit]
        begin, end = int(places[0]), int(places[-1]) + 1
        first = piece.copy * len(own)
        read = layer.reader.rows(name, first + begin, first + end)
        values[hit.nonzero().squeeze(1) + piece.at] = read[places - begin]
