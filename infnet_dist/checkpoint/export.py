"""Exports a table of a checkpoint to a Parquet file, with its rows in order."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from infnet_dist.checkpoint.inspection import (
    Advance,
    RowState,
    row_state,
    state_rows,
    table_tensor,
)
from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder

_GROUP_BYTES = 64 * 2**20
_STATE_VALUES = 2**24  # read at once, so that their blocks aren't read for each part of a table
_TYPES = {
    torch.float32: pa.float32(),
    torch.float16: pa.float16(),
    torch.float64: pa.float64(),
    torch.bfloat16: pa.float32(),  # Arrow lacks bfloat16; float32 holds its values
}


class TableExport:
    """An export of a table, or some of its rows, into a Parquet file.

    Its columns are `row` (int64), `embedding` (list of the table's width) and, on request,
    `optimizer_state`: a number per row, or a list with one per column shard.

    Args:
        folder: the checkpoint.
        manifest: its manifest.
        table: name.
        rows: [first, end); an end of None is the table's.
        with_optimizer: whether to export row-wise Adagrad's state.

    Raises:
        CheckpointError: no such table, rows or state.
    """

    def __init__(
        self,
        folder: Folder,
        manifest: CheckpointManifest,
        table: str,
        *,
        rows: tuple[int, int | None] = (0, None),
        with_optimizer: bool = False,
    ) -> None:
        self._reader = TensorReader(folder, manifest)
        self._tensor = table_tensor(manifest, table)
        saved = manifest.tensors[self._tensor]
        self._table_rows, dim = saved.shape
        self._first, end = rows
        self._end = self._table_rows if end is None else end
        if not self._first <= self._end <= self._table_rows:
            raise CheckpointError(
                f"table {table!r} has rows 0:{self._table_rows}; --rows {self._first}:{self._end} "
                "is outside"
            )
        if not dim or saved.dtype not in _TYPES:
            raise CheckpointError(
                f"table {table!r} is {dim} wide, of {saved.data_type}; expected F16, BF16, F32 or "
                "F64 of one column or more"
            )
        self._state = row_state(manifest, self._tensor) if with_optimizer else None
        if with_optimizer and self._state is None:
            raise CheckpointError(
                f"no row-wise optimizer state of table {table!r} in {folder}; omit --with-optimizer"
            )
        columns = [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("embedding", pa.list_(_TYPES[saved.dtype], dim), nullable=False),
        ]
        if self._state:
            columns.append(_state_field(manifest, self._state))
        notes = {"table": table, "checkpoint": folder.name, "step": manifest.progress.step}
        self._schema = pa.schema(columns, {key: str(value) for key, value in notes.items()})
        self.num_rows = self._end - self._first
        self.num_bytes = self.num_rows * dim * saved.dtype.itemsize

    def write(self, output: str, advance: Advance, *, replace: bool = False) -> None:
        """Write the file at this path or URL; it appears when it is complete.

        Raises:
            CheckpointError: it is there already, and not to be replaced.
            UserError: its place is a folder, no regular file, or can't be written to.
            DamagedError: the checkpoint is damaged.
            OSError: the checkpoint can't be read, or the file not written.
        """
        place, name = _split(output)
        place.check_target(name)
        if not replace and place.size(name) is not None:
            raise CheckpointError(f"{place / name} already exists; --force replaces it")

        def write(file: IO[bytes]) -> None:
            if not isinstance(file, io.RawIOBase):
                self._write(file, advance)
                return
            buffered = io.BufferedWriter(file)  # a raw file may write less than it gets
            try:
                self._write(buffered, advance)
            finally:
                buffered.detach()

        place.create_whole(name, write)

    def _write(self, file: IO[bytes], advance: Advance) -> None:
        waiting: list[pa.RecordBatch] = []
        with pq.ParquetWriter(
            file,
            self._schema,
            compression="none",  # trained weights hardly compress
            use_dictionary=False,
            column_encoding={"row": "DELTA_BINARY_PACKED"},
        ) as writer:
            for batch in self._batches(advance):
                waiting.append(batch)
                if sum(part.nbytes for part in waiting) >= _GROUP_BYTES:
                    self._flush(writer, waiting)
            self._flush(writer, waiting)

    def _flush(self, writer: pq.ParquetWriter, waiting: list[pa.RecordBatch]) -> None:
        """Write the pending rows as one row group."""
        if waiting:
            table = pa.Table.from_batches(waiting, self._schema)
            writer.write_table(table, row_group_size=len(table))
            waiting.clear()

    def _batches(self, advance: Advance) -> Iterator[pa.RecordBatch]:
        state, state_first, state_end = torch.empty(0), 0, 0
        for first, end in self._reader.ranges(self._tensor, self._first, self._end):
            weights = self._reader.rows(self._tensor, first, end)
            advance(weights.nbytes)
            columns = [pa.array(np.arange(first, end)), _lists(weights)]
            if self._state:
                if end > state_end:
                    state_first = first
                    rows = _STATE_VALUES // self._state.column_shards
                    state_end = min(max(end, first + rows), self._end)
                    state = state_rows(
                        self._reader, self._state, self._table_rows, state_first, state_end
                    )
                part = state[first - state_first : end - state_first]
                columns.append(_lists(part) if part.shape[1] > 1 else _array(part.reshape(-1)))
            yield pa.record_batch(columns, schema=self._schema)


def _split(output: str) -> tuple[Folder, str]:
    if "://" in output:
        return Folder(output).parent, Folder(output).name
    path = Path(output).absolute()
    if output.endswith("/"):
        return Folder(path), ""
    return Folder(path.parent), path.name


def _state_field(manifest: CheckpointManifest, state: RowState) -> pa.Field:
    of_one = _TYPES[manifest.tensors[state.tensor].dtype]
    several = state.column_shards > 1
    return pa.field(
        "optimizer_state", pa.list_(of_one, state.column_shards) if several else of_one, False
    )


def _lists(matrix: torch.Tensor) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(_array(matrix.reshape(-1)), matrix.shape[1])


def _array(values: torch.Tensor) -> pa.Array:
    return pa.array(values.contiguous().to(_widened(values.dtype)).numpy())


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.bfloat16 else dtype
