"""The delta between two checkpoints, found by comparing their bytes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from infnet_dist.checkpoint.differences import kind
from infnet_dist.checkpoint.inspection import Advance, as_matrix, parts_of
from infnet_dist.checkpoint.manifest import read_manifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.saved_tensors import SavedTensor
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.checkpoint.tensor_names import TABLE
from infnet_dist.config.publish import RowType
from infnet_dist.deltas.assembling import check_output, whole_shard, write_folder
from infnet_dist.deltas.manifest import (
    INDICES,
    SCALE,
    DeltaLink,
    DeltaManifest,
    Identity,
    identity,
    table_in,
)
from infnet_dist.deltas.reading import Base
from infnet_dist.deltas.rounding import rounded
from infnet_dist.deltas.table_rows import is_by_row, num_embeddings_of, pieces, resized
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder


class Link(NamedTuple):
    """The place of a delta in a chain; see `DeltaLink`."""

    base: Identity
    previous: Identity
    number: int


_TYPES = {"fp16": torch.float16, "int8": torch.int8}


class DifferentModelsError(CheckpointError):
    """No delta leads from one checkpoint to the other: a tensor was added, removed or reshaped."""


def make_delta(
    first: Folder,
    second: Folder,
    out: Folder,
    advance: Advance = lambda num_bytes: None,
    *,
    rows: RowType = "fp32",
    optimizer_state: bool = True,
    after: Link | None = None,
) -> DeltaManifest:
    """Write the delta that turns checkpoint `first` into `second`; of any world sizes and plans.

    A row is in it if a bit of it, or of its optimizer state, differs, or if it is new: tables may
    have more rows in `second`. A table with a state that isn't by row is in it as a whole.

    Args:
        first: a checkpoint.
        second: a later checkpoint of the same model.
        out: a new folder.
        advance: called with the bytes read and written.
        rows: data type of the rows in the delta.
        optimizer_state: whether it has the optimizers' state.
        after: the end of a chain of publications, which has the state of `first`; None: the delta
            is the first of a chain, whose base is `first`.

    Raises:
        DifferentModelsError: they are of different models, or a table has lost rows.
        CheckpointError: the delta would replace something.
        DamagedError: a block of one of them is damaged.
    """
    if rows != "fp32" and optimizer_state:
        raise CheckpointError(f"rows of {rows} are rounded: leave the optimizer state out")
    a, b = Base(first, read_manifest(first)), Base(second, read_manifest(second))
    check_output(out, b.manifest.progress.step)
    wanted = _common(a, b, with_optimizer=optimizer_state)
    readers = TensorReader(*a), TensorReader(*b)
    before, tables = num_embeddings_of(a.manifest), _tables_by_row(b, wanted)
    names: dict[str | None, list[str]] = {}
    for name in wanted:
        names.setdefault(table_in(name), []).append(name)
    changed = {
        table: _changed_rows(readers, names[table], (before[table], after), advance)
        for table, after in tables.items()
    }

    def read(shard: LocalShard, start: int, stop: int) -> torch.Tensor:
        table = table_in(shard.name)
        if table is None or table not in changed:
            return readers[1].rows(shard.name, start, stop)
        name = shard.name if shard.name in wanted else f"model.tables.{table}.weight"
        values = _at(
            readers[1], wanted[name], name, _places(changed[table], tables[table], start, stop)
        )
        if shard.name == f"{SCALE}{table}":
            scale = rounded(values, rows)[1]
            assert scale is not None
            return scale
        return rounded(values, rows)[0] if TABLE.fullmatch(shard.name) else values

    shards = []
    for name, tensor in wanted.items():
        table = table_in(name)
        shape, dtype = tensor.shape, tensor.dtype
        if table in tables:
            copies = shape[0] // tables[table]
            shape = (copies * len(changed[table]), *shape[1:])
            dtype = _TYPES.get(rows, dtype) if TABLE.fullmatch(name) else dtype
        shards.append(whole_shard(name, shape, dtype))
    for table, indices in changed.items():
        shape = tuple(indices.shape)
        shards.append(LocalShard(f"{INDICES}{table}", shape, (0,), indices, replicated=False))
        if rows == "int8":
            shards.append(whole_shard(f"{SCALE}{table}", shape, torch.float32))
    own = Identity(name=first.name, digest=identity(a.manifest))
    place = after or Link(base=own, previous=own, number=1)
    link = DeltaLink(
        base=place.base,
        previous=place.previous,
        number=place.number,
        state=identity(b.manifest),
        rows=rows,
        optimizer_state=optimizer_state,
        tables=tables,
    )
    made = write_folder(out, (b.folder, b.manifest), shards, read, link=link, advance=advance)
    assert isinstance(made, DeltaManifest)
    return made


def _common(a: Base, b: Base, *, with_optimizer: bool) -> dict[str, SavedTensor]:
    """The tensors of two checkpoints, which must be the same but for their values."""
    start = ("model.", "optimizer.") if with_optimizer else ("model.",)
    one, other = (
        {name: t for name, t in base.manifest.tensors.items() if name.startswith(start)}
        for base in (a, b)
    )
    if only := sorted(one.keys() ^ other.keys()):
        raise DifferentModelsError(
            f"{a.folder} and {b.folder} are of different models: only one has {only[0]}; a delta "
            "can't add or remove tensors, publish the second in full"
        )
    before, after = (num_embeddings_of(base.manifest) for base in (a, b))
    for name, tensor in other.items():
        shape, table = one[name].shape, table_in(name)
        if table in before and table in after:
            shape = resized(shape, before[table], max(before[table], after[table]))
        if (shape, one[name].data_type) != (tensor.shape, tensor.data_type):
            raise DifferentModelsError(
                f"{name} is {kind(one[name])} in {a.folder}, {kind(tensor)} in {b.folder}; a delta "
                "can add rows to a table, but change no other shape or type: publish the second in "
                "full"
            )
    return other


def _tables_by_row(base: Base, wanted: dict[str, SavedTensor]) -> dict[str, int]:
    """The number of rows of the tables whose tensors all have values by row."""
    sizes = num_embeddings_of(base.manifest)
    others = {
        table
        for name, tensor in wanted.items()
        if (table := table_in(name)) in sizes and not is_by_row(tensor.shape, sizes[table])
    }
    return {table: size for table, size in sizes.items() if table not in others}


def _changed_rows(
    readers: tuple[TensorReader, TensorReader],
    names: Sequence[str],
    sizes: tuple[int, int],
    advance: Advance,
) -> torch.Tensor:
    """The rows of a table that differ or are new, int64 [K], ascending.

    Args:
        readers: of both checkpoints.
        names: of the table's tensors.
        sizes: number of its rows in both.
        advance: called with the bytes read.
    """
    before, after = sizes
    changed = torch.zeros(after, dtype=torch.bool)
    changed[before:] = True
    for name in names:
        for start, stop in readers[0].ranges(name):
            one = as_matrix(readers[0].rows(name, start, stop))
            for piece in pieces(start, stop, before):
                first, count = piece.copy * after + piece.start, piece.stop - piece.start
                other = as_matrix(readers[1].rows(name, first, first + count))
                mine, row = one[piece.at : piece.at + count], piece.start
                advance(mine.nbytes + other.nbytes)
                for x, y in zip(parts_of(mine), parts_of(other), strict=True):
                    differ = (x.view(torch.uint8) != y.view(torch.uint8)).any(1)
                    changed[row : row + len(x)] |= differ
                    row += len(x)
    return changed.nonzero().squeeze(1)


def _places(rows: torch.Tensor, num_embeddings: int, start: int, stop: int) -> torch.Tensor:
    """Rows of the whole tensor that rows [start, stop) of the delta's are, ascending."""
    places = torch.arange(start, stop)
    return rows[places % len(rows)] + places.div(len(rows), rounding_mode="floor") * num_embeddings


def _at(reader: TensorReader, saved: SavedTensor, name: str, places: torch.Tensor) -> torch.Tensor:
    """Rows of a tensor, int64 ascending; only those parts are read that hold some."""
    found = torch.empty((len(places), *saved.shape[1:]), dtype=saved.dtype)
    for start, stop in _ranges(reader, name, places):
        low, high = torch.searchsorted(places, torch.tensor([start, stop])).tolist()
        if low < high:
            found[low:high] = reader.rows(name, start, stop)[places[low:high] - start]
    return found


def _ranges(reader: TensorReader, name: str, places: torch.Tensor) -> Iterator[tuple[int, int]]:
    if len(places):
        yield from reader.ranges(name, int(places[0]), int(places[-1]) + 1)
