"""The order of an epoch: every row once, for any ranks, and after any restart."""

import math
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet_dist.data.epoch_order import (
    Block,
    epoch_order,
    merge_intervals,
    num_steps,
    rank_share,
    remaining_intervals,
)
from infnet_dist.data.manifest import Part, Split

Interval = tuple[int, int]
Row = tuple[str, int, int]  # file, row group, row within it

# Row groups of each part.
SPLITS: dict[str, tuple[tuple[int, ...], ...]] = {
    "one-row": ((1,),),
    "one-row-groups": ((1,) * 23, (1,) * 8),
    "with-empty-groups": ((0, 3, 0, 0, 5), (0,), (7, 0)),
    "primes": ((2, 3, 5), (7, 11, 13, 17), (19, 23), (29,)),
    "one-giant": ((1009,),),
    "giant-among-small": ((1, 2, 1), (500,), (3, 0, 1)),
    "equal": ((64, 64, 64, 64), (64, 64, 64, 64)),
    "empty-part": ((4, 4), (), (5,)),
}
SHUFFLES = [None, 1, 10, 64, 10_000]
WORLDS = [1, 2, 3, 5]


def make_split(groups: tuple[tuple[int, ...], ...]) -> Split:
    parts = tuple(
        Part(file=f"train/part-{i:05d}.parquet", rows=sum(part), row_groups=part)
        for i, part in enumerate(groups)
    )
    rows = sum(part.rows for part in parts)
    return Split(rows=rows, time_range_ms=(0, 1), base_rates={"click": 0.5}, parts=parts)


def all_rows(split: Split) -> list[Row]:
    """In the order on disk."""
    return [
        (part.file, index, row)
        for part in split.parts
        for index, rows in enumerate(part.row_groups)
        for row in range(rows)
    ]


def block_rows(block: Block) -> list[Row]:
    inside = [(g.file, g.index, row) for g in block.groups for row in range(g.rows)]
    return [inside[place] for place in block.permutation().tolist()]


def read_order(
    split: Split, *, epoch: int = 0, seed: int = 0, shuffle_rows: int | None = 10
) -> list[Row]:
    blocks = epoch_order(split, epoch=epoch, seed=seed, shuffle_rows=shuffle_rows)
    result: list[Row] = []
    for block in blocks:
        assert block.start == len(result), "blocks follow one another"
        rows = block_rows(block)
        assert len(rows) == block.rows
        result += rows
    return result


def places(intervals: list[Interval]) -> list[int]:
    return [place for start, stop in intervals for place in range(start, stop)]


def shares_of(intervals: list[Interval], world_size: int) -> list[list[Interval]]:
    return [rank_share(intervals, rank=rank, world_size=world_size) for rank in range(world_size)]


def take(share: list[Interval], count: int) -> list[Interval]:
    """The first `count` rows of a share."""
    result = []
    for start, stop in share:
        stop = min(stop, start + count)
        if start < stop:
            result.append((start, stop))
            count -= stop - start
    return result


# --------------------------------------------------------------------------------- epoch_order


@pytest.mark.parametrize("shuffle_rows", SHUFFLES)
@pytest.mark.parametrize("groups", SPLITS.values(), ids=SPLITS)
def test_each_row_once(groups: tuple[tuple[int, ...], ...], shuffle_rows: int | None) -> None:
    split = make_split(groups)
    for epoch in range(3):
        rows = read_order(split, epoch=epoch, seed=7, shuffle_rows=shuffle_rows)
        assert len(rows) == split.rows
        assert sorted(rows) == sorted(all_rows(split))


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("groups", SPLITS.values(), ids=SPLITS)
def test_each_row_once_over_ranks(groups: tuple[tuple[int, ...], ...], world_size: int) -> None:
    split = make_split(groups)
    rows = read_order(split)
    shares = shares_of([(0, split.rows)], world_size)
    read = [[rows[place] for place in places(share)] for share in shares]
    assert Counter(row for part in read for row in part) == Counter(all_rows(split))
    # The order doesn't know of ranks: rank after rank reads it through.
    assert [row for part in read for row in part] == rows
    sizes = [len(part) for part in read]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("groups", SPLITS.values(), ids=SPLITS)
def test_without_shuffling_the_order_is_that_on_disk(groups: tuple[tuple[int, ...], ...]) -> None:
    split = make_split(groups)
    for epoch, seed in ((0, 0), (3, 5)):
        found = read_order(split, epoch=epoch, seed=seed, shuffle_rows=None)
        assert found == all_rows(split)


@pytest.mark.parametrize("shuffle_rows", [1, 10, 64, 10_000])
def test_same_seed_and_epoch_same_order(shuffle_rows: int) -> None:
    split = make_split(SPLITS["primes"])
    np.random.seed(0)
    first = read_order(split, epoch=2, seed=9, shuffle_rows=shuffle_rows)
    blocks = epoch_order(split, epoch=2, seed=9, shuffle_rows=shuffle_rows)
    np.random.seed(1)
    # Blocks may be opened in any order and more than once.
    again = {block.start: block_rows(block) for block in reversed(blocks)}
    assert [row for start in sorted(again) for row in again[start]] == first
    assert blocks == epoch_order(split, epoch=2, seed=9, shuffle_rows=shuffle_rows)
    for block in blocks:
        np.testing.assert_array_equal(block.permutation(), block.permutation())


@pytest.mark.parametrize("name", ["primes", "one-giant", "equal", "one-row-groups"])
@pytest.mark.parametrize("shuffle_rows", [10, 10_000])
def test_every_seed_and_epoch_has_its_own_order(name: str, shuffle_rows: int) -> None:
    split = make_split(SPLITS[name])
    orders = [
        tuple(read_order(split, epoch=epoch, seed=seed, shuffle_rows=shuffle_rows))
        for epoch in range(4)
        for seed in range(4)  # (1, 2) and (2, 1) differ as well
    ]
    assert len(set(orders)) == 16
    assert tuple(all_rows(split)) not in orders


def test_order_is_the_same_in_every_process() -> None:
    split = make_split(SPLITS["primes"])
    program = (
        "import sys; from infnet_dist.data.manifest import Split;"
        "from infnet_dist.data.epoch_order import epoch_order;"
        "split = Split.model_validate_json(sys.stdin.read());"
        "blocks = epoch_order(split, epoch=1, seed=3, shuffle_rows=20);"
        "print([([(g.file, g.index) for g in b.groups], b.permutation().tolist()) for b in blocks])"
    )
    blocks = epoch_order(split, epoch=1, seed=3, shuffle_rows=20)
    here = [([(g.file, g.index) for g in b.groups], b.permutation().tolist()) for b in blocks]
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=split.model_dump_json(),
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(here)


@pytest.mark.parametrize("shuffle_rows", [1, 5, 10, 64, 200])
@pytest.mark.parametrize("groups", SPLITS.values(), ids=SPLITS)
def test_blocks_hold_about_shuffle_rows(
    groups: tuple[tuple[int, ...], ...], shuffle_rows: int
) -> None:
    blocks = epoch_order(make_split(groups), epoch=0, seed=0, shuffle_rows=shuffle_rows)
    for block in blocks:
        largest = max(group.rows for group in block.groups)
        assert block.rows - largest <= shuffle_rows, "one row group too many"
    for one, other in pairwise(blocks):
        assert one.rows + other.rows > shuffle_rows, "both would have fitted into one block"


def test_rows_and_row_groups_are_mixed() -> None:
    giant = make_split(((2000,),))
    places_on_disk = [row for _, _, row in read_order(giant, shuffle_rows=10)]
    assert abs(np.corrcoef(places_on_disk, np.arange(2000))[0, 1]) < 0.1

    small = make_split(((5,) * 200, (5,) * 200))
    disk = {row: place for place, row in enumerate(all_rows(small))}
    for shuffle_rows in (1, 20, 10_000):
        order = [disk[row] for row in read_order(small, shuffle_rows=shuffle_rows)]
        assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.2, shuffle_rows


@pytest.mark.parametrize("groups", [((1, 1, 1),), ((1, 1), (1,)), ((3,),), ((1, 2),)], ids=str)
def test_all_orders_are_equally_likely(groups: tuple[tuple[int, ...], ...]) -> None:
    # All in one block: the permutation of row groups and that of rows must not share their numbers.
    split = make_split(groups)
    found = Counter(tuple(read_order(split, seed=seed, shuffle_rows=10)) for seed in range(1200))
    assert len(found) == 6
    assert all(140 < count < 260 for count in found.values()), sorted(found.values())


# --------------------------------------------------------------------------------- intervals

INTERVALS: list[list[Interval]] = [
    [],
    [(0, 1)],
    [(0, 10)],
    [(3, 4), (7, 8), (100, 101)],
    [(0, 3), (5, 9), (20, 37)],
    [(0, 1000), (1001, 1002), (2000, 2003)],
    [(i * 3, i * 3 + 1) for i in range(17)],
]


@pytest.mark.parametrize("world_size", [*WORLDS, 8, 50])
@pytest.mark.parametrize("intervals", INTERVALS, ids=str)
def test_deal(intervals: list[Interval], world_size: int) -> None:
    shares = shares_of(intervals, world_size)
    assert [place for share in shares for place in places(share)] == places(intervals)
    sizes = [len(places(share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for share in shares:
        assert all(start < stop for start, stop in share)
    for batch_size in (1, 2, 7, 4096):
        steps = num_steps(intervals, world_size=world_size, batch_size=batch_size)
        assert steps == math.ceil(max(sizes) / batch_size)


@pytest.mark.parametrize("intervals", INTERVALS, ids=str)
def test_remaining_is_the_complement(intervals: list[Interval]) -> None:
    for total in (2003, 2500):
        left = remaining_intervals(total, intervals[::-1])
        assert set(places(left)) == set(range(total)) - set(places(intervals))
        assert left == merge_intervals(left)
        assert merge_intervals([*left, *intervals]) == [(0, total)]
        assert remaining_intervals(total, [*left, *intervals]) == []
    assert remaining_intervals(0, []) == []


def test_merge_by_hand() -> None:
    assert merge_intervals([]) == []
    assert merge_intervals([(5, 6), (0, 2), (2, 3)]) == [(0, 3), (5, 6)]
    assert merge_intervals([(3, 4), (2, 3), (1, 2), (0, 1)]) == [(0, 4)]
    assert merge_intervals([(0, 2), (3, 4)]) == [(0, 2), (3, 4)]


# -------------------------------------------------------------------------------- resumption


def test_resume_with_other_ranks() -> None:
    split = make_split(SPLITS["giant-among-small"])
    rows = read_order(split)
    for before in WORLDS:
        for after in WORLDS:
            for steps in (0, 1, 3, 10):
                shares = shares_of(remaining_intervals(split.rows, []), before)
                consumed = merge_intervals([i for share in shares for i in take(share, steps * 16)])
                again = shares_of(remaining_intervals(split.rows, consumed), after)
                seen = [*places(consumed), *(p for share in again for p in places(share))]
                assert sorted(seen) == list(range(split.rows)), (before, after, steps)
                assert Counter(rows[p] for p in seen) == Counter(all_rows(split))
                sizes = [len(places(share)) for share in again]
                assert max(sizes) - min(sizes) <= 1


@settings(max_examples=100)
@given(
    st.lists(st.lists(st.integers(0, 13), max_size=6), max_size=4).filter(
        lambda groups: sum(map(sum, groups)) > 0
    ),
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), max_size=5),
    st.integers(1, 9),
)
def test_any_number_of_restarts(
    groups: list[list[int]], shuffle_rows: int, runs: list[tuple[int, int]], batch_size: int
) -> None:
    split = make_split(tuple(tuple(part) for part in groups))
    rows = read_order(split, shuffle_rows=shuffle_rows)
    consumed: list[Interval] = []
    read: list[Row] = []
    for world_size, steps in [*runs, (3, 10_000)]:
        left = remaining_intervals(split.rows, consumed)
        planned = num_steps(left, world_size=world_size, batch_size=batch_size)
        for share in shares_of(left, world_size):
            assert len(places(share)) <= planned * batch_size
            batches = take(share, min(steps, planned) * batch_size)
            read += [rows[place] for place in places(batches)]
            consumed = merge_intervals([*consumed, *batches])
    assert remaining_intervals(split.rows, consumed) == []
    assert Counter(read) == Counter(all_rows(split))


def test_blocks_are_of_one_file_where_a_file_fills_them() -> None:
    split = make_split(((10,) * 12, (10,) * 9, (10,) * 2, (10,)))
    blocks = epoch_order(split, epoch=3, seed=1, shuffle_rows=40)
    files = [len({group.file for group in block.groups}) for block in blocks]
    assert files.count(1) >= 5, "three blocks of the first file, two of the second"
    assert max(files) > 1, "the remaining rows of all files are together"
    assert sum(block.rows for block in blocks) == 240
