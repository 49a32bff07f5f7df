"""Memory-mapped tables of a bundle: rows by id, as float32. Processes share the pages."""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from infnet_dist.errors import BundleError
from infnet_dist.serving.encoding import decode, row_bytes
from infnet_dist.serving.manifest import BundleManifest, StoredTable


class MappedTable:
    """A table whose shards are mapped, not read; `width` floats per row."""

    def __init__(self, folder: Path, table: StoredTable) -> None:
        """The sizes of the files are checked before (`check_files`)."""
        self.name, self.rows, self.width = table.name, table.rows, table.width
        self._data_type = table.data_type
        size = row_bytes(table.data_type, table.width)
        self._shards = [
            torch.from_file(
                str(folder / shard.file), shared=False, size=shard.rows * size, dtype=torch.uint8
            ).view(shard.rows, size)
            for shard in table.shards
        ]
        ends = [shard.first_row + shard.rows for shard in table.shards]
        if [shard.first_row for shard in table.shards] != [0, *ends[:-1]] or ends[-1] != self.rows:
            raise BundleError(
                f"bundle {folder} is damaged: the shards of table {self.name!r} don't make up its "
                f"{self.rows} rows; export it again"
            )
        self._firsts = torch.tensor([shard.first_row for shard in table.shards])

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of int64 ids [n], all within the table: float32 [n, width]."""
        if len(self._shards) == 1:
            return self._decoded(self._shards[0].index_select(0, ids))
        number = torch.searchsorted(self._firsts, ids, right=True) - 1
        stored = self._shards[0].new_empty(len(ids), self._shards[0].shape[1])
        for i, shard in enumerate(self._shards):
            (places,) = (number == i).nonzero(as_tuple=True)
            stored[places] = shard.index_select(0, ids[places] - self._firsts[i])
        return self._decoded(stored)

    def _decoded(self, stored: torch.Tensor) -> torch.Tensor:
        return decode(stored, self._data_type, self.width)


def map_tables(folder: Path, manifest: BundleManifest) -> Mapping[str, MappedTable]:
    """The tables of a bundle, by name."""
    if sys.byteorder != "little":
        raise BundleError("bundles are little-endian, this machine isn't; serve on another one")
    return {table.name: MappedTable(folder, table) for table in manifest.tables}
