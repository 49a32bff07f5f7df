"""Bad training sets: each gets a clear error that names file, row group, column and value."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from infnet_dist.data.checks.footers import (
    check_columns,
    check_enough_rows,
    check_split,
    count_orphan_positives,
)
from infnet_dist.data.manifest import read_manifest
from infnet_dist.data.part_files import ChangedError
from infnet_dist.errors import ConfigError, DataError
from infnet_dist.schema import Task
from infnet_dist.training.setup import open_for_training, open_training_set
from tests.hostile_parquet import forget_fingerprints
from tests.runs import make_config, make_tiny_set
from tests.unit.test_reader import make_set

PART = "train/part-00000.parquet"


def check(folder: Path) -> None:
    manifest = read_manifest(folder)
    check_split(folder, manifest, manifest.schema_, split="train", rank=0, world_size=1)


def rewrite(folder: Path, column: str, change: Any, **options: Any) -> None:
    """Replace a column of the first part by `change(column)`, keeping the row groups."""
    table = pq.read_table(folder / PART)
    place = table.column_names.index(column)
    changed = pa.chunked_array([change(table.column(column).combine_chunks())])
    table = table.set_column(place, column, changed)
    pq.write_table(table, folder / PART, row_group_size=10, **options)
    forget_fingerprints(folder)


def set_value(row: int, value: object) -> Any:
    def change(column: pa.Array) -> pa.Array:
        values = column.to_pylist()
        values[row] = value
        return pa.array(values, column.type)

    return change


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_set(tmp_path / "set", 40, rows_per_part=100, row_group_rows=10)
    return tmp_path / "set"


def test_a_good_set_passes(folder: Path) -> None:
    check(folder)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("row", 23, 1_000_000, r"row group 2, column 'row'.* 1000000, .*'row' .* 999999"),
        ("row", 3, -1, r"row group 0, column 'row'.* -1, .*'row'"),
        ("click_author", 35, [50], r"row group 3, column 'click_author'.* 50, .*'author'"),
        ("label", 11, 2, r"row group 1, column 'label'.* 2, .*'click'"),
        ("label", 11, None, r"row group 1, column 'label'.* 1 null"),
        ("user", 30, None, r"row group 3, column 'user'.* 1 null"),
        (
            "age",
            12,
            float("nan"),
            r"row group 1, column 'age': got nan, a dense feature must be finite",
        ),
        ("price", 12, float("inf"), r"row group 1, column 'price'.* inf"),
        ("age", 39, None, r"row group 3, column 'age'.* 1 null"),
    ],
)
def test_bad_values(
    folder: Path, column: str, row: int, value: object, message: str, statistics: bool
) -> None:
    rewrite(folder, column, set_value(row, value), write_statistics=statistics)
    with pytest.raises(DataError, match=PART + ", " + message):
        check(folder)


def test_missing_column_and_wrong_type(folder: Path) -> None:
    table = pq.read_table(folder / PART)
    pq.write_table(table.drop_columns(["click_author"]), folder / PART, row_group_size=10)
    forget_fingerprints(folder)
    with pytest.raises(DataError, match=r"part-00000\.parquet.*'click_author'"):
        check(folder)
    wrong = table.set_column(0, "row", pc.cast(table.column("row"), pa.string()))
    pq.write_table(wrong, folder / PART, row_group_size=10)
    with pytest.raises(DataError, match=r"'row'.*string.*int64"):
        manifest = read_manifest(folder)
        check_columns(folder, manifest, manifest.schema_)


def test_rows_differ_from_the_manifest(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / PART).slice(5), folder / PART, row_group_size=10)
    with pytest.raises(ChangedError, match=PART):
        check(folder)
    forget_fingerprints(folder)
    with pytest.raises(DataError, match=r"part-00000\.parquet.* 35 .* 40 "):
        check(folder)


def test_missing_or_unreadable_part(folder: Path) -> None:
    (folder / PART).write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"part-00000\.parquet"):
        check(folder)
    (folder / PART).unlink()
    with pytest.raises(DataError, match=r"part-00000\.parquet"):
        check(folder)


def test_missing_empty_or_malformed_folder(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"absent.*infnet ingest"):
        read_manifest(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        read_manifest(tmp_path / "empty")
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"manifest\.json.*JSON"):
        read_manifest(folder)
    content = json.loads(text)
    content["splits"]["train"]["rows"] = -4
    manifest.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"splits\.train\.rows: .*greater than or equal to 1"):
        read_manifest(folder)
    content["splits"]["train"]["rows"] = 41
    manifest.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"splits\.train: .*41.* 40 "):
        read_manifest(folder)
    manifest.write_text(json.dumps(json.loads(text) | {"format_version": 9}))
    with pytest.raises(DataError, match=r"manifest\.json.*format 9.* 1"):
        read_manifest(folder)


def test_too_few_rows(folder: Path, tmp_path: Path) -> None:
    config = make_config(
        folder, tmp_path, data={"path": str(folder), "batch_size": 21}, tables={"overrides": {}}
    )
    with pytest.raises(DataError, match="split 'valid'"):
        open_for_training(config)
    check_enough_rows(64, split="train", num_workers=2, batch_size=32)
    with pytest.raises(DataError, match=r"63 rows.* 2 workers x 32 rows"):
        check_enough_rows(63, split="train", num_workers=2, batch_size=32)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("features", ["row", "clik"], "feature 'clik'.*'click'"),
        ("tasks", ["clicks"], "task 'clicks'.*'click'"),
        ("features", ["age"], "categorical or bucketised feature"),
    ],
)
def test_selection(folder: Path, tmp_path: Path, key: str, value: object, message: str) -> None:
    config = make_config(
        folder, tmp_path, data={"path": str(folder), key: value}, tables={"overrides": {}}
    )
    with pytest.raises(DataError, match=message):
        open_training_set(config)
    assert np.array_equal(pq.read_table(folder / PART)["row"], np.arange(40))  # untouched


def test_names_elsewhere_in_the_config(folder: Path, tmp_path: Path) -> None:
    tables = {"overrides": {"autor": {"sharding_types": ["row_wise"]}}}
    config = make_config(folder, tmp_path, tables=tables)
    message = "tables.overrides: unknown table 'autor'; did you mean 'author'"
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        open_training_set(config)
    weights = {"task_weights": {"clicks": 2.0}}
    config = make_config(folder, tmp_path, tables={"overrides": {}}, training=weights)
    with pytest.raises(ConfigError, match=r"training\.task_weights.*'clicks'.*'click'"):
        open_training_set(config)
    # a table that exists but isn't read is no mistake: features are left out for ablations
    tables = {"overrides": {"author": {"sharding_types": ["row_wise"]}}}
    data = {"path": str(folder), "features": ["row"]}
    open_training_set(make_config(folder, tmp_path, tables=tables, data=data))


def test_positives_without_their_parent_are_counted(tmp_path: Path) -> None:
    folder = make_tiny_set(tmp_path / "tiny", num_rows=2_000)
    manifest = read_manifest(folder)
    rows = pq.ParquetDataset(folder / "train").read(columns=["click", "like"]).to_pylist()
    expected = sum(row["like"] > row["click"] for row in rows), sum(row["like"] for row in rows)
    found = count_orphan_positives(folder, manifest, manifest.schema_, task="like", under="click")
    assert found == expected and found[0] > 0


def test_an_unknown_parent_is_none(folder: Path) -> None:
    """Row i has label i % 2; its parent is unknown, 0, 1 in turn."""
    table = pq.read_table(folder / PART)
    parent = pa.array([(None, 0, 1)[i % 3] for i in range(len(table))], pa.int8())
    pq.write_table(table.append_column("parent", parent), folder / PART, row_group_size=10)
    forget_fingerprints(folder)
    manifest = read_manifest(folder)
    task = manifest.schema_.tasks[0]
    schema = manifest.schema_.model_copy(
        update={"tasks": (task, Task(name="parent", column="parent", nullable=True))}
    )
    known = [i for i in range(len(table)) if i % 3 and i % 2]
    found = count_orphan_positives(folder, manifest, schema, task="click", under="parent")
    assert found == (sum(i % 3 == 1 for i in known), len(known))
