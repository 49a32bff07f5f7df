"""Reads the rows of deltas, and checks that deltas fit on a base and on one another."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from infnet_dist.checkpoint.files import DamagedError
from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.tensor_names import TABLE
from infnet_dist.deltas.manifest import (
    INDICES,
    SCALE,
    DeltaManifest,
    identity,
    read_delta,
    states_of,
    table_in,
)
from infnet_dist.deltas.rounding import restored
from infnet_dist.deltas.table_rows import fill_known, num_embeddings_of, pieces
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder


class Delta:
    """A delta whose rows can be read.

    Args:
        folder: the delta.
        manifest: its manifest; read from the folder if it isn't given.

    Attributes:
        num_embeddings: number of rows by table in the state that it leads to.
    """

    def __init__(self, folder: Folder, manifest: DeltaManifest | None = None) -> None:
        self.folder = folder
        self.manifest = manifest or read_delta(folder)
        self.num_embeddings = num_embeddings_of(self.manifest)
        self.reader = TensorReader(folder, self.manifest)
        self._indices: dict[str, torch.Tensor] = {}

    def indices(self, table: str) -> torch.Tensor:
        """The changed rows of a table, int64 [K], ascending.

        Raises:
            DamagedError: they aren't ascending rows of the table.
        """
        if table not in self._indices:
            name = f"{INDICES}{table}"
            (count,) = self.manifest.tensors[name].shape
            found = self.reader.rows(name, 0, count)
            limit = self.manifest.delta.tables[table]
            if count and (found[0] < 0 or found[-1] >= limit or (found.diff() <= 0).any()):
                raise DamagedError(f"{self.folder} is damaged: {name} aren't ascending rows")
            self._indices[table] = found
        return self._indices[table]

    def has_indices(self, name: str) -> bool:
        """Whether it has only changed rows of a tensor."""
        return table_in(name) in self.manifest.delta.tables

    def overlay(self, values: torch.Tensor, name: str, start: int, num_embeddings: int) -> None:
        """Replace what it changes among rows [start, start + len(values)) of a table's tensor.

        Args:
            values: to change.
            name: of the tensor.
            start: row of the tensor that `values` begins with.
            num_embeddings: rows of the table there, not fewer than in this delta.
        """
        table = table_in(name) or ""
        if not self.has_indices(name):
            known = self.num_embeddings[table]
            read = partial(self.values, name, dtype=values.dtype)
            fill_known(values, read, start, known=known, num_embeddings=num_embeddings)
            return
        indices = self.indices(table)
        for piece in pieces(start, start + len(values), num_embeddings):
            wanted = torch.tensor([piece.start, piece.stop])
            low, high = torch.searchsorted(indices, wanted).tolist()
            if low < high:
                first = piece.copy * len(indices)
                changed = self.values(name, first + low, first + high, values.dtype)
                values[indices[low:high] + (piece.at - piece.start)] = changed

    def values(self, name: str, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [start, stop) of one of its tensors, in the type that they had."""
        found = self.reader.rows(name, start, stop)
        if not TABLE.fullmatch(name) or self.manifest.is_exact:
            return found
        scale = None
        if self.manifest.delta.rows == "int8":
            scale = self.reader.rows(f"{SCALE}{table_in(name)}", start, stop)
        return restored(found, scale, dtype)


class Base(NamedTuple):
    """The checkpoint that a chain begins with."""

    folder: Folder
    manifest: CheckpointManifest


def check_chain(base: Base | None, deltas: Sequence[Delta]) -> None:
    """Check that each delta changes the state that those before it lead to.

    Args:
        base: None: any that the first delta fits.
        deltas: in order, at least one.

    Raises:
        CheckpointError: a delta is of another base, or one before it is missing; or a table is
            missing or has fewer rows than before, or not all new rows of it are in the delta.
        DamagedError: indices are damaged.
    """
    first = deltas[0].manifest.delta
    heads, states, place = {first.base.digest}, {first.previous.digest}, deltas[0].folder
    if base is not None:
        applied = base.manifest.applied
        heads = {identity(base.manifest)} | ({applied.base} if applied else set())
        states, place = states_of(base.manifest), base.folder
    for delta in deltas:
        link = delta.manifest.delta
        fits = link.previous.digest in states
        if not fits and link.base.digest not in heads:
            raise CheckpointError(
                f"{delta.folder} is a delta of {link.base.name} (checksum {link.base.digest}), not "
                f"of {place} (checksum {', '.join(sorted(heads))}); pass its own base"
            )
        if not fits:
            raise CheckpointError(
                f"{delta.folder} changes {link.previous.name} (checksum {link.previous.digest}), "
                f"but is preceded by {place}; pass {link.previous.name} before it"
            )
        states, place = states_of(delta.manifest), delta.folder
    _check_sizes({} if base is None else num_embeddings_of(base.manifest), deltas)


def _check_sizes(sizes: dict[str, int], deltas: Sequence[Delta]) -> None:
    """Check that tables only grow, and that each delta has all rows that are new in it.

    Args:
        sizes: number of rows by table before the first delta; empty if they aren't known.
        deltas: in order.
    """
    for delta in deltas:
        later = delta.num_embeddings
        if missing := sorted(sizes.keys() - later.keys()):
            raise CheckpointError(f"{delta.folder} lacks table {missing[0]!r}, which was before it")
        for table, after in later.items():
            before = sizes.get(table, after)
            if after < before:
                raise CheckpointError(
                    f"table {table!r} has {after:,} rows in {delta.folder}, {before:,} before it: "
                    "a delta can't remove rows; publish that state in full"
                )
            if after == before or table not in delta.manifest.delta.tables:
                continue
            new = int((delta.indices(table) >= before).sum())
            if new < after - before:
                raise CheckpointError(
                    f"table {table!r} has {after:,} rows in {delta.folder}, {before:,} before it, "
                    f"but the delta holds only {new:,} of the {after - before:,} new ones; publish "
                    "that state in full"
                )
        sizes = later
