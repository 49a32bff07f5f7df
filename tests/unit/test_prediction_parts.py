"""Parts of a prediction, their shares, scores, and names of keys."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infnet_dist.errors import ConfigError, DataError
from infnet_dist.prediction import layout
from infnet_dist.prediction.layout import cut_parts, default_part_rows, num_steps, shares
from infnet_dist.prediction.scores import Scores
from infnet_dist.prediction.sources.source import InputFile, InputGroup, group_sizes
from infnet_dist.schema import Task
from ray_jobs.predict import _keys

SIZES = st.lists(st.lists(st.integers(0, 50), max_size=6).map(tuple), max_size=8)


def files_of(sizes: list[tuple[int, ...]]) -> list[InputFile]:
    return [InputFile(f"{i}.parquet", "", groups) for i, groups in enumerate(sizes)]


@given(SIZES, st.integers(1, 120))
def test_parts_have_every_row_group_once_in_order(sizes: list, rows_per_part: int) -> None:
    parts = cut_parts(files_of(sizes), rows_per_part)
    found = [group for part in parts for group in part.groups]
    assert found == [
        InputGroup(file, number, rows)
        for file, groups in enumerate(sizes)
        for number, rows in enumerate(groups)
        if rows
    ]
    assert [part.number for part in parts] == list(range(len(parts)))
    for part in parts:
        assert part.rows - part.groups[-1].rows < rows_per_part, "no more groups than needed"
    assert all(part.rows >= rows_per_part for part in parts[:-1])
    names = [part.name for part in parts]
    assert names == sorted(names)


@given(SIZES, st.integers(1, 5), st.integers(1, 40))
def test_shares_are_of_each_part_once_and_about_equal(
    sizes: list, world_size: int, batch_size: int
) -> None:
    parts = cut_parts(files_of(sizes), 10)
    shared = shares(parts, world_size, batch_size)
    assert sorted(part for mine in shared for part in mine) == list(parts)
    assert all(list(mine) == sorted(mine) for mine in shared)
    batches = [math.ceil(part.rows / batch_size) for part in parts]
    fair = sum(batches) / world_size
    assert num_steps(shared, batch_size) <= fair + max(batches, default=0)


def test_the_size_of_parts_follows_the_input() -> None:
    assert default_part_rows(1_000, 512) == 16 * 512
    assert default_part_rows(10**7, 512) == 10**7 // 256
    assert default_part_rows(10**10, 512) == 1_000_000


def test_more_parts_than_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_MOST_PARTS", 3)
    files = files_of([(1, 1, 1, 1)])
    with pytest.raises(DataError, match="--rows-per-part 1"):
        cut_parts(files, 1)
    assert len(cut_parts(files, 2)) == 2


def test_a_footer_that_promises_too_many_rows_is_refused() -> None:
    with pytest.raises(DataError, match=r"x\.parquet, row group 1.*900000000"):
        group_sizes("x.parquet", [3, 900_000_000])


def test_scores_by_hand() -> None:
    tasks = (
        Task(name="click", column="click"),
        Task(name="watch", column="watch", kind="watch_time", mean_ms=2_000.0),
        Task(name="like", column="like"),
    )
    logits_BK = torch.tensor([[0.5, 0.0, -3.0], [-40.0, 1.5, 9.0]])
    found = Scores(tasks, ["click", "watch"])(logits_BK)
    for b, (z, t, _) in enumerate(logits_BK.tolist()):
        expected = [1 / (1 + math.exp(-z)), 2_000 * math.exp(t), z, t]
        assert found[b].tolist() == pytest.approx(expected, rel=1e-6)


def test_keys_may_be_renamed() -> None:
    assert _keys(["user_id", "label=click"]) == {"user_id": "user_id", "label": "click"}
    for words in (["=click"], ["a", "a=b"]):
        with pytest.raises(ConfigError, match="NAME=COLUMN"):
            _keys(words)
