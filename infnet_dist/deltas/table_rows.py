"""Where the rows of a table are in its tensors, whose number of rows may grow along a chain.

A tensor of a table has N rows, or S * N of the state of S column shards: S copies, one after the
other, with a value for each row.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from infnet_dist.checkpoint.inspection import tables_of
from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.deltas.manifest import DeltaManifest

Shape = tuple[int, ...]


class Piece(NamedTuple):
    """Rows [start, stop) of a table in one copy; `at` is the place of the first in a range."""

    copy: int
    start: int
    stop: int
    at: int


def pieces(start: int, stop: int, num_rows: int) -> Iterator[Piece]:
    """Rows [start, stop) of a tensor of copies of `num_rows` rows, cut at the copies' ends."""
    num_rows = max(1, num_rows)
    for copy in range(start // num_rows, -(-stop // num_rows)):
        first = copy * num_rows
        low, high = max(start, first), min(stop, first + num_rows)
        yield Piece(copy, low - first, high - first, low - start)


def fill_known(
    values: torch.Tensor,
    read: Callable[[int, int], torch.Tensor],
    start: int,
    *,
    known: int,
    num_embeddings: int,
) -> None:
    """Fill rows [start, start + len(values)) of a tensor from one of the table with fewer rows.

    Args:
        values: to fill; rows that the other tensor lacks stay as they are.
        read: returns rows [start, stop) of the other tensor.
        start: row of the tensor that `values` begins with.
        known: rows of the table that the other tensor has.
        num_embeddings: rows of the table that the tensor has.
    """
    for piece in pieces(start, start + len(values), num_embeddings):
        stop = min(piece.stop, known)
        if piece.start < stop:
            first = piece.copy * known
            found = read(first + piece.start, first + stop)
            values[piece.at : piece.at + len(found)] = found


def num_embeddings_of(manifest: CheckpointManifest) -> dict[str, int]:
    """The number of rows by table; of a delta those of the state that it leads to."""
    sizes = {t: manifest.tensors[name].shape[0] for t, name in tables_of(manifest).items()}
    return sizes | manifest.delta.tables if isinstance(manifest, DeltaManifest) else sizes


def is_by_row(shape: Shape, num_rows: int) -> bool:
    """Whether a tensor of a table holds one value or more for each of its rows."""
    return bool(shape) and shape[0] >= num_rows > 0 and shape[0] % num_rows == 0


def resized(shape: Shape, before: int, after: int) -> Shape:
    """The shape of a table's tensor with `after` rows in place of `before`."""
    if not is_by_row(shape, before):
        return shape
    return (shape[0] // before * after, *shape[1:])
