"""Rows of several row groups, from which batches are picked, in memory that is used again.

Items of lists are copied twice after decoding. First into memory that is kept from block to block,
so that Arrow decodes every row group into the same few megabytes: fresh pages, and pages out of the
cache, cost more than the copy. Then into the batch: a list is a *view* until then, 16 bytes that
say where it lies, and views are what is shuffled. Arrow has such a type, `binary_view`, and its
cast to plain binary does what neither torch nor fbgemm can: it gathers bytes from many buffers into
a single new one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from infnet_dist.data.columns import Array, Columns, IntArray, Lists

# One of Arrow's views as four int32: bytes, first 4 bytes (which only comparisons look at), number
# of the buffer, offset in it. Up to 12 bytes aren't pointed at: they stand in place of the rest.
Views = npt.NDArray[np.int32]
_BYTES, _BUFFER, _OFFSET, _INLINE = 0, 2, 3, slice(1, 3)
_ITEM_BYTES, _MAX_INLINE_BYTES = 8, 12

_FLOATS = ("numbers", "labels", "truth")  # plain columns in float32; all else is int64


@dataclass(frozen=True)
class Rows:
    """N rows.

    Attributes:
        plain: [N, columns] by kind, see `Columns.plain`; `ids` and `group` int64, others float32.
        views: [N, 4] by key, see `Columns.lists`: where each list lies in `buffers`.
        buffers: memory with int64 items.
    """

    plain: dict[str, Array]
    views: dict[str, Views]
    buffers: list[pa.Buffer]

    def __len__(self) -> int:
        """Rows."""
        return len(self.plain["group"])

    def pick(self, rows: IntArray) -> "Rows":
        """These rows, in this order: a copy, except for the items of lists."""
        plain = {name: values.take(rows, axis=0) for name, values in self.plain.items()}
        views = {name: views.take(rows, axis=0) for name, views in self.views.items()}
        return Rows(plain, views, self.buffers)

    def own(self) -> "Rows":
        """The same with a copy of the items, which outlives the block."""
        views, buffers = {}, list[pa.Buffer]()
        for number, name in enumerate(self.views):
            lengths, values = self.lengths(name).numpy(), self.items([name]).numpy()
            starts = lengths.cumsum(dtype=np.int32) - lengths
            views[name] = _views(Lists(starts, lengths, values), number)
            buffers.append(pa.py_buffer(values))
        return Rows(self.plain, views, buffers)

    def lengths(self, name: str) -> torch.Tensor:
        """Items of each row's list, int32 [N]."""
        return torch.from_numpy(self.views[name][:, _BYTES] // _ITEM_BYTES)

    def items(self, names: Sequence[str], before: IntArray | None = None) -> torch.Tensor:
        """A copy of the items of these lists, one key after the other, int64; `before` leads."""
        views, buffers = [self.views[name] for name in names], self.buffers
        if before is not None:
            whole = Lists(np.zeros(1, np.int32), np.array([before.size], np.int32), before.ravel())
            views = [_views(whole, len(buffers)), *views]
            buffers = [*buffers, pa.py_buffer(whole.values)]
        return _gather(np.concatenate(views), buffers) if views else torch.empty(0).long()


class Joiner:
    """Joins row groups in memory that it keeps."""

    def __init__(self) -> None:
        """Nothing kept yet."""
        self._kept: dict[str, Array] = {}

    def __call__(self, parts: Iterable[Columns], num_rows: int) -> Rows:
        """The rows of all parts, one or more, `num_rows` together; valid until the next call."""
        rows: list[Rows] = []
        start = 0
        for part in parts:
            rows.append(self._copy(part, number=len(rows), start=start, num_rows=num_rows))
            start += len(part)
            del part  # the next row group is decoded into its memory
        return replace(_concatenate_lists(rows), plain=rows[0].plain)

    def _copy(self, part: Columns, *, number: int, start: int, num_rows: int) -> Rows:
        """A copy of a part's lists; and of its plain columns in their place among `num_rows`."""
        plain, views, buffers = {}, {}, list[pa.Buffer]()
        for name, columns in part.plain.items():
            plain[name] = self._memory(name, (num_rows, len(columns)))
            if columns:
                place = plain[name][start : start + len(part)]
                np.stack(columns, axis=1, out=place, casting="same_kind")
        for name, lists in part.lists.items():
            values = self._memory(f"{name} of row group {number}", lists.values.shape)
            np.copyto(values, lists.values)
            views[name] = _views(replace(lists, values=values), len(buffers))
            buffers.append(pa.py_buffer(values))
        return Rows(plain, views, buffers)

    def _memory(self, name: str, shape: tuple[int, ...]) -> Array:
        """Memory of this shape, the same as the last time if that was large enough."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            dtype = np.float32 if name in _FLOATS else np.int64
            kept = self._kept[name] = np.empty(size + size // 8, dtype)  # row groups differ
        return kept[:size].reshape(shape)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, one or more."""
    if len(parts) == 1:
        return parts[0]
    plain = {n: np.concatenate([p.plain[n] for p in parts]) for n in parts[0].plain}
    return replace(_concatenate_lists(parts), plain=plain)


def _concatenate_lists(parts: Sequence[Rows]) -> Rows:
    """The lists of all parts, with the plain columns of the first."""
    views: dict[str, list[Views]] = {name: [] for name in parts[0].views}
    buffers: list[pa.Buffer] = []
    for part in parts:
        for name, moved in part.views.items():
            moved = moved.copy()
            moved[moved[:, _BYTES] > _MAX_INLINE_BYTES, _BUFFER] += len(buffers)
            views[name].append(moved)
        buffers += part.buffers
    joined = {name: np.concatenate(found) for name, found in views.items()}
    return Rows(parts[0].plain, joined, buffers)


def _views(lists: Lists, buffer: int) -> Views:
    """Views of `lists`, whose values are the buffer of this number."""
    views = np.empty((len(lists.lengths), 4), np.int32)
    np.multiply(lists.lengths, _ITEM_BYTES, out=views[:, _BYTES])
    views[:, _BUFFER] = buffer
    np.multiply(lists.starts, _ITEM_BYTES, out=views[:, _OFFSET])
    single = np.flatnonzero(lists.lengths == 1)  # the only ones that are short but not empty
    items = lists.values[lists.starts[single]]
    views[single, _INLINE] = items.view(np.int32).reshape(-1, 2)
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
