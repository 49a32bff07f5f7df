"""Reads the rows of deltas, and checks that deltas fit on a base and on one another."""

from collections.abc import Sequence
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
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder


class Delta:
    """A delta whose rows can be read.

    Args:
        folder: the delta.
        manifest: its manifest; read from the folder if it isn't given.
    """

    def __init__(self, folder: Folder, manifest: DeltaManifest | None = None) -> None:
        self.folder = folder
        self.manifest = manifest or read_delta(folder)
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

    def overlay(self, values: torch.Tensor, name: str, start: int) -> None:
        """Replace what it changes among rows [start, start + len(values)) of a whole tensor."""
        stop = start + len(values)
        if not self.has_indices(name):
            values.copy_(self.values(name, start, stop, values.dtype))
            return
        table = table_in(name) or ""
        indices, num_embeddings = self.indices(table), self.manifest.delta.tables[table]
        for copy in range(start // num_embeddings, -(-stop // num_embeddings)):
            first = copy * num_embeddings  # of a column shard's state
            wanted = torch.tensor([start - first, stop - first])
            low, high = torch.searchsorted(indices, wanted).tolist()
            if low < high:
                at = copy * len(indices)
                changed = self.values(name, at + low, at + high, values.dtype)
                values[indices[low:high] + (first - start)] = changed

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
        CheckpointError: a delta is of another base, or one before it is missing.
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
