"""The shuffled rows of a block of row groups; batches are slices of them.

Scalar columns are copied and shuffled in memory that is reused. List items stay in the memory that
they were decoded to and are copied once, into the batch: until then a list is a *view*, 16 bytes
with its buffer, offset and length, and views are shuffled. Arrow has such a type, `binary_view`,
and its cast to binary gathers bytes from many buffers into one, which neither torch nor fbgemm can
do.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from infnet_dist.data.decode import Array, Columns, IntArray, Lists

# An Arrow view as four int32: length in bytes, first 4 bytes (used only in comparisons), index of
# the buffer, offset in it. Up to 12 bytes are stored inline instead, in the last three int32.
Views = npt.NDArray[np.int32]
_BYTES, _BUFFER, _OFFSET, _INLINE = 0, 2, 3, slice(1, 3)
_ITEM_BYTES, _MAX_INLINE_BYTES = 8, 12

_FLOATS = ("dense", "labels", "truth")  # float32; all others are int64


@dataclass(frozen=True)
class Rows:
    """N rows, whose lists are views until a batch is made.

    Attributes:
        scalars: [columns, N] by kind, see `Columns.scalars`; `ids` and `group` are int64,
            the others float32.
        views: [N, 4] by key, see `Columns.lists`: the place of each list in `buffers`.
        buffers: memory of int64 items.
    """

    scalars: dict[str, Array]
    views: dict[str, Views]
    buffers: list[pa.Buffer]

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.scalars["group"].shape[1])

    def __getitem__(self, rows: slice) -> "Rows":
        """A slice of the rows, in the same memory."""
        scalars = {name: values[:, rows] for name, values in self.scalars.items()}
        views = {name: found[rows] for name, found in self.views.items()}
        return Rows(scalars, views, self.buffers)

    def own(self) -> "Rows":
        """A copy with memory of its own, which outlives the block."""
        views, buffers = {}, list[pa.Buffer]()
        for name in self.views:
            lengths, values = self.lengths(name).numpy(), self.items([name]).numpy()
            starts = lengths.cumsum(dtype=np.int32) - lengths
            views[name] = np.empty((len(self), 4), np.int32)
            _view(Lists(starts, lengths, values), len(buffers), out=views[name])
            buffers.append(pa.py_buffer(values))
        return Rows({name: values.copy() for name, values in self.scalars.items()}, views, buffers)

    def lengths(self, name: str) -> torch.Tensor:
        """Number of items of each row's list, int32 [N]."""
        return torch.from_numpy(self.views[name][:, _BYTES] // _ITEM_BYTES)

    def items(self, names: Sequence[str], before: IntArray | None = None) -> torch.Tensor:
        """A copy of the list items, one key after the other, int64.

        Args:
            names: keys.
            before: columns [columns, N] that precede the items.
        """
        views, buffers = [self.views[name] for name in names], self.buffers
        if before is not None:
            views = [_view_whole(before, len(buffers)), *views]
            buffers = [*buffers, *map(pa.py_buffer, before)]
        return _gather(np.concatenate(views), buffers) if views else torch.empty(0).long()


class RowShuffler:
    """Concatenates row groups and shuffles their rows, in memory that it reuses."""

    def __init__(self) -> None:
        """Start without memory."""
        self._kept: dict[str, Array] = {}

    def __call__(self, parts: Iterable[Columns], order: IntArray) -> Rows:
        """The rows of all parts in the given order; valid until the next call.

        Args:
            parts: one or more row groups.
            order: permutation of their rows, [N].
        """
        joined = Rows({}, {}, [])
        start = 0
        for part in parts:
            self._add(part, joined, start=start, num_rows=len(order))
            start += len(part)
        scalars, views = {}, {}
        for name, columns in joined.scalars.items():
            scalars[name] = self._memory(f"{name}, shuffled", columns.shape, columns.dtype)
            for column, shuffled in zip(columns, scalars[name], strict=True):
                column.take(order, out=shuffled, mode="clip")  # "raise" would copy once more
        for name, ordered in joined.views.items():
            views[name] = self._memory(f"views of {name}, shuffled", ordered.shape, np.int32)
            ordered.take(order, axis=0, out=views[name], mode="clip")
        return Rows(scalars, views, joined.buffers)

    def _add(self, part: Columns, joined: Rows, *, start: int, num_rows: int) -> None:
        """Add a part to `joined`, at row `start` of `num_rows`."""
        stop = start + len(part)
        for name, columns in part.scalars.items():
            dtype = np.float32 if name in _FLOATS else np.int64
            place = joined.scalars[name] = self._memory(name, (len(columns), num_rows), dtype)
            for column, values in zip(place, columns, strict=True):
                column[start:stop] = values
        for name, lists in part.lists.items():
            number = len(joined.buffers)
            joined.views[name] = self._memory(f"views of {name}", (num_rows, 4), np.int32)
            _view(lists, number, out=joined.views[name][start:stop])
            joined.buffers.append(pa.py_buffer(lists.values))

    def _memory(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Memory of this shape, reused if the last one was large enough."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            spare = size // 8  # blocks differ in size
            kept = self._kept[name] = np.empty(size + spare, dtype)
        return kept[:size].reshape(shape)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """The rows of one or more parts."""
    if len(parts) == 1:
        return parts[0]
    views: dict[str, list[Views]] = {name: [] for name in parts[0].views}
    buffers: list[pa.Buffer] = []
    for part in parts:
        for name, moved in part.views.items():
            moved = moved.copy()
            moved[moved[:, _BYTES] > _MAX_INLINE_BYTES, _BUFFER] += len(buffers)
            views[name].append(moved)
        buffers += part.buffers
    scalars = {n: np.concatenate([p.scalars[n] for p in parts], axis=1) for n in parts[0].scalars}
    return Rows(scalars, {name: np.concatenate(found) for name, found in views.items()}, buffers)


def _view(lists: Lists, buffer: int, *, out: Views) -> None:
    """Write the views of `lists`, whose values are the buffer of this index, to `out`."""
    np.multiply(lists.lengths, _ITEM_BYTES, out=out[:, _BYTES])
    out[:, _BUFFER] = buffer
    np.multiply(lists.starts, _ITEM_BYTES, out=out[:, _OFFSET])
    single = np.flatnonzero(lists.lengths == 1)  # the only ones that are stored inline
    items = lists.values[lists.starts[single]]
    out[single, _INLINE] = items.view(np.int32).reshape(-1, 2)


def _view_whole(columns: IntArray, buffer: int) -> Views:
    """A view of each column [columns, N]; their buffers start at this index."""
    views = np.zeros((len(columns), 4), np.int32)
    views[:, _BYTES] = columns.shape[1] * _ITEM_BYTES
    views[:, _BUFFER] = np.arange(buffer, buffer + len(columns))
    if columns.shape[1] == 1:
        views[:, _INLINE] = columns.view(np.int32)
    return views


def _gather(views: Views, buffers: Sequence[pa.Buffer]) -> torch.Tensor:
    """The int64 items of the lists, one list after the other, in new memory."""
    count = int(views[:, _BYTES].sum(dtype=np.int64)) // _ITEM_BYTES
    if not count:
        return torch.empty(0, dtype=torch.int64)
    scattered = pa.Array.from_buffers(
        pa.binary_view(), len(views), [None, pa.py_buffer(views), *buffers]
    )
    gathered = scattered.cast(pa.large_binary()).buffers()[2]
    return torch.from_dlpack(pa.Array.from_buffers(pa.int64(), count, [None, gathered]))
