"""Cuts parts that are partly within a time window: their rows are in random order of time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.data.manifest import Part
from infnet_dist.data.part_files import open_checked
from infnet_dist.data.window.selected_part import SelectedPart
from infnet_dist.errors import DataError

_AT_ONCE = 8


def cut_parts(
    folder: Path, parts: Sequence[Part], times_ms: tuple[int, int], time_column: str
) -> list[Part]:
    """The rows of parts within some times; reads the times of parts that are partly within them.

    Args:
        folder: the training set.
        parts: parts whose time ranges are known.
        times_ms: first and last epoch millisecond, both included.
        time_column: column of the times.

    Returns:
        Parts that have rows in the window, whole ones as they are, in order.

    Raises:
        DataError: a part can't be read.
    """

    def cut(part: Part) -> Part | None:
        assert part.time_range_ms is not None, "the caller has checked that times are known"
        first, last = part.time_range_ms
        start, stop = times_ms
        if isinstance(part, SelectedPart) and part.times_ms is not None:
            start, stop = max(start, part.times_ms[0]), min(stop, part.times_ms[1])
        if first > times_ms[1] or last < times_ms[0]:
            return None
        if times_ms[0] <= first and last <= times_ms[1]:
            return part
        counts = _counts(folder, part, (start, stop), time_column)
        return (
            SelectedPart.within(part, (start, stop), time_column, counts) if any(counts) else None
        )

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [part for part in pool.map(cut, parts) if part is not None]


def _counts(
    folder: Path, part: Part, times_ms: tuple[int, int], time_column: str
) -> tuple[int, ...]:
    """Number of rows within some times, by row group."""
    counts = []
    try:
        with open_checked(folder, part) as opened:
            for index in range(len(part.rows_in_file)):
                times = opened.read_group(index, [time_column])[time_column]
                first, last = times_ms
                inside = pc.and_(pc.greater_equal(times, first), pc.less_equal(times, last))
                counts.append(pc.sum(inside).as_py() or 0)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{folder / part.file} can't be read ({error}); restore it, or ingest again"
        ) from None
    return tuple(counts)
