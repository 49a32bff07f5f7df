"""The shuffled rows of a block of row groups; batches are slices of them.

Scalar columns are copied and shuffled in memory that is reused. List items and vectors stay in the
memory that they were decoded to and are copied once, into the batch: until then a list is a *view*,
16 bytes with its buffer, offset and length, and views are shuffled. Arrow has such a type,
`binary_view`, and its cast to binary gathers bytes from many buffers into one, which neither torch
nor fbgemm can do.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from infnet_dist.data.decode import Array, Columns, IntArray, Lists

# An Arrow view as four int32: length in bytes, first 4 bytes (used only in comparisons), index of
# the buffer, offset in it. Up to 12 bytes are stored inline instead, in the last three int32.
Views = npt.NDArray[np.int32]
_BYTES, _INLINE, _BUFFER, _OFFSET = 0, 1, 2, 3
_MAX_INLINE_BYTES = 12

_FLOATS = ("dense", "labels", "truth", "weights")  # float32; all others are int64


@dataclass(frozen=True)
class Rows:
    """N rows, whose lists are views until a batch is made.

    Attributes:
        scalars: [columns, N] by kind, see `Columns.scalars`; `ids` and `group` are int64,
            the others float32.
        views: [N, 4] by key, see `Columns.lists`: the place of each list in `buffers`.
        dtypes: type of the items by key, int64 or float32.
        buffers: memory of the items.
    """

    scalars: dict[str, Array]
    views: dict[str, Views]
    dtypes: dict[str, np.dtype[Any]]
    buffers: list[pa.Buffer]

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.scalars["group"].shape[1])

    def __getitem__(self, rows: slice) -> "Rows":
        """A slice of the rows, in the same memory."""
        scalars = {name: values[:, rows] for name, values in self.scalars.items()}
        views = {name: found[rows] for name, found in self.views.items()}
        return Rows(scalars, views, self.dtypes, self.buffers)

    def own(self) -> "Rows":
        """A copy with memory of its own, which outlives the block."""
        views, buffers = {}, list[pa.Buffer]()
        for name in self.views:
            lengths, values = self.lengths(name).numpy(), self.items([name]).numpy()
            starts = lengths.cumsum(dtype=np.int32) - lengths
            views[name] = np.empty((len(self), 4), np.int32)
            _view(Lists(starts, lengths, values), len(buffers), out=views[name])
            buffers.append(pa.py_buffer(values))
        scalars = {name: values.copy() for name, values in self.scalars.items()}
        return Rows(scalars, views, self.dtypes, buffers)

    def lengths(self, name: str) -> torch.Tensor:
        """Number of items of each row's list, int32 [N]."""
        item_bytes = np.int32(self.dtypes[name].itemsize)
        return torch.from_numpy(self.views[name][:, _BYTES] // item_bytes)

    def items(self, names: Sequence[str], before: IntArray | None = None) -> torch.Tensor:
        """A copy of the list items, one key after the other.

        Args:
            names: keys of items of one type.
            before: columns [columns, N] that precede int64 items.
        """
        views, buffers = [self.views[name] for name in names], self.buffers
        dtype = self.dtypes[names[0]] if names else np.dtype(np.int64)
        if before is not None:
            views = [_view_whole(before, len(buffers)), *views]
            buffers = [*buffers, *map(pa.py_buffer, before)]
        return _gather(np.concatenate(views), buffers, dtype) if views else torch.empty(0).long()

    def vectors(self, dims: Mapping[str, int]) -> torch.Tensor:
        """A copy of vectors side by side, float32 [N, sum of dims]; NaN where one is null.

        Args:
            dims: floats of each vector, by key.
        """
        views_NF4 = np.stack([self.views[name] for name in dims], axis=1)
        values = _gather(views_NF4.reshape(-1, 4), self.buffers, np.dtype(np.float32))
        size = sum(dims.values())
        if len(values) == len(self) * size:
            return values.reshape(-1, size)
        present_NF = torch.from_numpy(views_NF4[:, :, _BYTES] > 0)
        present_NV = present_NF.repeat_interleave(torch.tensor([*dims.values()]), dim=1)
        return torch.full((len(self), size), torch.nan).masked_scatter_(present_NV, values)


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
        joined = Rows({}, {}, {}, [])
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
        return Rows(scalars, views, joined.dtypes, joined.buffers)

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
            joined.dtypes[name] = lists.values.dtype
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
    joined = {name: np.concatenate(found) for name, found in views.items()}
    return Rows(scalars, joined, parts[0].dtypes, buffers)


def _view(lists: Lists, buffer: int, *, out: Views) -> None:
    """Write the views of `lists`, whose values are the buffer of this index, to `out`."""
    item_bytes = lists.values.itemsize
    np.multiply(lists.lengths, item_bytes, out=out[:, _BYTES])
    out[:, _BUFFER] = buffer
    np.multiply(lists.starts, item_bytes, out=out[:, _OFFSET])
    for count in range(1, _MAX_INLINE_BYTES // item_bytes + 1):  # lists that are stored inline
        short = np.flatnonzero(lists.lengths == count)
        items = lists.values[lists.starts[short, None] + np.arange(count)]
        inline = slice(_INLINE, _INLINE + count * item_bytes // 4)
        out[short, inline] = items.view(np.int32)


def _view_whole(columns: IntArray, buffer: int) -> Views:
    """A view of each column [columns, N]; their buffers start at this index."""
    views = np.zeros((len(columns), 4), np.int32)
    views[:, _BYTES] = columns.shape[1] * columns.itemsize
    views[:, _BUFFER] = np.arange(buffer, buffer + len(columns))
    if columns.shape[1] == 1:
        views[:, _INLINE : _INLINE + 2] = columns.view(np.int32)
    return views


def _gather(views: Views, buffers: Sequence[pa.Buffer], dtype: np.dtype[Any]) -> torch.Tensor:
    """The items of the lists, one list after the other, in new memory."""
    count = int(views[:, _BYTES].sum(dtype=np.int64)) // dtype.itemsize
    if not count:
        return torch.from_numpy(np.empty(0, dtype))
    scattered = pa.Array.from_buffers(
        pa.binary_view(), len(views), [None, pa.py_buffer(views), *buffers]
    )
    gathered = scattered.cast(pa.large_binary()).buffers()[2]
    kind = pa.from_numpy_dtype(dtype)
    return torch.from_dlpack(pa.Array.from_buffers(kind, count, [None, gathered]))
