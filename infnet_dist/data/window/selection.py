"""Selects the rows of train that `data.window` describes."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from infnet_dist.config.window import WindowConfig
from infnet_dist.data.manifest import Manifest, Part, Split
from infnet_dist.data.window.cuts import cut_parts
from infnet_dist.data.window.replay import REPLAY
from infnet_dist.errors import DataError

_DAY_MS = 86_400_000
_MOST_LISTED = 20  # generations in a message


class EmptyWindowError(DataError):
    """A split has no rows in a time window."""


def select_window(
    folder: Path, manifest: Manifest, window: WindowConfig | None, *, replay: bool = False
) -> Manifest:
    """The manifest of what a run reads.

    Other splits stay as they are: the rows of valid and test are later than all of train.

    Args:
        folder: the training set.
        manifest: its manifest.
        window: the rows of train; None: all.
        replay: whether to add the split REPLAY, the parts of train that are older than the window.

    Raises:
        EmptyWindowError: no rows are in a time window.
        DataError: the window has no rows, or what it selects by is unknown or ambiguous; or there
            are no older parts.
    """
    if window is None:
        return manifest
    train = manifest.split("train")
    check_in_order(train.parts)
    if window.new or window.generations is not None:
        chosen, older = _by_generation(manifest, window)
    else:
        chosen, older = _bytime_text(folder, manifest, window)
    splits = manifest.splits | {"train": split_of(train, chosen)}
    if replay:
        if not older:
            raise DataError(
                "data.replay_share: no part of train is older than data.window; there "
                f"{_listed(train.parts)}; choose a later window, or remove data.replay_share"
            )
        splits[REPLAY] = split_of(train, older)
    return manifest.model_copy(update={"splits": splits})


def generation_of(part: Part) -> int:
    """The generation of a part; 1 in sets of versions that didn't store it."""
    return part.generation or 1


def generations_of(parts: Sequence[Part]) -> tuple[int, ...]:
    """The generations that have parts, in ascending order."""
    return tuple(sorted({generation_of(part) for part in parts}))


def check_in_order(parts: Sequence[Part]) -> None:
    """Check that each generation of train begins after the end of the earlier ones.

    Raises:
        DataError: two generations overlap in time, so that a model trained up to one of them has
            not seen all rows before the next.
    """
    ranges: dict[int, tuple[int, int]] = {}
    for part in parts:
        if part.time_range_ms is not None:
            first, last = ranges.get(generation_of(part), part.time_range_ms)
            low, high = part.time_range_ms
            ranges[generation_of(part)] = (min(first, low), max(last, high))
    ordered = sorted(ranges.items())
    for (earlier, before), (later, after) in pairwise(ordered):
        if after[0] < before[1]:
            raise DataError(
                f"generations {earlier} and {later} of train overlap in time: {_range(before)} "
                f"and {_range(after)}; ingest the logs again in the order of time"
            )


def window_text(manifest: Manifest, whole: Manifest) -> str:
    """What a window selects of a training set, for the log."""
    chosen, train = manifest.split("train"), whole.split("train")
    numbers = generations_of(chosen.parts)
    word = "generation" if len(numbers) == 1 else "generations"
    return (
        f"data.window selects {chosen.rows:,} of {train.rows:,} rows of train: {word} "
        f"{', '.join(map(str, numbers))}, {_range(chosen.time_range_ms)}"
    )


def _by_generation(manifest: Manifest, window: WindowConfig) -> tuple[list[Part], list[Part]]:
    """The parts of the window, and the older ones."""
    parts = manifest.split("train").parts
    there = generations_of(parts)
    wanted = set(window.generations or (there[-1],))
    if missing := sorted(wanted - {*there}):
        raise DataError(
            f"data.window.generations: train has no rows of generation {missing[0]}; there "
            f"{_listed(parts)}"
        )
    chosen = [part for part in parts if generation_of(part) in wanted]
    grown = manifest.ingested is not None and manifest.ingested.generation > 1
    if grown and any(part.generation is None for part in chosen):
        raise DataError(
            "data.window: logs were added to this training set by an earlier version, which didn't "
            "store the generations of its parts; ingest again into another data.path, or wait for "
            "the next generation"
        )
    return chosen, [part for part in parts if generation_of(part) < min(wanted)]


def _bytime_text(
    folder: Path, manifest: Manifest, window: WindowConfig
) -> tuple[list[Part], list[Part]]:
    """The parts of the window, those partly in it cut, and the parts before it."""
    train = manifest.split("train")
    check_times(folder, train.parts, "data.window", "select by generations, or ")
    first, last = window.times_ms
    whole_first, whole_last = train.time_range_ms
    if window.last_days is not None:
        first = whole_last - round(window.last_days * _DAY_MS) + 1
    times_ms = (whole_first if first is None else first, whole_last if last is None else last)
    chosen = cut_parts(folder, train.parts, times_ms, manifest.schema_.time_column)
    if not chosen:
        raise EmptyWindowError(
            f"data.window: train has no rows in {_range(times_ms)}; there {_listed(train.parts)}"
        )
    older = [p for p in train.parts if p.time_range_ms and p.time_range_ms[1] < times_ms[0]]
    return chosen, older


def check_times(folder: Path, parts: Sequence[Part], key: str, instead: str = "") -> None:
    """Check that the times of all parts are known.

    Args:
        folder: the training set.
        parts: of any splits.
        key: the key of the run file that needs them.
        instead: another way out, for the message.

    Raises:
        DataError: those of one aren't.
    """
    for part in parts:
        if part.time_range_ms is None:
            raise DataError(
                f"{key}: the times of {folder / part.file} are unknown, since it has none or was "
                f"written by an earlier version; {instead}ingest again into another data.path"
            )


def split_of(train: Split, parts: Sequence[Part]) -> Split:
    """A split with some parts of train; its label means are unknown."""
    ranges = [part.time_range_ms or train.time_range_ms for part in parts]
    return Split(
        rows=sum(part.rows for part in parts),
        time_range_ms=(min(first for first, _ in ranges), max(last for _, last in ranges)),
        base_rates={},
        parts=tuple(parts),
    )


def _listed(parts: Sequence[Part]) -> str:
    """The generations that exist, with rows and times."""
    lines = []
    for number in generations_of(parts):
        mine = [part for part in parts if generation_of(part) == number]
        ranges = [part.time_range_ms for part in mine if part.time_range_ms is not None]
        times = f", {_range((min(ranges)[0], max(r[1] for r in ranges)))}" if ranges else ""
        lines.append(f"{number} ({sum(part.rows for part in mine):,} rows{times})")
    more = f" and {len(lines) - _MOST_LISTED:,} earlier ones" if len(lines) > _MOST_LISTED else ""
    word = "is generation" if len(lines) == 1 else "are generations"
    return f"{word} {'; '.join(lines[-_MOST_LISTED:])}{more}"


def _range(times_ms: tuple[int, int]) -> str:
    return f"{time_text(times_ms[0])} to {time_text(times_ms[1])} UTC"


def time_text(time_ms: int) -> str:
    """A time in UTC, in whole seconds."""
    try:
        return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"
