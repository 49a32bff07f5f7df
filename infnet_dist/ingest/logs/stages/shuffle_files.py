"""Files that pass rows between tasks: one file per writer, one bucket of it per reader.

A file is Arrow IPC: a sequence of chunks, each with one record batch per bucket. A reader maps the
file into memory and takes only the batches of its bucket, so it reads only its own rows.
"""

import contextlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infnet_dist.io.filesystem import published

IntArray = npt.NDArray[np.int64]


class BucketWriter:
    """Writes chunks of rows, each split into the same number of buckets.

    Args:
        path: the file, which exists once the context ends without an error.
        schema: schema of all chunks.
        num_buckets: number of buckets; an empty one takes a few bytes.
    """

    def __init__(self, path: Path, schema: pa.Schema, num_buckets: int) -> None:
        self._path = path
        self._schema = schema
        self._num_buckets = num_buckets
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "BucketWriter":
        path = self._stack.enter_context(published(self._path))
        sink = self._stack.enter_context(pa.OSFile(str(path), "wb"))
        self._writer = self._stack.enter_context(pa.ipc.new_file(sink, self._schema))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def write(self, chunk: pa.Table, buckets: IntArray) -> None:
        """Add a chunk.

        Args:
            chunk: rows with the schema of the file.
            buckets: int64 [rows], in [0, num_buckets).
        """
        assert chunk.schema == self._schema, f"{chunk.schema} is not {self._schema}"
        order = np.argsort(buckets, kind="stable")
        edges = np.searchsorted(buckets[order], np.arange(self._num_buckets + 1))
        batch = one_batch(chunk).take(pa.array(order))
        for start, stop in pairwise(edges):
            self._writer.write_batch(batch.slice(start, stop - start))


def read_bucket(paths: Sequence[Path], bucket: int, num_buckets: int) -> pa.Table:
    """The rows of one bucket from all files, in the order of the files and as written.

    They are in mapped memory, which stays mapped as long as they are referenced.
    """
    batches: list[pa.RecordBatch] = []
    schema = None
    for path in paths:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        schema = reader.schema
        numbers = range(bucket, reader.num_record_batches, num_buckets)
        batches += [reader.get_batch(number) for number in numbers]
    assert schema is not None, "there are no files"
    return pa.Table.from_batches([b for b in batches if b.num_rows], schema)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """The rows as one record batch."""
    columns = [
        column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        for column in table.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)
