"""Lists gathered through views against plain loops over rows."""

import numpy as np
import pytest
import torch

from infnet_dist.data.decode import Columns, Lists
from infnet_dist.data.row_views import Rows, RowShuffler, concatenate


def join(parts: list[Columns], order: np.ndarray | None = None) -> Rows:
    return RowShuffler()(parts, np.arange(sum(map(len, parts))) if order is None else order)


def make_columns(rng: np.random.Generator, rows: int, longest: int) -> tuple[Columns, list]:
    """A row group with two keys, and its rows: (id, first list, second list)."""
    lists, expected = {}, []
    for key in ("first", "second"):
        lengths = rng.integers(0, longest + 1, rows).astype(np.int32)
        values = rng.integers(-(2**62), 2**62, lengths.sum() + 3)  # three that no list owns
        starts = (3 + np.cumsum(lengths) - lengths).astype(np.int32)
        lists[key] = Lists(starts, lengths, values)
        pairs = zip(starts, lengths, strict=True)
        expected.append([values[start : start + length].tolist() for start, length in pairs])
    ids = rng.integers(0, 1_000, rows)
    return Columns({"ids": [ids], "group": [ids]}, lists), [*zip(ids, *expected, strict=True)]


def assert_holds(rows: Rows, expected: list[tuple[int, list[int], list[int]]]) -> None:
    """Ids, lengths and items are those of a loop over rows."""
    ids, first, second = zip(*expected, strict=True) if expected else ((), (), ())
    assert rows.scalars["ids"][0].tolist() == [*ids]
    assert rows.lengths("first").tolist() == [len(items) for items in first]
    everything = [item for key in (first, second) for items in key for item in items]
    found = rows.items(["first", "second"])
    assert found.dtype == torch.int64
    assert found.tolist() == everything
    found = rows.items(["first", "second"], before=rows.scalars["ids"])
    assert found.tolist() == [*ids, *everything]


@pytest.mark.parametrize("longest", [0, 1, 2, 3, 40])
@pytest.mark.parametrize("groups", [(5,), (1, 1), (30, 0, 7, 50)])
def test_items_are_gathered_as_by_a_loop(groups: tuple[int, ...], longest: int) -> None:
    rng = np.random.default_rng(longest)
    blocks, expected = [], []
    for _ in range(2):
        made = [make_columns(rng, rows, longest) for rows in groups]
        rows = [row for _, rows in made for row in rows]
        order = rng.permutation(len(rows))
        blocks.append(join([columns for columns, _ in made], order))
        expected.append([rows[i] for i in order])
    picked, wanted = [], []
    for block, rows in zip(blocks, expected, strict=True):
        assert_holds(block, rows)
        for some in (slice(0, 1), slice(1, len(rows) // 2 + 1)):
            picked.append(block[some])
            wanted += rows[some]
            assert_holds(picked[-1], rows[some])
            assert_holds(picked[-1].own(), rows[some])
    assert_holds(concatenate(picked), wanted)
    assert_holds(blocks[0][:0], [])


def test_first_items() -> None:
    lists = Lists(np.array([0, 2], np.int32), np.array([2, 3], np.int32), np.arange(5))
    block = join([Columns({"group": [np.zeros(2, np.int64)]}, {"k": lists.first(1)})])
    assert block.items(["k"]).tolist() == [0, 2]


def test_gathered_items_outlive_their_row_groups() -> None:
    made = [make_columns(np.random.default_rng(i), 40, 30) for i in range(2)]
    items = join([columns for columns, _ in made]).items(["first"])
    expected = [item for _, rows in made for row in rows for item in row[1]]
    del made
    items += 1  # the memory is the tensor's alone
    assert items.tolist() == [item + 1 for item in expected]
