"""Rows of several row groups, shuffled; batches are slices of them.

Plain columns are copied and shuffled in memory that is used again. Items of lists stay where they
were decoded and are copied once, into the batch: a list is a *view* until then, 16 bytes that say
where it lies, and views are what is shuffled. Arrow has such a type, `binary_view`, and its cast to
plain binary does what neither torch nor fbgemm can: it gathers bytes from many buffers into a
single new one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from infnet_dist.data.decode import Array, Columns, IntArray, Lists

# One of Arrow's views as four int32: bytes, first 4 bytes (which only comparisons look at), number
# of the buffer, offset in it. Up to 12 bytes aren't pointed at: they stand in place of the rest.
Views = npt.NDArray[np.int32]
_BYTES, _BUFFER, _OFFSET, _INLINE = 0, 2, 3, slice(1, 3)
_ITEM_BYTES, _MAX_INLINE_BYTES = 8, 12

_FLOATS = ("dense", "labels", "truth")  # float32; the others are int64


@dataclass(frozen=True)
class Rows:
    """N rows.

    Attributes:
        scalars: [columns, N] by kind, see `Columns.scalars`; `ids` and `group` are int64,
            the others float32.
        views: [N, 4] by key, see `Columns.lists`: where each list lies in `buffers`.
        buffers: memory with int64 items.
    """

    scalars: dict[str, Array]
    views: dict[str, Views]
    buffers: list[pa.Buffer]

    def __len__(self) -> int:
        """Rows."""
        return int(self.scalars["group"].shape[1])

    def __getitem__(self, rows: slice) -> "Rows":
        """These rows, in the same memory."""
        scalars = {name: values[:, rows] for name, values in self.scalars.items()}
        views = {name: found[rows] for name, found in self.views.items()}
        return Rows(scalars, views, self.buffers)

    def own(self) -> "Rows":
        """A copy, which outlives the block."""
        views, buffers = {}, list[pa.Buffer]()
        for name in self.views:
            lengths, values = self.lengths(name).numpy(), self.items([name]).numpy()
            starts = lengths.cumsum(dtype=np.int32) - lengths
            views[name] = np.empty((len(self), 4), np.int32)
            _view(Lists(starts, lengths, values), len(buffers), out=views[name])
            buffers.append(pa.py_buffer(values))
        return Rows({name: values.copy() for name, values in self.scalars.items()}, views, buffers)

    def lengths(self, name: str) -> torch.Tensor:
        """Items of each row's list, int32 [N]."""
        return torch.from_numpy(self.views[name][:, _BYTES] // _ITEM_BYTES)

    def items(self, names: Sequence[str], before: IntArray | None = None) -> torch.Tensor:
        """A copy of the items of these lists, one key after the other, int64.

        Args:
            names: keys.
            before: [columns, N], which lead, one column after the other.
        """
        views, buffers = [self.views[name] for name in names], self.buffers
        if before is not None:
            views = [_view_whole(before, len(buffers)), *views]
            buffers = [*buffers, *map(pa.py_buffer, before)]
        return _gather(np.concatenate(views), buffers) if views else torch.empty(0).long()


class RowShuffler:
    """Joins row groups, and shuffles their rows, in memory that it keeps."""

    def __init__(self) -> None:
        """Nothing kept yet."""
        self._kept: dict[str, Array] = {}

    def __call__(self, parts: Iterable[Columns], order: IntArray) -> Rows:
        """The rows of all parts, one or more, in this order; valid until the next call.

        Args:
            parts: row groups.
            order: [N] a permutation of their rows.
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
        """Put a part into `joined`, as its rows from `start` on of `num_rows`."""
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
        """Memory of this shape, the same as the last time if that was large enough."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            kept = self._kept[name] = np.empty(size + size // 8, dtype)  # blocks differ
        return kept[:size].reshape(shape)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, one or more."""
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
    """Views of `lists`, whose values are the buffer of this number."""
    np.multiply(lists.lengths, _ITEM_BYTES, out=out[:, _BYTES])
    out[:, _BUFFER] = buffer
    np.multiply(lists.starts, _ITEM_BYTES, out=out[:, _OFFSET])
    single = np.flatnonzero(lists.lengths == 1)  # the only ones that are short but not empty
    items = lists.values[lists.starts[single]]
    out[single, _INLINE] = items.view(np.int32).reshape(-1, 2)


def _view_whole(columns: IntArray, buffer: int) -> Views:
    """A view of each column [columns, N]; they are the buffers from this number on."""
    views = np.zeros((len(columns), 4), np.int32)
    views[:, _BYTES] = columns.shape[1] * _ITEM_BYTES
    views[:, _BUFFER] = np.arange(buffer, buffer + len(columns))
    if columns.shape[1] == 1:
        views[:, _INLINE] = columns.view(np.int32)
    return views


def _gather(views: Views, buffers: Sequence[pa.Buffer]) -> torch.Tensor:
    """The int64 items that `views` speak of, one list after the other, in new memory."""
    count = int(views[:, _BYTES].sum(dtype=np.int64)) // _ITEM_BYTES
    if not count:
        return torch.empty(0, dtype=torch.int64)
    scattered = pa.Array.from_buffers(
        pa.binary_view(), len(views), [None, pa.py_buffer(views), *buffers]
    )
    gathered = scattered.cast(pa.large_binary()).buffers()[2]
    return torch.from_dlpack(pa.Array.from_buffers(pa.int64(), count, [None, gathered]))
