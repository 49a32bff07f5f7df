"""Logs in many files and places, as users lay them out: nothing twice, nothing left out unsaid."""

import gzip
import logging
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from infnet_dist.data.manifest import read_manifest
from infnet_dist.errors import DataError
from infnet_dist.ingest.histories import Packing
from infnet_dist.ingest.logs.pipeline import ingest_logs
from infnet_dist.ingest.logs.reading.files import fragments, list_files
from infnet_dist.ingest.logs.stages.runner import one_by_one
from infnet_dist.ingest.report import write_report
from tests.unit.raw_logs import (
    TYPES,
    Truth,
    canonical,
    make_rows,
    read_split,
    settings,
    write_logs,
)


def ingest(config, folder):
    return ingest_logs(config, folder, one_by_one, lambda *progress: None)


def check(rows, config, folder):
    found = [row for split in ("train", "valid") for row in read_split(folder, split)]
    expected = [Truth(rows, config, folder).expected(row) for row in rows]
    assert canonical(found, list(expected[0])) == canonical(expected, list(expected[0]))


def as_csv(rows, path):
    table = pa.Table.from_pylist(rows, TYPES).drop_columns(["tags"])
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.csv.write_csv(table, path)
    return path


def csv_settings(path, **changes):
    plain = {"lists": {}, "tables": {}, "checks": {"author": {"type": "text"}}}
    return settings(path, format="csv", **(plain | changes))


def test_rows_are_read_once(tmp_path):
    rows = make_rows(1)
    logs = write_logs(tmp_path / "logs", rows)
    os.symlink(".", logs / "loop")
    os.link(logs / "log-0.parquet", logs / "other.parquet")
    shutil.copy(logs / "log-1.parquet", logs / "log-9.parquet")
    config = settings(logs)
    manifest = ingest(config, tmp_path / "set")
    check(rows, config, tmp_path / "set")
    left_out = {Path(path).name for path in manifest.files_left_out}
    assert left_out == {"loop", "other.parquet", "log-9.parquet"}
    os.link(logs / "log-2.parquet", logs / "a.parquet")
    assert ingest(config, tmp_path / "set") is None


def test_files_of_other_formats_are_in_the_log_and_the_report(tmp_path, caplog):
    rows = make_rows(1)
    logs = write_logs(tmp_path / "logs", rows)
    for name in ("b.csv", "d.txt", "_SUCCESS"):
        (logs / name).write_text("x")
    with caplog.at_level(logging.INFO):
        manifest = ingest(settings(logs), tmp_path / "set")
    page = write_report(tmp_path / "set", manifest).read_text()
    for name in ("b.csv", "d.txt", "_SUCCESS"):
        assert str(logs / name) in read_manifest(tmp_path / "set").files_left_out
        assert str(logs / name) in caplog.text
        assert str(logs / name) in page


@pytest.mark.parametrize("ending", [".CSV", ".csv.gz", ".CSV.GZ", ".csv.zst", ".csv.bz2"])
def test_csv_of_any_ending_beside_another(ending, tmp_path):
    rows = make_rows(1)
    as_csv(rows[:200], tmp_path / "logs" / "a.csv")
    plain = as_csv(rows[200:], tmp_path / "b.csv")
    codec = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}.get(ending.lower().rpartition(".")[2])
    with pa.OSFile(str(tmp_path / "logs" / f"b{ending}"), "wb") as file:
        with pa.CompressedOutputStream(file, codec) if codec else file as sink:
            sink.write(plain.read_bytes())
    ingest(csv_settings(tmp_path / "logs"), tmp_path / "set")
    as_csv(rows, tmp_path / "whole" / "x.csv")
    ingest(csv_settings(tmp_path / "whole"), tmp_path / "expected")
    for split in ("train", "valid"):
        one, other = (read_split(tmp_path / name, split) for name in ("set", "expected"))
        assert canonical(one, list(one[0])) == canonical(other, list(one[0]))


@pytest.mark.parametrize("ending", [".tsv", ".tsv.gz"])
def test_tabs_of_tsv(ending, tmp_path):
    rows = make_rows(1)
    plain = as_csv(rows, tmp_path / "csv" / "x.csv").read_text()
    (tmp_path / "logs").mkdir()
    with (gzip.open if ending.endswith("gz") else open)(
        tmp_path / "logs" / f"x{ending}", "wb"
    ) as f:
        f.write(plain.replace(",", "\t").encode())
    ingest(csv_settings(tmp_path / "csv"), tmp_path / "expected")
    ingest(csv_settings(tmp_path / "logs"), tmp_path / "set")
    for split in ("train", "valid"):
        one, other = (read_split(tmp_path / name, split) for name in ("set", "expected"))
        assert canonical(one, list(one[0])) == canonical(other, list(one[0]))


def test_a_link_to_nothing_is_a_file_that_cannot_be_read(tmp_path):
    rows = make_rows(1)
    logs = write_logs(tmp_path / "logs", rows)
    os.symlink("gone", logs / "dead.parquet")
    with pytest.raises(DataError, match=r"dead\.parquet .*ingest\.skip_bad_files"):
        ingest(settings(logs), tmp_path / "set")
    manifest = ingest(settings(logs, skip_bad_files=True), tmp_path / "set")
    assert list(manifest.ingested.unreadable) == [str(logs / "dead.parquet")]


def twice(table, name):
    return table.append_column(name, table[name])


@pytest.mark.parametrize("name", ["item_id", "is_click", "time_ms", "author"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_twice_is_refused(kind, name, tmp_path):
    logs = tmp_path / "logs"
    table = twice(pa.Table.from_pylist(make_rows(1), TYPES).drop_columns(["tags"]), name)
    logs.mkdir()
    if kind == "csv":
        pa.csv.write_csv(table, logs / "a.csv")
    else:
        pq.write_table(table, logs / "a.parquet")
    config = csv_settings(logs) if kind == "csv" else settings(logs, lists={}, tables={})
    with pytest.raises(DataError) as caught:
        ingest(config, tmp_path / "set")
    assert f"a.{kind}" in str(caught.value) and f"'{name}'" in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_names_of_columns_are_compared_exactly(tmp_path):
    rows = make_rows(1)
    table = pa.Table.from_pylist(rows, TYPES)
    for other in ("Item_id", "item_id ", "unused", "unused"):
        table = table.append_column(other, pa.nulls(len(rows), pa.int64()))
    (tmp_path / "logs").mkdir()
    pq.write_table(table, tmp_path / "logs" / "a.parquet")
    config = settings(tmp_path / "logs")
    ingest(config, tmp_path / "set")
    check(rows, config, tmp_path / "set")


@pytest.mark.parametrize("name", ["item_id", "author"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_twice_in_a_side_table_is_refused(suffix, name, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    rows = pa.Table.from_pylist(make_rows(1), TYPES)
    pq.write_table(rows.drop_columns(["author"]), logs / "x.parquet")
    side = twice(pa.table({"item_id": [7, 14], "author": ["a", "b"]}), name)
    path = tmp_path / f"items.{suffix}"
    (pa.csv.write_csv if suffix == "csv" else pq.write_table)(side, path)
    join = {"path": str(path), "key": "item_id", "columns": ["author"]}
    with pytest.raises(DataError) as caught:
        ingest(settings(logs, joins={"items": join}), tmp_path / "set")
    assert path.name in str(caught.value) and f"'{name}'" in str(caught.value)


def test_newlines_in_quotes(tmp_path):
    """In files of more than Arrow's blocks of 1 MiB."""
    rows = [row | {"author": f"{row['author']}\n" + "x" * 9_000} for row in make_rows(1)]
    path = as_csv(rows, tmp_path / "logs" / "a.csv")
    assert path.stat().st_size > 3 << 20
    config = csv_settings(tmp_path / "logs")
    ingest(config, tmp_path / "set")
    found = [row for split in ("train", "valid") for row in read_split(tmp_path / "set", split)]
    expected = [Truth(rows, config, tmp_path / "set").expected(row) for row in rows]
    names = ["author", "item_id", "time_ms", "click_author", "label_click"]
    assert canonical(found, names) == canonical(expected, names)


def test_a_quote_that_is_never_closed_is_explained(tmp_path):
    path = as_csv(make_rows(1), tmp_path / "logs" / "a.csv")
    with path.open("a") as file:
        file.write('1,2,"' + "x," * (10 << 20))
    with pytest.raises(DataError, match=r"a\.csv can't be read .*quote") as caught:
        ingest(csv_settings(tmp_path / "logs"), tmp_path / "set")
    assert "newlines_in_values" not in str(caught.value)
    assert "block" not in str(caught.value)


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_rows_of_a_csv_file_are_estimated_by_a_sample(ending, tmp_path):
    """However well it is compressed: 1.2 million rows of 2 MB are no tenth of that."""
    rows, logs = 1_200_000, tmp_path / "logs"
    logs.mkdir()
    text = b"user_id,item_id\n" + b"1234567,7654321\n" * rows
    with (gzip.open if ending == "csv.gz" else open)(logs / f"a.{ending}", "wb") as file:
        file.write(text)
    config = csv_settings(logs)
    found, bad = fragments(config, list_files(config).files)
    assert not bad
    assert [fragment.rows for fragment in found] == [pytest.approx(rows, rel=0.05)]


def test_packed_numbers_and_times_keep_their_order():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 3_000_000, 1_000)
    times = 1_700_000_000_000 + rng.integers(0, 60_000_000_000, 1_000)
    keys = Packing(times)(numbers, times)
    assert np.array_equal(np.argsort(keys, kind="stable"), np.lexsort((times, numbers)))
    pack = Packing(times)
    assert np.all(pack(numbers, times - 10**12) <= keys)
    assert np.all(pack(numbers, times - 10**12) == pack(numbers, np.zeros_like(times)))
    with pytest.raises(DataError, match="users"):
        Packing(np.array([0, 2**42]))(np.array([2**22]), np.array([5]))
    assert len(Packing(times[:0])(numbers[:0], times[:0])) == 0


def test_a_target_behind_a_link(tmp_path):
    rows = make_rows(1)
    logs = write_logs(tmp_path / "logs", rows)
    (tmp_path / "disk" / "real").mkdir(parents=True)
    os.symlink(tmp_path / "disk" / "real", tmp_path / "set")
    config = settings(logs)
    ingest(config, tmp_path / "set")
    check(rows, config, tmp_path / "set")
    assert (tmp_path / "set").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]
    assert ingest(config, tmp_path / "set") is None


def test_a_target_that_is_a_mount_point_is_refused_at_once(tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1))
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=9m", "none", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")

    def no_work(tasks):
        raise AssertionError("work before the check")

    try:
        with pytest.raises(DataError, match=r"data\.path: .*/disk is a mount point.*/disk/set"):
            ingest_logs(settings(logs), disk, no_work, lambda *progress: None)
        ingest(settings(logs), disk / "set")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_training_set_among_its_logs_is_not_read(tmp_path):
    rows = make_rows(1)
    write_logs(tmp_path / "all" / "logs", rows)
    config = settings(tmp_path / "all")
    ingest(config, tmp_path / "all" / "set")
    check(rows, config, tmp_path / "all" / "set")
    assert ingest(config, tmp_path / "all" / "set") is None


def test_unknown_ids_are_warned_about(tmp_path, caplog):
    rows = make_rows(1)
    config = settings(write_logs(tmp_path / "quiet", rows))
    with caplog.at_level(logging.WARNING):
        ingest(config, tmp_path / "one")
    assert "item_id" not in caplog.text
    late = config.split_starts_ms["valid"]
    rows = [row | {"item_id": 1_000 + i} if row["time_ms"] >= late else row
            for i, row in enumerate(rows)]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        ingest(settings(write_logs(tmp_path / "new", rows)), tmp_path / "other")
    (message,) = [r.message for r in caplog.records if "item_id" in r.message]
    assert message.startswith("valid: ")
    assert "item_id of table item (100%, in train 0%)" in message
    assert "author" not in message


@pytest.mark.parametrize("items", [50, 20_000])
def test_unseen_values_of_hashed_tables_are_warned_about(items, tmp_path, caplog):
    """Below the size of a sketch exactly, beyond it nearly."""
    rows = make_rows(1, rows=30 * items if items < 100 else items, items=items)
    config = settings(
        write_logs(tmp_path / "logs", rows),
        tables={
            "item": {"encoding": "hash", "num_embeddings": 1_000},
            "tag": {"encoding": "raw", "num_embeddings": 9},
        },
        counters={},
        behaviours={},
        row_group_rows=5_000,
    )
    late = config.split_starts_ms["valid"]
    train = {row["item_id"] for row in rows if row["time_ms"] < late}
    valid = [row["item_id"] for row in rows if row["time_ms"] >= late]
    with caplog.at_level(logging.WARNING):
        hashed = ingest(config, tmp_path / "set").ingested.hashed
    share = sum(item not in train for item in valid) / len(valid)
    assert hashed["item"].unseen == pytest.approx(share, abs=0 if items < 100 else 0.03)
    assert ("item (" in caplog.text) == (share > 0.1) == (items > 100)
    assert hashed["tag"].unseen == 0


@pytest.mark.parametrize("known", [0, 3, 12])
def test_joins_without_a_match_are_warned_about(known, tmp_path, caplog):
    rows = make_rows(1)
    logs = tmp_path / "logs"
    logs.mkdir()
    table = pa.Table.from_pylist(rows, TYPES)
    pq.write_table(table.drop_columns(["author"]), logs / "x.parquet")
    keys = [7 * i for i in range(known)] + [10_001]
    side = pa.table({"item_id": keys, "author": [f"a{i % 5}" for i in keys]})
    pq.write_table(side, tmp_path / "items.parquet")
    join = {"path": str(tmp_path / "items.parquet"), "key": "item_id", "columns": ["author"]}
    with caplog.at_level(logging.WARNING):
        ingest(settings(logs, joins={"items": join}), tmp_path / "set")
    warned = [r.message for r in caplog.records if "joins.items" in r.message]
    without = sum(row["item_id"] not in keys for row in rows)
    assert len(warned) == (known < 12)
    assert all(f"{without} of 400 rows" in message for message in warned)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"behaviours": {"b": {"ids": ["item_id"], "length": 10**9}}}, "length"),
        ({"tables": {"item": {"num_embeddings": 10**18}}}, "num_embeddings"),
        ({"checks": {"item_id": {"allowed": [1, 2**64]}}}, "allowed"),
        ({"checks": {"item_id": {"min": -(2**63) - 1}}}, "min"),
        ({"checks": {"item_id": {"min": 3, "max": 2}}}, "max"),
        ({"lists": {"tags": {"table": "tag", "max_length": 10**9}}}, "max_length"),
        ({"dense": {"age": {"num_buckets": 10**9}}}, "num_buckets"),
        ({"dense": {"age": {"buckets": None, "num_buckets": 7}}}, "num_buckets"),
        ({"gap_h": 1e300}, "gap_h"),
        ({"time": {"max_ahead_h": 1e300}}, "max_ahead_h"),
        ({"row_group_rows": 10**12}, "row_group_rows"),
        ({"seed": 2**70}, "seed"),
        ({"memory_mib": 10**15}, "memory_mib"),
        ({"refresh": "daily", "behaviours": {}, "counters": {}}, "refresh"),
        (
            {"joins": {"a": {"path": "x", "key": "item_id", "columns": ["author", "unused"]}}},
            "unused",
        ),
        (
            {"tables": {"item": {"encoding": "hash", "num_embeddings": 9, "num_hashes": 2}}}
            | {"dense": {"item_id_2": {}}},
            "item_id_2",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(change, key, tmp_path):
    with pytest.raises(ValidationError) as caught:
        settings(tmp_path, **change)
    assert key in str(caught.value)
