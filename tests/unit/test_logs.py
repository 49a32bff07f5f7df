"""Logs -> training set, against plain loops over all earlier rows."""

from collections import Counter

import pytest

from infnet_dist.data.check import check_split
from infnet_dist.data.manifest import read_manifest
from infnet_dist.ingest.logs.run import ingest_logs
from infnet_dist.ingest.logs.sizes import Sizes
from infnet_dist.ingest.logs.stages import one_by_one
from tests.unit.raw_logs import (
    DAY_MS,
    START_MS,
    Truth,
    canonical,
    make_rows,
    read_split,
    settings,
    vocabulary,
    write_logs,
)


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    """Many partitions, chunks, parts and counting tasks, however few the rows."""
    sizes = Sizes(partition=70, chunk=16, part=50, counting=90)
    monkeypatch.setattr("infnet_dist.ingest.logs.job.Sizes.of", lambda config: sizes)


def silent(stage, done, total):
    assert 0 <= done <= total


def ingest(config, folder):
    return ingest_logs(config, folder, one_by_one, silent)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tick_ms", [1000, 3_600_000, DAY_MS])
@pytest.mark.parametrize("refresh", ["live", "daily"])
def test_equals_loops_over_all_earlier_rows(seed, tick_ms, refresh, tmp_path):
    rows = make_rows(seed, tick_ms=tick_ms)
    logs = write_logs(tmp_path / "logs", rows)
    config = settings(logs, refresh=refresh, utc_offset_h=8 * (seed % 2))
    manifest = ingest(config, tmp_path / "set")
    truth = Truth(rows, config, tmp_path / "set")
    valid_from = config.split_starts_ms["valid"]
    for split in ("train", "valid"):
        wanted = [r for r in rows if (r["time_ms"] < valid_from) == (split == "train")]
        expected = [truth.expected(row) for row in wanted]
        names = list(expected[0])
        assert canonical(read_split(tmp_path / "set", split), names) == canonical(expected, names)
        check_split(tmp_path / "set", manifest, manifest.schema_, split=split, rank=0, world_size=1)
    assert read_manifest(tmp_path / "set") == manifest


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("refresh", ["live", "daily"])
@pytest.mark.parametrize("cut_h", [48, 61, 72])
def test_added_logs_know_what_came_before(seed, refresh, cut_h, tmp_path):
    """The rows added hold what they would hold had all logs been ingested at once."""
    rows = sorted(make_rows(seed, tick_ms=600_000), key=lambda row: row["time_ms"])
    cut_ms = START_MS + cut_h * 3_600_000
    old = [row for row in rows if row["time_ms"] < cut_ms]
    new = [row for row in rows if row["time_ms"] >= cut_ms]
    logs, folder = write_logs(tmp_path / "logs" / "old", old).parent, tmp_path / "set"
    config = settings(logs, refresh=refresh, valid_from="2026-01-02")
    first = ingest(config, folder)
    before = {part.file: (folder / part.file).read_bytes() for part in first.split("valid").parts}
    assert ingest(config, folder) is None

    write_logs(logs / "unicode ä and spaces", new, files=2)
    config = settings(logs, refresh=refresh, valid_from="2026-01-04")
    second = ingest(config, folder)
    assert ingest(config, folder) is None
    # What was valid lies before the new valid, so it is train now; no part was written again.
    assert {file: (folder / file).read_bytes() for file in before} == before
    assert before.keys() < {part.file for part in second.split("train").parts}
    truth = Truth(rows, config, folder, version=2)
    found = [
        row for s in second.splits for row in read_split(folder, s) if row["time_ms"] >= cut_ms
    ]
    expected = [truth.expected(row) for row in new]
    assert canonical(found, list(expected[0])) == canonical(expected, list(expected[0]))
    assert sum(split.rows for split in second.splits.values()) == len(rows)
    for split in second.splits:
        check_split(folder, second, second.schema_, split=split, rank=0, world_size=1)


def test_no_id_ever_moves(tmp_path):
    rows = sorted(make_rows(5, items=60), key=lambda row: row["time_ms"])
    logs, folder = tmp_path / "logs", tmp_path / "set"
    write_logs(logs / "0", rows[:200])
    config = settings(logs, valid_from="2026-01-02", tables={"item": {"min_count": 3}})
    ingest(config, folder)
    first = vocabulary(folder, "item")
    write_logs(logs / "1", rows[200:])
    ingest(settings(logs, valid_from="2026-01-04", tables={"item": {"min_count": 3}}), folder)
    second = vocabulary(folder, "item", 2)
    assert first.items() < second.items()
    seen = Counter(row["item_id"] for row in rows if row["time_ms"] < START_MS + 3 * DAY_MS)
    assert set(second) == {item for item, number in seen.items() if number >= 3}
    assert sorted(second.values()) == list(range(1, len(second) + 1))
