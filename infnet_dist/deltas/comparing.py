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
    changes = _Changes(a, b, _common(a, b, with_optimizer=optimizer_state), rows, advance)
    own = Identity(name=first.name, digest=identity(a.manifest))
    place = after or Link(base=own, previous=own, number=1)
    link = DeltaLink(
        base=place.base,
        previous=place.previous,
        number=place.number,
        state=identity(b.manifest),
        rows=rows,
        optimizer_state=optimizer_state,
        tables=changes.num_embeddings,
    )
    made = write_folder(
        out, (b.folder, b.manifest), changes.shards(), changes.read, link=link, advance=advance
    )
    assert isinstance(made, DeltaManifest)
    return made


class _Changes:
    """What differs between two checkpoints, and how a delta stores it.

    Args:
        first: the earlier checkpoint.
        second: the later one.
        wanted: the tensors of the delta, as in `second`.
        row_type: data type of the rows in the delta.
        advance: called with the bytes read.

    Attributes:
        num_embeddings: number of rows in `second` of the tables that the delta has by row.
    """

    def __init__(
        self,
        first: Base,
        second: Base,
        wanted: dict[str, SavedTensor],
        row_type: RowType,
        advance: Advance,
    ) -> None:
        self._wanted, self._row_type = wanted, row_type
        self._reader = TensorReader(*second)
        self.num_embeddings = _tables_by_row(second, wanted)
        readers, before = (TensorReader(*first), self._reader), num_embeddings_of(first.manifest)
        self._rows = {
            table: _changed_rows(
                readers,
                [name for name in wanted if table_in(name) == table],
                (before[table], after),
                advance,
            )
            for table, after in self.num_embeddings.items()
        }

    def shards(self) -> list[LocalShard]:
        """The tensors of the delta, without their values but for the indices of changed rows."""
        shards = [
            whole_shard(name, *self._shape_and_type(name, tensor))
            for name, tensor in self._wanted.items()
        ]
        for table, rows in self._rows.items():
            shape = tuple(rows.shape)
            shards.append(LocalShard(f"{INDICES}{table}", shape, (0,), rows, replicated=False))
            if self._row_type == "int8":
                shards.append(whole_shard(f"{SCALE}{table}", shape, torch.float32))
        return shards

    def _shape_and_type(
        self, name: str, tensor: SavedTensor
    ) -> tuple[tuple[int, ...], torch.dtype]:
        table = table_in(name)
        if table is None or table not in self._rows:
            return tensor.shape, tensor.dtype
        copies = tensor.shape[0] // self.num_embeddings[table]
        shape = (copies * len(self._rows[table]), *tensor.shape[1:])
        is_rounded = TABLE.fullmatch(name) is not None and self._row_type in _TYPES
        return shape, _TYPES[self._row_type] if is_rounded else tensor.dtype

    def read(self, shard: LocalShard, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor of the delta."""
        table = table_in(shard.name)
        if table is None or table not in self._rows:
            return self._reader.rows(shard.name, start, stop)
        name = shard.name if shard.name in self._wanted else f"model.tables.{table}.weight"
        places = _places(self._rows[table], self.num_embeddings[table], start, stop)
        values = _at(self._reader, self._wanted[name], name, places)
        if not TABLE.fullmatch(name):
            return values
        rows, scale = rounded(values, self._row_type)
        if shard.name == name:
            return rows
        assert scale is not None  # the shard is the scale of int8 rows
        return scale


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
