"""Logs -> training set, against plain loops over all earlier rows."""

import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infnet_dist.data.checks.footers import check_split
from infnet_dist.data.manifest import read_manifest
from infnet_dist.data.reader import Reader
from infnet_dist.errors import DataError
from infnet_dist.ingest.logs.pipeline import ingest_logs
from infnet_dist.ingest.logs.stages.runner import one_by_one, processes
from infnet_dist.ingest.logs.task_sizes import TaskSizes
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
    sizes = TaskSizes(partition=70, chunk=16, part=50, count=90)
    monkeypatch.setattr("infnet_dist.ingest.logs.task_sizes.TaskSizes.of", lambda config: sizes)


def silent(stage, unit, done, total):
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
@pytest.mark.parametrize(
    ("cut_h", "unit", "monotone"), [(48, "s", True), (61, "us", False), (72, "ms", True)]
)
def test_added_logs_know_what_came_before(seed, refresh, cut_h, unit, monotone, tmp_path):
    """The rows added hold what they would hold had all logs been ingested at once."""
    rows = sorted(make_rows(seed, tick_ms=600_000), key=lambda row: row["time_ms"])
    per_ms = {"s": 0.001, "ms": 1, "us": 1000}[unit]
    time = {"column": "time_ms", "unit": unit, "monotone": monotone}

    def write(folder, some, files=3):
        scaled = [row | {"time_ms": int(row["time_ms"] * per_ms)} for row in some]
        return write_logs(folder, scaled, files=files)

    cut_ms = START_MS + cut_h * 3_600_000
    old = [row for row in rows if row["time_ms"] < cut_ms]
    new = [row for row in rows if row["time_ms"] >= cut_ms]
    logs, folder = write(tmp_path / "logs" / "old", old).parent, tmp_path / "set"
    config = settings(logs, refresh=refresh, valid_from="2026-01-02", time=time)
    first = ingest(config, folder)
    before = {part.file: (folder / part.file).read_bytes() for part in first.split("valid").parts}
    assert ingest(config, folder) is None

    write(logs / "unicode ä and spaces", new, files=2)
    config = settings(logs, refresh=refresh, valid_from="2026-01-04", time=time)
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


@pytest.mark.parametrize("seed", range(4))
def test_many_additions(seed, tmp_path, monkeypatch):
    """Five ingests with different task sizes and duplicates equal one ingest of all logs."""
    rng = np.random.default_rng(seed)
    rows = sorted(make_rows(seed, rows=500, tick_ms=900_000), key=lambda row: row["time_ms"])
    times = sorted({row["time_ms"] for row in rows})
    cuts = [times[i] for i in sorted(rng.choice(np.arange(40, len(times) - 5), 4, replace=False))]
    folder, logs = tmp_path / "set", tmp_path / "logs"
    config = settings(
        logs, valid_from="2026-01-01T06:00", refresh=["live", "daily"][seed % 2], max_bad_share=0.5
    )
    config = config.model_copy(update={"unique": ("user_id", "item_id", "author", "time_ms")})
    edges, kept = [0, *cuts, times[-1] + 1], []
    for version, (start, stop) in enumerate(pairwise(edges), 1):
        sizes = TaskSizes(
            *(int(rng.integers(*ends)) for ends in ((20, 200), (9, 60), (30, 90), (5, 90)))
        )
        monkeypatch.setattr(
            "infnet_dist.ingest.logs.task_sizes.TaskSizes.of", lambda config, s=sizes: s
        )
        new = [row for row in rows if start <= row["time_ms"] < stop]
        new = list({tuple(row[c] for c in config.unique): row for row in new[::-1]}.values())[::-1]
        kept += new
        write_logs(logs / str(version), [*new, *new[:7]])
        manifest = ingest(config, folder)
        truth = Truth(kept, config, folder, version)
        found = [row for split in manifest.splits for row in read_split(folder, split)]
        found = [row for row in found if row["time_ms"] >= start]
        expected = [truth.expected(row) for row in new]
        assert canonical(found, list(expected[0])) == canonical(expected, list(expected[0]))


class StopError(Exception):
    pass


@pytest.mark.parametrize("moves", [0, 1, 4, 9])
@pytest.mark.parametrize("same_plan", [True, False])
def test_killed_while_files_are_moved_in(moves, same_plan, tmp_path, monkeypatch):
    rows = sorted(make_rows(2), key=lambda row: row["time_ms"])
    cut = next(i for i in range(250, 400) if rows[i]["time_ms"] != rows[i - 1]["time_ms"])
    logs = tmp_path / "logs"
    write_logs(logs / "0", rows[:cut])
    config = settings(logs, valid_from="2026-01-02")
    for folder in (tmp_path / "killed", tmp_path / "whole"):
        ingest(config, folder)
    write_logs(logs / "1", rows[cut:])
    replace, done = Path.replace, []

    def dying(self, target):
        if len(done) == moves and ".killed.work" in str(self):
            raise StopError
        done.extend([self] if ".killed.work" in str(self) else [])
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(StopError):
            ingest(config, tmp_path / "killed")
    if not same_plan:
        config = settings(logs, valid_from="2026-01-02", seed=3)
        sizes = TaskSizes(partition=400, chunk=100, part=300, count=900)
        monkeypatch.setattr("infnet_dist.ingest.logs.task_sizes.TaskSizes.of", lambda config: sizes)
    second = ingest(config, tmp_path / "killed")
    assert ingest(config, tmp_path / "whole").content_hash == second.content_hash
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_set_of_an_earlier_version_can_be_extended(tmp_path):
    """Its manifest has keys and values under the names that they had then."""
    rows = sorted(make_rows(1), key=lambda row: row["time_ms"])
    tables = {"tag": {"encoding": "hash", "num_embeddings": 50}, "item": {"min_count": 2}}
    for name, edit in (("old", True), ("new", False)):
        logs, folder = tmp_path / name / "logs", tmp_path / name / "set"
        write_logs(logs / "0", rows[:220])
        ingest(settings(logs, valid_from="2026-01-02", tables=tables), folder)
        if edit:
            manifest = json.loads((folder / "manifest.json").read_text())
            source = manifest["source"]
            source["numbers"] = source.pop("dense")
            assert source["tables"]["item"]["encoding"] == "vocabulary"
            source["tables"]["item"]["encoding"] = "dense"
            (folder / "manifest.json").write_text(json.dumps(manifest))
        write_logs(logs / "1", rows[220:])
        ingest(settings(logs, valid_from="2026-01-04", tables=tables), folder)
    old, new = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")}
        for folder in (tmp_path / "old" / "set", tmp_path / "new" / "set")
    )
    assert old == new


def test_no_id_ever_moves(tmp_path):
    rows = sorted(make_rows(5, items=60), key=lambda row: row["time_ms"])
    logs, folder = tmp_path / "logs", tmp_path / "set"
    write_logs(logs / "0", rows[:200])
    config = settings(logs, valid_from="2026-01-02", tables={"item": {"min_count": 3}})
    before = ingest(config, folder)
    first = vocabulary(folder, "item")
    write_logs(logs / "1", rows[200:])
    ingest(settings(logs, valid_from="2026-01-04", tables={"item": {"min_count": 3}}), folder)
    second = vocabulary(folder, "item", 2)
    assert first.items() < second.items()
    assert read_manifest(folder).ingested.grew_from == (before.content_hash,)
    fingerprints = [
        [p.fingerprint for s in m.splits.values() for p in s.parts]
        for m in (before, read_manifest(folder))
    ]
    assert None not in fingerprints[0] and {*fingerprints[0]} < {*fingerprints[1]}
    part = next(folder.glob("train/*.parquet"))
    part.write_bytes(part.read_bytes()[:-1000])
    with pytest.raises(DataError, match=part.name):
        ingest(settings(logs, valid_from="2026-01-04", tables={"item": {"min_count": 3}}), folder)
    seen = Counter(row["item_id"] for row in rows if row["time_ms"] < START_MS + 3 * DAY_MS)
    assert set(second) == {item for item, number in seen.items() if number >= 3}
    assert sorted(second.values()) == list(range(1, len(second) + 1))


class KilledError(Exception):
    pass


def killed_after(number):
    """An executor that dies after so many tasks, in the midst of the next."""
    done = 0

    def execute(tasks):
        nonlocal done
        for i, outcome in one_by_one(tasks):
            done += 1
            if done > number:
                tasks[i].path.unlink()  # as if it had written its files, but not its outcome
                raise KilledError
            yield i, outcome

    return execute


def contents(folder):
    """All Parquet files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix == ".parquet"
    }


@pytest.mark.parametrize("share", np.arange(0, 1, 0.1).round(1).tolist())
def test_a_killed_job_leaves_the_set_unchanged_and_resumes(share, tmp_path):
    rows = sorted(make_rows(1, rows=150, tick_ms=60_000), key=lambda row: row["time_ms"])
    cut = next(i for i in range(70, 150) if rows[i]["time_ms"] != rows[i - 1]["time_ms"])
    logs = tmp_path / "logs"
    write_logs(logs / "0", rows[:cut], files=2)
    first, second = (settings(logs, valid_from=f"2026-01-0{day}") for day in (2, 4))
    folders = [tmp_path / "killed", tmp_path / "whole"]
    tasks = []
    ingest_logs(first, folders[1], lambda t: (tasks.extend(t), one_by_one(t))[1], silent)
    number = int(share * len(tasks))
    with pytest.raises(KilledError):
        ingest_logs(first, folders[0], killed_after(number), silent)
    assert not folders[0].exists()
    ingest(first, folders[0])
    assert contents(folders[0]) == contents(folders[1])

    write_logs(logs / "1", rows[cut:], files=2)
    before = contents(folders[0])
    with pytest.raises(KilledError):
        ingest_logs(second, folders[0], killed_after(number), silent)
    assert contents(folders[0]) == before
    left, needed = [], []
    ingest_logs(second, folders[0], lambda t: (left.extend(t), one_by_one(t))[1], silent)
    ingest_logs(second, folders[1], lambda t: (needed.extend(t), one_by_one(t))[1], silent)
    assert len(left) == len(needed) - number
    assert contents(folders[0]) == contents(folders[1])
    assert read_manifest(folders[0]).splits == read_manifest(folders[1]).splits
    assert not list(tmp_path.glob(".*"))


def test_processes_give_what_one_gives(tmp_path):
    logs = write_logs(tmp_path / "logs", make_rows(1))
    ingest(settings(logs), tmp_path / "one")
    with processes(2) as execute:
        ingest_logs(settings(logs), tmp_path / "two", execute, silent)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_splits_gaps_and_early_rows(tmp_path):
    rows = make_rows(3, days=6)
    logs = write_logs(tmp_path / "logs", rows)
    config = settings(
        logs, train_from="2026-01-02", valid_from="2026-01-05", test_from="2026-01-06", gap_h=6
    )
    manifest = ingest(config, tmp_path / "set")
    hours = {row["time_ms"]: (row["time_ms"] - START_MS) / 3_600_000 for row in rows}
    wanted = {
        "train": [t for t, h in hours.items() if 24 <= h < 90],
        "valid": [t for t, h in hours.items() if 96 <= h < 114],
        "test": [t for t, h in hours.items() if h >= 120],
    }
    for split, times in wanted.items():
        found = read_split(tmp_path / "set", split)
        assert {row["time_ms"] for row in found} == set(times)
    early = sum(h < 24 for h in hours.values())
    assert manifest.ingested.left_out["early"] == pytest.approx(early, abs=1)
    # Early rows serve histories all the same.
    truth = Truth(rows, config, tmp_path / "set")
    by_key = {(r["user_id"], r["item_id"], r["time_ms"]): r for r in rows}
    for row in read_split(tmp_path / "set", "train")[:50]:
        raw = next(r for k, r in by_key.items() if k[2] == row["time_ms"] and k[0] == row["group"])
        assert row["exposed_gap_s"] == truth.expected(raw)["exposed_gap_s"]


def test_hashes_and_raw_ids(tmp_path):
    rows = make_rows(4)
    tables = {
        "item": {"encoding": "hash", "num_embeddings": 5, "num_hashes": 2},
        "author": {"encoding": "raw", "num_embeddings": 100},
        "user": {"encoding": "raw", "num_embeddings": 50},
        "tag": {"encoding": "vocabulary", "min_count": 30},
    }
    logs = write_logs(tmp_path / "logs", rows)
    manifest = ingest(settings(logs, tables=tables), tmp_path / "set")
    sizes = {t.name: (t.num_embeddings, t.raw) for t in manifest.schema_.tables}
    assert sizes["item"] == (5, False)
    assert sizes["user"] == (50, True)
    found = [row for split in ("train", "valid") for row in read_split(tmp_path / "set", split)]
    assert {row["user_id"] for row in found} == {row["user_id"] for row in rows}
    items = {(row["item_id_1"], row["item_id_2"]) for row in found}
    assert {one for one, _ in items} == {1, 2, 3, 4} == {other for _, other in items}
    assert len({row["author"] for row in found}) == 5
    for row in found:
        assert (
            len(row["click_item_id_1"]) == len(row["click_item_id_2"]) == len(row["click_author"])
        )
    for split in manifest.splits:
        check_split(tmp_path / "set", manifest, manifest.schema_, split=split, rank=0, world_size=1)
    reader = Reader(
        folder=tmp_path / "set",
        manifest=manifest,
        schema=manifest.schema_,
        split="train",
        batch_size=64,
        rank=0,
        world_size=1,
    )
    table_of = {f.key: f.table for f in manifest.schema_.table_features}
    for batch in reader.batches():
        for key, jagged in batch.sparse_features.to_dict().items():
            rows_of_table = manifest.schema_.table(table_of[key]).num_embeddings
            assert all(0 <= v < rows_of_table for v in jagged.values().tolist())


def test_the_shuffle_is_global(tmp_path, monkeypatch):
    """Every part holds users and times of all kinds."""
    sizes = TaskSizes(partition=500, chunk=200, part=500, count=5000)
    monkeypatch.setattr("infnet_dist.ingest.logs.task_sizes.TaskSizes.of", lambda config: sizes)
    rows = make_rows(1, rows=4000, users=50)
    config = settings(write_logs(tmp_path / "logs", rows), counters={})
    manifest = ingest(config, tmp_path / "set")
    parts = manifest.split("train").parts
    assert len(parts) >= 5
    overall = np.mean([row["time_ms"] for row in rows if row["time_ms"] < START_MS + 3 * DAY_MS])
    for part in parts:
        group = pq.ParquetFile(tmp_path / "set" / part.file).read_row_group(0)
        times, users = group["time_ms"].to_numpy(), group["group"].to_numpy()
        assert abs(times.mean() - overall) < 4 * times.std() / len(times) ** 0.5
        assert len(set(users)) > 30  # of 64 draws from 50 users
        assert abs(np.corrcoef(np.arange(len(times)), times)[0, 1]) < 0.5
    assert max(p.rows for p in parts) < 1.5 * min(p.rows for p in parts)


@pytest.mark.parametrize("users", [1_000, pytest.param(10_000, marks=pytest.mark.exhaustive)])
def test_histories_of_many_users(users, tmp_path, monkeypatch):
    """In a dozen partitions, each of several chunks."""
    partition, chunk, part = 9 * users // 10, 2 * users // 5, 2 * users
    sizes = TaskSizes(partition=partition, chunk=chunk, part=part, count=10**6)
    monkeypatch.setattr("infnet_dist.ingest.logs.task_sizes.TaskSizes.of", lambda config: sizes)
    rows = make_rows(7, rows=10 * users, users=users, items=500, tick_ms=1_800_000)
    config = settings(write_logs(tmp_path / "logs", rows, files=7), counters={})
    with processes(2) as execute:
        ingest_logs(config, tmp_path / "set", execute, silent)
    truth = Truth(rows, config, tmp_path / "set")
    expected = [
        {
            "group": row["user_id"],
            "time_ms": row["time_ms"],
            "item_id": truth.item.get(row["item_id"], 0),
            "exposed_item_id": [
                truth.item.get(e["item_id"], 0) for e in truth.history(row, None, 6)
            ],
            "click_author": [
                truth.author.get(e["author"], 0) for e in truth.history(row, "is_click", 4)
            ],
        }
        for row in rows
    ]
    found = [row for split in ("train", "valid") for row in read_split(tmp_path / "set", split)]
    names = list(expected[0])
    assert canonical(found, names) == canonical(expected, names)


def generations(manifest):
    return {
        name: sorted({part.generation for part in split.parts})
        for name, split in manifest.splits.items()
    }


def test_parts_have_generations_and_times(tmp_path):
    """A generation of train stays as it is; rows of valid that become train are of that ingest."""
    rows = sorted(make_rows(5), key=lambda row: row["time_ms"])
    logs, folder = tmp_path / "logs", tmp_path / "set"
    expected = [
        {"train": [1], "valid": [1]},
        {"train": [1, 2], "valid": [2]},
        {"train": [1, 2, 3], "valid": [3]},
    ]
    cuts, before = (0, 150, 250, 400), {}
    for number, wanted in enumerate(expected):
        new = rows[cuts[number] : cuts[number + 1]]
        write_logs(logs / str(number), new)
        middle = new[len(new) // 2]["time_ms"] if number == 0 else new[0]["time_ms"]
        moment = np.datetime64(middle, "ms").item().isoformat()
        manifest = ingest(settings(logs, valid_from=moment), folder)
        assert generations(manifest) == wanted
        now = {part.file: part for part in manifest.splits["train"].parts}
        assert before.items() <= now.items()
        before = now
        for split in manifest.splits.values():
            for part in split.parts:
                times = pq.read_table(folder / part.file, columns=["time_ms"])["time_ms"].to_numpy()
                assert part.time_range_ms == (times.min(), times.max())


def test_files_that_changed_a_moment_ago_wait(tmp_path):
    rows = sorted(make_rows(1), key=lambda row: row["time_ms"])
    logs, folder = tmp_path / "logs", tmp_path / "set"
    write_logs(logs / "0", rows[:250], files=1)
    waiting = settings(logs, valid_from="2026-01-02", min_age_s=1_000)
    with pytest.raises(DataError, match=r"all 1 files .*min_age_s"):
        ingest(waiting, folder)
    ingest(settings(logs, valid_from="2026-01-02"), folder)
    (half,) = write_logs(logs / "1", rows[250:], files=1).iterdir()
    content = half.read_bytes()
    half.write_bytes(content[: len(content) // 2])  # its writer is at work
    assert ingest(waiting, folder) is None
    half.write_bytes(content)
    long_ago = half.stat().st_mtime - 2_000
    os.utime(half, (long_ago, long_ago))
    manifest = ingest(waiting, folder)
    assert sum(split.rows for split in manifest.splits.values()) == len(rows)
    assert ingest(waiting, folder) is None
