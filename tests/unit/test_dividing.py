"""Train and valid divided at a time (`data.valid_from`), against the times in the Parquet files."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from infnet_dist.config.window import WindowConfig
from infnet_dist.data.checks.footers import check_split
from infnet_dist.data.manifest import Manifest, Split, read_manifest
from infnet_dist.data.reader import Reader
from infnet_dist.data.window.dividing import divide_at
from infnet_dist.data.window.selection import select_window
from infnet_dist.errors import DataError
from infnet_dist.ingest.writing.writer import TrainingSetWriter
from infnet_dist.training.setup import open_for_training, open_training_set
from tests.runs import make_config
from tests.unit.test_reader import SCHEMA, make_table, rows_of

# Rows by split, in random order; row i happens at i ms. Parts have 20 rows.
WHOLE = {"train": range(100)}
DIVIDED = {"train": range(60), "valid": range(60, 100), "test": range(100, 110)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A training set without valid, and one with valid and test."""
    place = tmp_path_factory.mktemp("data")
    for name, splits in (("whole", WHOLE), ("divided", DIVIDED)):
        sizes = {"rows_per_part": 20, "row_group_rows": 7}
        with TrainingSetWriter(place / name, **sizes, source={}) as writer:
            for split, rows in splits.items():
                order = np.random.default_rng(3).permutation(rows)
                writer.write(split, make_table(110).take(order))
            writer.publish(SCHEMA)
    return {name: place / name for name in ("whole", "divided")}


def times(folder: Path, *splits: str) -> list[int]:
    """The times in the files of some splits, in ascending order."""
    files = [path for split in splits for path in (folder / split).glob("*.parquet")]
    return sorted(t for path in files for t in pq.read_table(path)["time_ms"].to_pylist())


def read(folder: Path, manifest: Manifest, split: str) -> list[int]:
    """The rows of a split, in ascending order, with all checks of a run."""
    found = check_split(folder, manifest, SCHEMA, split=split, rank=0, world_size=1)
    assert manifest.with_fingerprints(split, found) == manifest
    settings = {"batch_size": 8, "rank": 0, "world_size": 1, "shuffle_rows": 20}
    reader = Reader(folder, manifest, SCHEMA, split, **settings)
    return sorted(row for batch in reader.batches(0) for row in rows_of(batch))


@pytest.mark.parametrize("name", ["whole", "divided"])
@pytest.mark.parametrize("at_ms", [1, 37, 60, 83, 99])
def test_rows_before_a_time_are_train_and_all_others_valid(
    folders: dict[str, Path], name: str, at_ms: int
) -> None:
    folder = folders[name]
    there = times(folder, "train", "valid")
    manifest = divide_at(folder, read_manifest(folder), at_ms)
    for split, expected in (
        ("train", [t for t in there if t < at_ms]),
        ("valid", [t for t in there if t >= at_ms]),
    ):
        assert manifest.split(split).rows == len(expected)
        assert read(folder, manifest, split) == expected
    if name == "divided":
        assert manifest.split("test") == read_manifest(folder).split("test")


@pytest.mark.parametrize(("first", "last", "at_ms"), [(30, 70, 50), (45, 48, 50), (30, 99, 31)])
def test_a_part_is_cut_by_data_valid_from_and_then_by_a_window(
    folders: dict[str, Path], first: int, last: int, at_ms: int
) -> None:
    folder = folders["whole"]  # each part has rows of all times
    divided = divide_at(folder, read_manifest(folder), at_ms)
    window = WindowConfig.model_validate({"from": first, "to": last})
    manifest = select_window(folder, divided, window)
    there = times(folder, "train")
    end = min(last, at_ms - 1)
    assert read(folder, manifest, "train") == [t for t in there if first <= t <= end]
    assert read(folder, manifest, "valid") == [t for t in there if t >= at_ms]


def test_last_days_end_before_data_valid_from(folders: dict[str, Path]) -> None:
    folder = folders["whole"]
    divided = divide_at(folder, read_manifest(folder), 50)
    manifest = select_window(folder, divided, WindowConfig(last_days=10 / 86_400_000))
    assert read(folder, manifest, "train") == list(range(40, 50))


@pytest.mark.parametrize("name", ["whole", "divided"])
@pytest.mark.parametrize(("at_ms", "empty"), [(0, "train"), (-5, "train"), (100, "valid")])
def test_a_side_without_rows_is_an_error(
    folders: dict[str, Path], name: str, at_ms: int, empty: str
) -> None:
    folder = folders[name]
    with pytest.raises(DataError, match=rf"data\.valid_from.* no rows for {empty}"):
        divide_at(folder, read_manifest(folder), at_ms)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_unknown_times_are_an_error(folders: dict[str, Path], split: str) -> None:
    folder = folders["divided"]
    manifest = read_manifest(folder)
    old = without_times(manifest.split(split))
    with pytest.raises(DataError, match=rf"data\.valid_from.*{split}/part-00000.*ingest again"):
        divide_at(folder, manifest.model_copy(update={"splits": manifest.splits | {split: old}}), 5)


def without_times(split: Split) -> Split:
    """The split as earlier versions wrote it."""
    parts = tuple(part.model_copy(update={"time_range_ms": None}) for part in split.parts)
    return split.model_copy(update={"parts": parts})


def test_a_set_without_valid_needs_data_valid_from(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    sections: dict[str, Any] = {"data": {"batch_size": 8}, "tables": {"overrides": {}}}
    config = make_config(folders["whole"], tmp_path, **sections)
    with pytest.raises(DataError, match=r"split 'valid'.*data\.valid_from"):
        open_for_training(config)
    with pytest.raises(DataError, match="unknown split 'test'") as found:
        open_training_set(config)[0].split("test")
    assert "valid_from" not in str(found.value), "it makes no test"
    data = config.data.model_copy(update={"valid_from": 90})
    manifest, _ = open_for_training(config.model_copy(update={"data": data}))
    assert (manifest.split("train").rows, manifest.split("valid").rows) == (90, 10)
