"""Logs as they come: bad rows are counted and kept, bad files are named, nothing is lost."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError

from infnet_dist.config.run import parse_config
from infnet_dist.errors import ConfigError, DataError, UserError
from infnet_dist.ingest.logs.pipeline import ingest_logs
from infnet_dist.ingest.logs.stages.runner import one_by_one
from tests.unit.raw_logs import (
    DAY_MS,
    START_MS,
    TYPES,
    Truth,
    canonical,
    make_rows,
    read_split,
    settings,
    vocabulary,
    write_logs,
)


def silent(stage, unit, done, total):
    pass


def ingest(config, folder, execute=one_by_one):
    return ingest_logs(config, folder, execute, silent)


def quarantine(folder):
    files = sorted((folder / "quarantine").rglob("*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def table_of(rows, **types):
    fields = [pa.field(f.name, types.get(f.name, f.type)) for f in TYPES]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def spoil(rows, change):
    """The rows, every 40th of them changed."""
    return [row | change if i % 40 == 7 else row for i, row in enumerate(rows)]


BIG = 2**62 + 2
AUTHORS = [f"author {i}" for i in range(5)]
# change, types of columns, checks, reason
BAD_ROWS = [
    ({"user_id": None}, {}, {"user_id": {"nulls": "quarantine"}}, "user_id: null"),
    ({"item_id": None}, {}, {"item_id": {"nulls": "quarantine"}}, "item_id: null"),
    ({"item_id": -1}, {}, {"item_id": {"min": 0}}, "item_id: below 0"),
    ({"item_id": 10**6}, {}, {"item_id": {"max": 5000}}, "item_id: above 5000"),
    ({"item_id": "x7"}, {"item_id": pa.string()}, {"item_id": {"type": "int"}}, "item_id: not an"),
    ({"item_id": 1.5}, {"item_id": pa.float64()}, {"item_id": {"type": "int"}}, "item_id: not an"),
    (
        {"author": "x"},
        {},
        {"author": {"allowed": [f"author {i}" for i in range(5)]}},
        "author: not",
    ),
    ({"tags": [1, None]}, {}, {}, "tags: not a list of integers"),
    ({"tags": [3, 99]}, {}, {"tags": {"max": 30}}, "tags: above 30"),
    ({"user_id": None}, {}, {}, "user_id: null"),
    (
        {"item_id": 2**62 + 3},
        {"item_id": pa.int64()},
        {"item_id": {"max": 2**62 + 2}},
        "item_id: above",
    ),
    ({"play_ms": 1e300}, {"play_ms": pa.float64()}, {}, "play_ms: not milliseconds"),
    (
        {"time_ms": 4_000_000_000_000},
        {},
        {},
        "time_ms: later than its file by more than ingest.time",
    ),
    ({"duration_s": float("inf")}, {}, {}, "duration_s: not a finite number"),
    ({"age": float("nan")}, {}, {"age": {"nulls": "quarantine"}}, "age: null"),
    ({"is_click": 2}, {}, {}, "is_click: not 0 or 1"),
    ({"is_click": None}, {}, {}, "is_click: null"),
    ({"is_like": -(2**40)}, {}, {}, "is_like: not 0 or 1"),
    ({"play_ms": -5}, {}, {}, "play_ms: below 0"),
    ({"time_ms": START_MS // 1000}, {}, {}, "time_ms: not between 1990 and 2100, read as ms"),
    ({"time_ms": START_MS * 1000}, {}, {}, "time_ms: not between 1990 and 2100, read as ms"),
    ({"time_ms": None}, {}, {}, "time_ms: null"),
]


@pytest.mark.parametrize(("change", "types", "checks", "reason"), BAD_ROWS)
def test_bad_rows_are_kept_with_their_reason(change, types, checks, reason, tmp_path):
    rows = make_rows(1)
    if "item_id" in types:
        kind = str if types["item_id"] == pa.string() else float
        rows = [row | {"item_id": kind(row["item_id"])} for row in rows]
    changed = spoil(rows, change)
    (tmp_path / "logs").mkdir()
    pq.write_table(table_of(changed, **types), tmp_path / "logs" / "a.parquet", row_group_size=90)
    config = settings(tmp_path / "logs", checks=checks, max_bad_share=0.1)
    manifest = ingest(config, tmp_path / "set")
    bad = quarantine(tmp_path / "set")
    numbers = [i for i in range(len(rows)) if i % 40 == 7]
    assert [row["_row"] for row in bad] == numbers
    assert all(row["_reason"].startswith(reason) for row in bad)
    kept = [{k: row[k] for k in TYPES.names} for row in bad]
    assert str(kept) == str(table_of([changed[i] for i in numbers], **types).to_pylist())
    assert list(manifest.ingested.quarantined.values()) == [len(numbers)]
    # What is left is what a log without these rows gives.
    good = [row for i, row in enumerate(rows) if i % 40 != 7]
    good = [row | {"item_id": int(row["item_id"])} for row in good]
    truth = Truth(good, config, tmp_path / "set")
    found = [row for split in ("train", "valid") for row in read_split(tmp_path / "set", split)]
    expected = [truth.expected(row) for row in good]
    assert canonical(found, list(expected[0])) == canonical(expected, list(expected[0]))


def test_too_many_bad_rows_stop_it(tmp_path):
    rows = spoil(make_rows(1), {"is_click": 2})
    rows[3] |= {"play_ms": -1}
    config = settings(write_logs(tmp_path / "logs", rows), max_bad_share=0.02)
    with pytest.raises(DataError) as caught:
        ingest(config, tmp_path / "set")
    message = str(caught.value)
    assert all(part in message for part in ("11 of 400", "ingest.max_bad_share", "0.02"))
    assert "10 x is_click: not 0 or 1" in message and "row 7 of " in message
    assert "is_click=2" in message
    assert "1 x play_ms: below 0" in message
    assert "\n" not in message
    assert not (tmp_path / "set").exists()


def test_null_ids_are_unknown_and_null_labels_may_stay(tmp_path):
    rows = spoil(
        make_rows(1), {"item_id": None, "author": None, "is_like": None, "duration_s": None}
    )
    config = settings(
        write_logs(tmp_path / "logs", rows), checks={"is_like": {"nulls": "keep"}}, counters={}
    )
    manifest = ingest(config, tmp_path / "set")
    assert not manifest.ingested.quarantined
    assert [task.nullable for task in manifest.schema_.tasks] == [False, True, False]
    found = [row for split in ("train", "valid") for row in read_split(tmp_path / "set", split)]
    unknown = [row for row in found if row["label_like"] is None]
    assert len(unknown) == 10
    for row in unknown:
        assert row["item_id"] == row["author"] == 0
        assert row["duration_s"] is None


def test_duplicates_are_dropped_and_quarantined(tmp_path):
    rows = make_rows(2)
    doubled = rows + rows[10:30]
    unique = ["user_id", "item_id", "time_ms"]
    config = settings(write_logs(tmp_path / "logs", doubled), unique=unique, max_bad_share=0.1)
    manifest = ingest(config, tmp_path / "set")
    assert manifest.ingested.quarantined == {"duplicate of an earlier row": 20}
    kept = quarantine(tmp_path / "set")
    key = ["user_id", "item_id", "time_ms"]
    assert sorted([row[k] for k in key] for row in kept) == sorted(
        [row[k] for k in key] for row in rows[10:30]
    )
    assert {Path(row["_file"]).name for row in kept} <= {"log-0.parquet", "log-2.parquet"}
    truth = Truth(rows, config, tmp_path / "set")
    found = [row for split in ("train", "valid") for row in read_split(tmp_path / "set", split)]
    expected = [truth.expected(row) for row in rows]
    assert canonical(found, list(expected[0])) == canonical(expected, list(expected[0]))


def test_times_that_fall_are_quarantined_where_asked(tmp_path):
    rows = sorted(make_rows(3), key=lambda row: row["time_ms"])
    rows[150], rows[250] = rows[250] | {"time_ms": START_MS}, rows[150] | {"time_ms": START_MS + 1}
    logs = write_logs(tmp_path / "logs", rows, files=1)
    time = {"column": "time_ms", "monotone": True}
    manifest = ingest(settings(logs, time=time), tmp_path / "set")
    assert manifest.ingested.quarantined == {"time_ms: earlier than a row before it": 2}


@pytest.mark.parametrize("unit", ["s", "us", "ns", "timestamp", "text"])
def test_times_of_any_unit(unit, tmp_path):
    rows = make_rows(4)
    times = np.array([row["time_ms"] for row in rows])
    scaled = {"s": times // 1000, "us": times * 1000, "ns": times * 1_000_000, "text": times}
    if unit == "timestamp":
        column = pa.array(times, pa.timestamp("ms", "Asia/Shanghai"))
    else:
        column = pa.array(scaled[unit])
    column = column.cast(pa.string()) if unit == "text" else column
    table = table_of(rows)
    place = table.column_names.index("time_ms")
    (tmp_path / "logs").mkdir()
    pq.write_table(table.set_column(place, "time_ms", column), tmp_path / "logs" / "x.parquet")
    time = {"column": "time_ms", "unit": unit if unit in ("s", "us", "ns") else "ms"}
    ingest(settings(tmp_path / "logs", time=time), tmp_path / "set")
    found = [row for split in ("train", "valid") for row in read_split(tmp_path / "set", split)]
    assert sorted(row["time_ms"] for row in found) == sorted(times.tolist())


def test_ids_as_texts_and_hashes(tmp_path):
    """19 digits, a plus sign and the upper half of uint64 are ids like any other."""
    rows = make_rows(4)
    ids = {row["item_id"]: 2**63 + 1_000_003 * row["item_id"] for row in rows}
    (tmp_path / "logs").mkdir()
    table = table_of(rows)
    place = table.column_names.index("item_id")
    large = pa.array([ids[row["item_id"]] for row in rows], pa.uint64())
    pq.write_table(table.set_column(place, "item_id", large), tmp_path / "logs" / "x.parquet")
    ingest(settings(tmp_path / "logs"), tmp_path / "set")
    numbers = vocabulary(tmp_path / "set", "item")
    assert {value % 2**64 for value in numbers} <= set(ids.values())
    texts = [f"+{9 * 10**18 + row['item_id']}" for row in rows]
    pq.write_table(
        table.set_column(place, "item_id", pa.array(texts)), tmp_path / "logs" / "x.parquet"
    )
    config = settings(tmp_path / "logs", checks={"item_id": {"type": "int"}})
    ingest(config, tmp_path / "other")
    assert min(vocabulary(tmp_path / "other", "item")) >= 9 * 10**18


def test_texts_that_are_no_utf8(tmp_path):
    rows = make_rows(4)
    table = table_of(rows)
    texts = [row["author"].encode() for row in rows]
    texts[5] = b"\xff\xfe"
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    broken = pa.StringArray.from_buffers(
        len(texts), pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))
    )
    (tmp_path / "logs").mkdir()
    place = table.column_names.index("author")
    pq.write_table(table.set_column(place, "author", broken), tmp_path / "logs" / "x.parquet")
    manifest = ingest(settings(tmp_path / "logs"), tmp_path / "set")
    assert manifest.ingested.quarantined == {"author: not text": 1}


@pytest.mark.parametrize(
    ("column", "check", "expected"),
    [
        ("item_id", {"allowed": [1, 2.5]}, r"item_id\.allowed.*2\.5.*integers"),
        ("item_id", {"allowed": ["a"]}, r"item_id\.allowed.*'a'.*integers"),
        ("author", {"min": 1}, r"ingest\.checks\.author"),
        ("is_click", {"type": "text"}, r"ingest\.checks\.is_click\.type"),
    ],
)
def test_checks_that_do_not_suit_their_column(column, check, expected, tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1))
    with pytest.raises(ConfigError, match=expected):
        ingest(settings(logs, checks={column: check}), tmp_path / "set")


def test_nulls_are_no_duplicates(tmp_path):
    rows = [row | {"item_id": 2**53 + i} for i, row in enumerate(make_rows(1))]
    rows[7] |= {"item_id": None}
    rows[8] |= {"item_id": None, "time_ms": rows[7]["time_ms"], "user_id": rows[7]["user_id"]}
    (tmp_path / "logs").mkdir()
    pq.write_table(table_of(rows, item_id=pa.int64()), tmp_path / "logs" / "x.parquet")
    manifest = ingest(settings(tmp_path / "logs", unique=["user_id", "item_id"]), tmp_path / "set")
    assert not manifest.ingested.quarantined


def test_a_repaired_file_is_read_the_next_time(tmp_path):
    rows = sorted(make_rows(1, rows=300), key=lambda row: row["time_ms"])
    logs = write_logs(tmp_path / "logs", rows)
    whole = (logs / "log-2.parquet").read_bytes()
    truncate(logs / "log-2.parquet")
    config = settings(logs, skip_bad_files=True, valid_from="2026-01-02")
    first = ingest(config, tmp_path / "set")
    assert sum(split.rows for split in first.splits.values()) == 200
    (logs / "log-2.parquet").write_bytes(whole)
    second = ingest(config, tmp_path / "set")
    assert sum(split.rows for split in second.splits.values()) == 300
    assert not second.ingested.unreadable


def test_two_jobs_at_once(tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1))

    def meanwhile(tasks):
        with pytest.raises(DataError, match=rf"{tmp_path}/set"):
            ingest(settings(logs), tmp_path / "set")
        yield from one_by_one(tasks)

    ingest(settings(logs), tmp_path / "set", meanwhile)
    assert not list(tmp_path.glob(".*"))


def test_days_that_would_mix_splits_are_refused(tmp_path):
    rows = sorted(make_rows(1, days=6), key=lambda row: row["time_ms"])
    cut = next(i for i, row in enumerate(rows) if row["time_ms"] >= START_MS + 3 * DAY_MS)
    write_logs(tmp_path / "logs" / "0", rows[:cut])
    days = {"valid_from": "2026-01-02", "test_from": "2026-01-03"}
    ingest(settings(tmp_path / "logs", gap_h=6, **days), tmp_path / "set")
    write_logs(tmp_path / "logs" / "1", rows[cut:])

    def extend(**days):
        return ingest(settings(tmp_path / "logs", gap_h=6, **days), tmp_path / "set")

    with pytest.raises(DataError, match=r"ingest\.valid_from.*2026-01-.*ingest\.gap_h"):
        extend(valid_from="2026-01-04T02:00", test_from="2026-01-06")
    with pytest.raises(DataError, match=r"ingest\.test_from.*valid_from"):
        extend(valid_from="2026-01-02", test_from="2026-01-06")
    with pytest.raises(DataError, match=r"split test .*ingest\."):
        extend(valid_from="2026-01-05", test_from="2026-03-06")
    manifest = extend(valid_from="2026-01-05", test_from="2026-01-06")
    ends = {name: split.time_range_ms for name, split in manifest.splits.items()}
    assert ends["train"][1] < START_MS + 4 * DAY_MS - 6 * 3_600_000
    assert START_MS + 4 * DAY_MS <= ends["valid"][0] and ends["valid"][1] < ends["test"][0]


def test_a_missing_or_renamed_column_is_named(tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1))
    table = pq.read_table(logs / "log-1.parquet").rename_columns(
        ["clik" if name == "is_click" else name for name in TYPES.names]
    )
    pq.write_table(table, logs / "log-1.parquet")
    with pytest.raises(DataError, match=r"log-1\.parquet.*'is_click'"):
        ingest(settings(logs), tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("tags", pa.int64(), "'tags'.*int64.*list of integers"),
        ("item_id", pa.list_(pa.int64()), "'item_id'.*integer"),
        ("duration_s", pa.list_(pa.float64()), "'duration_s'.*number"),
        ("time_ms", pa.list_(pa.int64()), "'time_ms'.*time"),
    ],
)
def test_a_column_of_another_kind_is_named(name, kind, expected, tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1))
    table = pq.read_table(logs / "log-1.parquet")
    nulls = pa.nulls(len(table), kind)
    table = table.set_column(table.column_names.index(name), name, nulls)
    pq.write_table(table, logs / "log-1.parquet")
    with pytest.raises(DataError, match=expected) as caught:
        ingest(settings(logs), tmp_path / "set")
    assert "log-1.parquet" in str(caught.value)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def corrupt_a_page(path):
    found = bytearray(path.read_bytes())
    offset = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    found[offset : offset + 60] = bytes(60)
    path.write_bytes(bytes(found))


@pytest.mark.parametrize("break_it", [truncate, corrupt_a_page, lambda path: path.write_bytes(b"")])
def test_an_unreadable_file_is_named_or_left_out(break_it, tmp_path):
    rows = make_rows(1, rows=300)
    logs = write_logs(tmp_path / "logs", rows)
    break_it(logs / "log-1.parquet")
    with pytest.raises(DataError, match=r"log-1\.parquet.*ingest\.skip_bad_files"):
        ingest(settings(logs), tmp_path / "set")
    config = settings(logs, skip_bad_files=True)
    manifest = ingest(config, tmp_path / "set")
    assert [Path(name).name for name in manifest.ingested.unreadable] == ["log-1.parquet"]
    left = rows[:100] + rows[200:]
    found = [row for split in ("train", "valid") for row in read_split(tmp_path / "set", split)]
    expected = [Truth(left, config, tmp_path / "set").expected(row) for row in left]
    assert canonical(found, list(expected[0])) == canonical(expected, list(expected[0]))


def test_files_and_row_groups_without_rows_do_no_harm(tmp_path):
    rows = make_rows(1)
    logs = write_logs(tmp_path / "logs", rows)
    pq.write_table(table_of([]), logs / "empty.parquet")
    with pq.ParquetWriter(logs / "groups.parquet", TYPES) as writer:
        writer.write_table(table_of([]))
        writer.write_table(table_of(rows[:5]))
        writer.write_table(table_of([]))
    manifest = ingest(settings(logs), tmp_path / "set")
    assert sum(split.rows for split in manifest.splits.values()) == len(rows) + 5


def test_one_user_with_most_events(tmp_path):
    rows = [row | {"user_id": 5} for row in make_rows(1, rows=100_000, days=4)]
    for i, row in enumerate(rows):
        row["time_ms"] = START_MS + i * 3_000
    logs = tmp_path / "logs"
    logs.mkdir()
    pq.write_table(table_of(rows), logs / "x.parquet")
    config = settings(logs, counters={}, memory_mib=16)
    ingest(config, tmp_path / "set")
    newest = max(read_split(tmp_path / "set", "valid"), key=lambda row: row["time_ms"])
    assert newest["exposed_gap_s"] == [3, 6, 9, 12, 15, 18]


def test_unicode_and_spaces_everywhere(tmp_path):
    rows = make_rows(1)
    logs = write_logs(tmp_path / "lögs of ¹ day" / "日本 語", rows)
    folder = tmp_path / "sét of data"
    manifest = ingest(settings(logs.parent), folder)
    assert sum(split.rows for split in manifest.splits.values()) == len(rows)
    assert [path.name for path in tmp_path.iterdir() if "work" in path.name] == []


def test_csv_gives_what_parquet_gives(tmp_path):
    rows = make_rows(1)
    changes = {"lists": {}, "tables": {}}
    ingest(settings(write_logs(tmp_path / "logs", rows), **changes), tmp_path / "a")
    (tmp_path / "csv").mkdir()
    table = table_of(rows).drop_columns(["tags"])
    for i in range(2):
        pa.csv.write_csv(table.slice(200 * i, 200), tmp_path / "csv" / f"{i}.csv")
    changes |= {"checks": {"author": {"type": "text"}}}
    ingest(settings(tmp_path / "csv", format="csv", **changes), tmp_path / "b")
    for split in ("train", "valid"):
        one, other = (read_split(tmp_path / name, split) for name in "ab")
        assert canonical(one, list(one[0])) == canonical(other, list(one[0]))


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path):
    rows = make_rows(1)
    logs = write_logs(tmp_path / "logs", rows)

    def changing(tasks):
        os.utime(logs / "log-2.parquet", ns=(1, 1))
        yield from one_by_one(tasks)

    with pytest.raises(DataError, match=r"log-2\.parquet.*changed"):
        ingest(settings(logs), tmp_path / "set", changing)
    assert not (tmp_path / "set").exists()


def test_a_file_that_changed_after_its_ingest_is_refused(tmp_path):
    rows = make_rows(1)
    logs = write_logs(tmp_path / "logs", rows)
    ingest(settings(logs), tmp_path / "set")
    before = (tmp_path / "set" / "manifest.json").read_bytes()
    write_logs(logs, rows[:-1])
    with pytest.raises(DataError, match=r"log-\d\.parquet.*changed"):
        ingest(settings(logs), tmp_path / "set")
    assert (tmp_path / "set" / "manifest.json").read_bytes() == before


def test_late_rows_are_quarantined_when_logs_are_added(tmp_path):
    rows = sorted(make_rows(1), key=lambda row: row["time_ms"])
    logs = tmp_path / "logs"
    write_logs(logs / "0", rows[:220])
    ingest(settings(logs, valid_from="2026-01-02"), tmp_path / "set")
    write_logs(logs / "1", [*rows[220:], rows[10], rows[20]])
    config = settings(logs, valid_from="2026-01-04", max_bad_share=0.1)
    second = ingest(config, tmp_path / "set")
    assert second.ingested.quarantined == {"time_ms: not later than what the training set holds": 2}
    assert sum(split.rows for split in second.splits.values()) == len(rows)


def test_other_settings_are_refused(tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1))
    ingest(settings(logs), tmp_path / "set")
    with pytest.raises(DataError, match=r"ingest\.gap_h: .*0\.0.*2\.0"):
        ingest(settings(logs, gap_h=2), tmp_path / "set")


def test_valid_days_that_cut_what_is_there_are_refused(tmp_path):
    rows = sorted(make_rows(1), key=lambda row: row["time_ms"])
    write_logs(tmp_path / "logs" / "0", rows[:300])
    ingest(settings(tmp_path / "logs", valid_from="2026-01-02"), tmp_path / "set")
    write_logs(tmp_path / "logs" / "1", rows[300:])
    with pytest.raises(DataError, match=r"ingest\.valid_from.*2026-01-\d\d [:0-9]+ UTC"):
        ingest(settings(tmp_path / "logs", valid_from="2026-01-03"), tmp_path / "set")


def test_a_split_without_rows_is_named(tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1))
    with pytest.raises(DataError, match=r"split valid .*2026-01-01 "):
        ingest(settings(logs, valid_from="2027-01-04"), tmp_path / "set")


def mount(folder, options):
    """A small disk of its own at a folder; the test is skipped where nothing can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")


def test_an_output_that_is_read_only(tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1))
    mount(tmp_path / "disk", "ro")
    try:
        with pytest.raises(DataError, match=r"disk.*Read-only file system"):
            ingest(settings(logs), tmp_path / "disk" / "set")
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)


def test_a_day_needs_no_quotes(tmp_path):
    given = yaml.safe_load("{valid_from: 2026-01-04, test_from: 2026-01-05 06:00:00}")
    quoted = settings(tmp_path, valid_from="2026-01-04", test_from="2026-01-05T06:00:00")
    assert settings(tmp_path, **given) == quoted


@pytest.mark.parametrize("what", ["truncated", "corrupt page", "empty"])
def test_new_files_that_add_nothing(what, tmp_path):
    """Again and again: no error, nothing changed, and nothing left behind."""
    logs = write_logs(tmp_path / "logs", make_rows(1))
    config = settings(logs, skip_bad_files=True)
    ingest(config, tmp_path / "set")
    before = (tmp_path / "set" / "manifest.json").read_bytes()
    later = [row | {"time_ms": row["time_ms"] + 9 * DAY_MS} for row in make_rows(2, rows=200)]
    write_logs(logs / "new", [] if what == "empty" else later, files=1)
    if what != "empty":
        (truncate if what == "truncated" else corrupt_a_page)(logs / "new" / "log-0.parquet")
    for _ in range(2):
        assert ingest(config, tmp_path / "set") is None
        assert (tmp_path / "set" / "manifest.json").read_bytes() == before
        assert not list(tmp_path.glob(".*"))


def test_an_output_that_is_a_file(tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1))
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match=r"/out .*File exists"):
        ingest(settings(logs), tmp_path / "out" / "set")


def test_a_full_disk_loses_nothing(tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1, rows=30_000))
    disk = tmp_path / "disk"
    mount(disk, "size=1m")
    try:
        with pytest.raises(DataError, match=r"disk.*No space left"):
            ingest(settings(logs, counters={}), disk / "set")
        assert not (disk / "set").exists()
        subprocess.run(["mount", "-o", "remount,size=400m", str(disk)], check=True)
        manifest = ingest(settings(logs, counters={}), disk / "set")
        assert sum(split.rows for split in manifest.splits.values()) == 30_000
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match=r"ingest\.path.*/none"):
        ingest(settings(tmp_path / "none"), tmp_path / "set")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"ingest\.path.*\.parquet.*/empty"):
        ingest(settings(tmp_path / "empty"), tmp_path / "set")
    with pytest.raises(UserError, match="nosuch"):
        ingest(settings("nosuch://x/y"), tmp_path / "set")


IDS = {"user_id": "user", "item_id": "item", "author": "author"}
LISTS = {"is_click": {"table": "tag"}}
JOINS = {
    "a": {"path": "x", "key": "boss", "columns": ["author"]},
    "b": {"path": "x", "key": "item_id", "columns": ["boss"]},
}
WRONG = [
    ({"ids": {"user_id": "user", "item_id": "item"}}, ("'author'",)),
    ({"tables": {"itm": {}}}, ("tables", "'itm'", "'item'")),
    ({"checks": {"itemid": {}}}, ("checks", "'itemid'", "'item_id'")),
    ({"unique": ["item_id"]}, ("unique", "'user_id'")),
    ({"tasks": {}, "watch_time": None}, ("tasks", "watch_time")),
    ({"valid_from": "soon"}, ("valid_from", "'soon'")),
    ({"train_from": "2026-02-01"}, ("train_from", "valid_from", "test_from")),
    ({"tables": {"tag": {"encoding": "hash"}}}, ("tables.tag", "hash", "num_embeddings")),
    ({"dense": {"item_id": {}}}, ("'item_id'",)),
    ({"dense": {"play_ms": {}}}, ("'play_ms'", "label")),
    ({"ids": IDS | {"is_click": "leak"}}, ("'is_click'", "label")),
    ({"lists": LISTS}, ("'is_click'", "label")),
    ({"checks": {"user_id": {"nulls": "keep"}}}, ("checks.user_id",)),
    ({"tasks": {"a.b": "is_click"}}, ("'a.b'",)),
    ({"counters": {"_key": {"by": ["item_id"]}}}, ("'_key'",)),
    ({"joins": JOINS}, ("joins.a", "'boss'")),
]


@pytest.mark.parametrize(("change", "expected"), WRONG)
def test_wrong_settings(change, expected, tmp_path):
    given = settings(tmp_path).model_dump(mode="json") | change
    with pytest.raises(ConfigError) as caught:
        parse_config({"ingest": given, "data": {"path": "x"}})
    assert all(part in str(caught.value) for part in ("ingest", *expected))
    with pytest.raises(ValidationError):
        settings(tmp_path, **change)


def test_roles_that_do_not_agree(tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1))
    with pytest.raises(ConfigError, match=r"'time_ms'.*time"):
        ingest(settings(logs, dense={"time_ms": {}}), tmp_path / "set")
    texts = {"ids": {"user_id": "user", "item_id": "item", "author": "item"}}
    with pytest.raises(ConfigError, match=r"'item'.*'author'"):
        ingest(settings(logs, **texts), tmp_path / "set")
    behaviours = {"item_id": {"ids": ["item_id"]}}
    with pytest.raises((ConfigError, ValidationError), match="'item_id'"):
        ingest(settings(logs, behaviours=behaviours), tmp_path / "set")
