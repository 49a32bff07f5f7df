"""Rows of several row groups, from which batches are picked: lists are copied once, at the end.

A list of ids lies where Arrow decoded it until the batch that wants it is made. Until then it is a
*view*, 16 bytes that say where it lies, and views are what is shuffled. Arrow has such a type,
`binary_view`, and its cast to plain binary does what neither torch nor fbgemm can: it gathers bytes
from many buffers into a single new one, each copied once. That one comes from Arrow's memory pool,
whose pages stay mapped: the fresh pages that torch would take for each batch cost more than the
copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

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

_TYPES = {"ids": np.int64, "group": np.int64}  # of the plain columns; the others are float32


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
        """These rows, in this order: a copy, but for the items of lists."""
        plain = {}
        for name, values in self.plain.items():
            plain[name] = values.take(rows, axis=0)
        views = {name: views.take(rows, axis=0) for name, views in self.views.items()}
        return Rows(plain, views, self.buffers)

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
    """Joins row groups in memory that it keeps: fresh pages cost more than the copy."""

    def __init__(self) -> None:
        """Nothing kept yet."""
        self._memory: dict[str, Array] = {}

    def __call__(self, parts: Sequence[Columns]) -> Rows:
        """The rows of all parts, one or more; valid until the next call."""
        stops = list(accumulate(map(len, parts)))
        plain = {
            name: self._place(name, stops[-1], len(columns))
            for name, columns in parts[0].plain.items()
        }
        for part, stop in zip(parts, stops, strict=True):
            for name, columns in part.plain.items():
                if columns:
                    place = plain[name][stop - len(part) : stop]
                    np.stack(columns, axis=1, out=place, casting="same_kind")
        buffers: list[pa.Buffer] = []
        views = {}
        for name in parts[0].lists:
            found = []
            for part in parts:
                found.append(_views(part.lists[name], len(buffers)))
                buffers.append(pa.py_buffer(part.lists[name].values))
            views[name] = np.concatenate(found)
        return Rows(plain, views, buffers)

    def _place(self, name: str, rows: int, columns: int) -> Array:
        """Memory for [rows, columns] values."""
        kept = self._memory.get(name)
        if kept is None or kept.size < columns * rows:
            kept = self._memory[name] = np.empty(columns * rows, _TYPES.get(name, np.float32))
        return kept[: columns * rows].reshape(rows, columns)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, one or more."""
    if len(parts) == 1:
        return parts[0]
    plain = {
        n: np.concatenate(
            [p.plain[n] for p in parts],
        )
        for n in parts[0].plain
    }
    views: dict[str, list[Views]] = {name: [] for name in parts[0].views}
    buffers: list[pa.Buffer] = []
    for part in parts:
        for name, moved in part.views.items():
            moved = moved.copy()
            moved[moved[:, _BYTES] > _MAX_INLINE_BYTES, _BUFFER] += len(buffers)
            views[name].append(moved)
        buffers += part.buffers
    return Rows(plain, {name: np.concatenate(found) for name, found in views.items()}, buffers)


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
