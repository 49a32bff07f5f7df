"""KuaiRand: what is read of its folder, and counters that are refreshed in valid as in train."""

import logging
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from infnet_dist.errors import ConfigError, DataError
from tests.contrib.test_kuairand import (
    DAY_MS,
    LABELS,
    VALID_FROM_MS,
    ingest,
    make_raw_logs,
    read_split,
    write_csv,
    write_slice,
)

SIGNALS = {"click": "is_click", "long_view": "long_view", "like": "is_like"}
KEYS = {
    "user": ["user_id"],
    "video": ["video_id"],
    "author": ["author_id"],
    "user_author": ["user_id", "author_id"],
}


def long_valid():
    """Logs with three days of valid, in which users and videos appear that aren't in train."""
    logs = make_raw_logs(num_rows=400)
    late = logs["rows"]["time_ms"] >= VALID_FROM_MS
    again = [logs["rows"][late].assign(time_ms=lambda r, d=d: r["time_ms"] + d * DAY_MS)
             for d in (1, 2)]  # fmt: skip
    logs["rows"] = pd.concat([logs["rows"], *again], ignore_index=True)
    return logs


@pytest.mark.parametrize("refresh", ["daily", "live"])
def test_counters_know_all_events_up_to_their_refresh(refresh, tmp_path):
    logs = long_valid()
    ingest(write_csv(tmp_path / "csv", logs), tmp_path / "set", refresh=refresh)
    rows = logs["rows"].merge(logs["videos"][["video_id", "author_id"]], on="video_id")
    train = rows[rows["time_ms"] < VALID_FROM_MS]
    made = pd.concat([read_split(tmp_path / "set", s).to_pandas() for s in ("train", "valid")])
    changing = 0
    for row in made.itertuples():
        author = rows.loc[rows["video_id"] == row.video_id, "author_id"].iloc[0]
        mine = {"user_id": row.user_id, "video_id": row.video_id, "author_id": author}
        until = row.time_ms
        if refresh == "daily":
            day = pd.Timestamp(until, unit="ms", tz="Asia/Shanghai").normalize()
            until = day.value // 1_000_000
        for name, keys in KEYS.items():
            same = np.logical_and.reduce([rows[key] == mine[key] for key in keys])
            events = rows[same & (rows["time_ms"] < until)]
            assert getattr(row, f"{name}_impressions") == len(events)
            changing += (events["time_ms"] >= VALID_FROM_MS).any()
            for signal, column in SIGNALS.items():
                rate = getattr(row, f"{name}_{signal}_rate")
                if len(events):
                    prior = train[column].mean()
                    expected = (events[column].sum() + 10 * prior) / (len(events) + 10)
                    assert rate == pytest.approx(expected, rel=1e-5)
                else:
                    assert np.isnan(rate)
    assert changing > 100


def test_files_that_are_not_read_are_named(tmp_path, caplog):
    folder = write_slice(tmp_path / "raw", make_raw_logs())
    for name in ("video_stats.parquet", "README.md", "interactions_more.parquet"):
        (folder / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        manifest = ingest(folder, tmp_path / "set")
    for name in ("video_stats.parquet", "README.md", "interactions_more.parquet"):
        assert str(folder / name) in manifest.files_left_out
        assert name in caplog.text


def test_a_test_file_is_read_into_test_or_refused(tmp_path):
    logs = long_valid()
    test_ms = VALID_FROM_MS + 2 * DAY_MS
    late = logs["rows"]["time_ms"] >= test_ms
    whole = ingest(write_csv(tmp_path / "csv", logs), tmp_path / "a", test_from="2022-05-06")
    tests = logs["rows"][late]
    folder = write_slice(tmp_path / "raw", logs | {"rows": logs["rows"][~late]})
    tests.to_parquet(folder / "interactions_test.parquet", index=False)
    with pytest.raises(ConfigError, match=r"ingest\.test_from.*interactions_test\.parquet"):
        ingest(folder, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    made = ingest(folder, tmp_path / "b", test_from="2022-05-06")
    assert {s: split.rows for s, split in made.splits.items()} == {
        s: split.rows for s, split in whole.splits.items()
    }
    assert made.split("test").rows == late.sum()
    for split in whole.splits:
        assert read_split(tmp_path / "a", split).equals(read_split(tmp_path / "b", split))


def test_logs_are_read_once(tmp_path):
    logs = make_raw_logs()
    folder = write_csv(tmp_path / "csv", logs)
    place = folder / "data"
    shutil.copy(place / "log_standard_4_08_to_4_21_pure.csv", place / "log_standard_copy.csv")
    os.symlink("log_standard_4_22_to_5_08_pure.csv", place / "log_standard_9.csv")
    manifest = ingest(folder, tmp_path / "set")
    assert sum(split.rows for split in manifest.splits.values()) == len(logs["rows"])
    left_out = {path.rpartition("/")[2] for path in manifest.files_left_out}
    assert {"log_standard_copy.csv", "log_standard_9.csv"} < left_out


def test_one_file_for_two_is_refused(tmp_path):
    folder = write_slice(tmp_path / "raw", make_raw_logs())
    (folder / "interactions_valid.parquet").unlink()
    os.link(folder / "interactions_train.parquet", folder / "interactions_valid.parquet")
    with pytest.raises(DataError, match=r"interactions_valid\.parquet.*interactions_train"):
        ingest(folder, tmp_path / "set")


@pytest.mark.parametrize("what", ["log_standard_4_22_to_5_08_pure", "user_features_pure"])
def test_a_column_twice_is_refused(what, tmp_path):
    folder = write_csv(tmp_path / "csv", make_raw_logs())
    path = folder / "data" / f"{what}.csv"
    head, rest = path.read_text().split("\n", 1)
    lines = [f"{line},{line.split(',')[0]}" for line in rest.splitlines()]
    name = head.split(",")[0]
    path.write_text("\n".join([f"{head},{name}", *lines]) + "\n")
    if name in ("date", "comment_stay_time"):  # not read
        name = LABELS[0]
        path.write_text(path.read_text().replace(head.split(",")[0], name))
    with pytest.raises(DataError) as caught:
        ingest(folder, tmp_path / "set")
    assert path.name in str(caught.value) and f"'{name}'" in str(caught.value)


def test_tasks_that_are_too_rare_are_named(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        ingest(write_csv(tmp_path / "csv", make_raw_logs()), tmp_path / "set")
    assert "is_hate" in caplog.text
