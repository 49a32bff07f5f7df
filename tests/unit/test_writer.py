"""Writing a training set: complete or absent, never over something else."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infnet_dist.data.manifest import read_manifest
from infnet_dist.errors import DataError
from infnet_dist.ingest.writing.existing import training_set_is_current
from infnet_dist.ingest.writing.writer import TrainingSetWriter
from tests.unit.test_reader import SCHEMA, make_set, make_table


@pytest.mark.parametrize(("rows_per_part", "row_group_rows"), [(10, 4), (7, 7), (100, 3), (5, 50)])
@pytest.mark.parametrize("chunk", [1, 6, 23, 100])
def test_parts_and_row_groups(
    tmp_path: Path, rows_per_part: int, row_group_rows: int, chunk: int
) -> None:
    table = make_table(23)
    with TrainingSetWriter(
        tmp_path / "s", rows_per_part=rows_per_part, row_group_rows=row_group_rows, source={}
    ) as writer:
        for start in range(0, 23, chunk):
            writer.write("train", table.slice(start, chunk))
        manifest = writer.publish(SCHEMA)
    split = manifest.split("train")
    assert split.rows == 23
    assert sum(part.rows for part in split.parts) == 23
    for part in split.parts:
        assert part.rows <= rows_per_part
        assert max(part.row_groups) <= row_group_rows
        metadata = pq.ParquetFile(tmp_path / "s" / part.file).metadata
        found = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        assert found == part.row_groups
    written = [
        row
        for part in split.parts
        for row in pq.read_table(tmp_path / "s" / part.file)["row"].to_pylist()
    ]
    assert written == list(range(23))
    assert split.time_range_ms == (0, 22)
    assert split.base_rates == {"click": pytest.approx(11 / 23)}
    assert read_manifest(tmp_path / "s") == manifest


def test_int64_are_never_null(tmp_path: Path) -> None:
    table = make_table(12).append_column("watched", pa.array([None, *range(11)], pa.int64()))
    settings = {"rows_per_part": 5, "row_group_rows": 5, "source": {}}
    with TrainingSetWriter(tmp_path / "s", **settings, nullable=["watched"]) as writer:
        writer.write("train", table)
        writer.publish(SCHEMA)
    columns = pq.read_schema(tmp_path / "s" / "train" / "part-00000.parquet")
    lists = [name for name in columns.names if name.startswith("click_")]
    assert lists and not any(columns.field(name).type.value_field.nullable for name in lists)
    full = [field.name for field in columns if not field.nullable]
    assert full == ["row", "user", "time_ms"]
    assert pq.read_table(tmp_path / "s" / "train")["watched"].to_pylist() == [None, *range(11)]

    with_null = table.set_column(0, "row", pa.array([*range(11), None]))
    lists = [[1, None], *[[]] * 11]
    with_null_item = table.set_column(2, "click_row", pa.array(lists, pa.list_(pa.int64())))
    for bad, message in [(with_null, "'row' with null values"), (with_null_item, "'element'")]:
        with pytest.raises(ValueError, match=message):
            with TrainingSetWriter(tmp_path / "t", **settings, nullable=["watched"]) as writer:
                writer.write("train", bad)
                writer.publish(SCHEMA)
        assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_nothing_is_left_of_a_failed_or_unpublished_set(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk gone"):
        with TrainingSetWriter(
            tmp_path / "s", rows_per_part=5, row_group_rows=5, source={}
        ) as writer:
            writer.write("train", make_table(12))
            raise OSError("disk gone")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_set_stays_untouched(tmp_path: Path) -> None:
    make_set(tmp_path / "s", 12, rows_per_part=5, row_group_rows=5)
    before = {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}
    with pytest.raises(DataError, match=rf"{tmp_path}/s.*data\.path"):
        make_set(tmp_path / "s", 20, rows_per_part=5, row_group_rows=5)
    with pytest.raises(DataError, match=rf"{tmp_path}/s.*ingest\.source.*other"):
        training_set_is_current(tmp_path / "s", {"source": "other"})
    assert training_set_is_current(tmp_path / "s", {})
    assert before == {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}


def test_foreign_and_empty_folders(tmp_path: Path) -> None:
    assert not training_set_is_current(tmp_path / "absent", {})
    (tmp_path / "mine").mkdir()
    assert not training_set_is_current(tmp_path / "mine", {})
    (tmp_path / "mine" / "notes.txt").write_text("dear diary")
    with pytest.raises(DataError, match=rf"{tmp_path}/mine.*data\.path"):
        training_set_is_current(tmp_path / "mine", {})
    with pytest.raises(DataError, match=rf"{tmp_path}/none"):
        make_set(tmp_path / "none", 0, rows_per_part=5, row_group_rows=5)
    assert not (tmp_path / "none").exists()


def test_the_hash_depends_on_the_content(tmp_path: Path) -> None:
    one = make_set(tmp_path / "a", 12, rows_per_part=5, row_group_rows=5)
    same = make_set(tmp_path / "b", 12, rows_per_part=5, row_group_rows=5)
    other = make_set(tmp_path / "c", 13, rows_per_part=5, row_group_rows=5)
    assert one.content_hash == same.content_hash != other.content_hash


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "set").symlink_to(tmp_path / "disk" / "real")
    make_set(tmp_path / "set", 9, rows_per_part=5, row_group_rows=5)
    assert (tmp_path / "set").is_symlink()
    assert (tmp_path / "disk" / "real" / "manifest.json").is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


def test_a_link_around_in_a_circle_is_named(tmp_path: Path) -> None:
    (tmp_path / "set").symlink_to("set")
    with pytest.raises(DataError, match=r"data\.path: .*/set"):
        make_set(tmp_path / "set", 9, rows_per_part=5, row_group_rows=5)


@pytest.mark.parametrize("change", ["changed", "is gone", "is new"])
def test_raw_files_that_changed_are_named(tmp_path: Path, change: str) -> None:
    raw = tmp_path / "raw"
    (raw / "part").mkdir(parents=True)
    for name in ("a", "part/b"):
        (raw / name).write_text(name)
    source = {"path": str(raw)}
    folder = raw / "set"  # its own files aren't raw ones
    with TrainingSetWriter(folder, rows_per_part=9, row_group_rows=9, source=source) as writer:
        writer.write("train", make_table(12))
        writer.publish(SCHEMA)
    assert training_set_is_current(folder, source)
    if change == "changed":
        (raw / "part" / "b").write_text("longer")
    elif change == "is gone":
        (raw / "part" / "b").unlink()
    else:
        (raw / "part" / "b2").write_text("")
    name = "b2" if change == "is new" else "b"
    with pytest.raises(DataError, match=rf"part/{name} {change}"):
        training_set_is_current(folder, source)
