"""Rows per second from raw logs to a training set: ours, and DuckDB's same joins and windows.

    .venv/bin/python benchmarks/ingest.py [--rows 1000000 3000000 10000000] [--repeats 1]
        [--memory-mib 512] [--systems ours duckdb]

Synthetic impressions in Parquet: a user of 200 impressions on average, 20 ids, three flags, a time.
Both make 20 dense ids, the last 50 items of three behaviours before each row with their time gaps,
three labels, a split by time and a global shuffle, and write zstd Parquet:

    ours     python -m ray_jobs.ingest --launcher local: cleaning, quarantine and state included
    duckdb   one process: vocabularies, joins, a list per user and behaviour, slices of it by a
             running count, ORDER BY a hash (`pip install duckdb`; left out where it is missing)

Reports the wall and CPU time of all processes and the peak of their memory (sum of PSS).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from infnet_dist.training.provenance import versions

NUM_IDS, LENGTH, ROWS_PER_USER, FILE_ROWS = 20, 50, 200, 1_000_000
BEHAVIOURS = {"view": 0.9, "click": 0.6, "like": 0.4}
FIRST_MS, DAYS = 1_767_225_600_000, 10
VALID_MS = FIRST_MS + 9 * 86_400_000
IDS = ["user_id", "item_id", *(f"id{i}" for i in range(NUM_IDS - 2))]


def main() -> None:
    """Make logs of each size, ingest them in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--memory-mib", type=int, default=512)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--folder", type=Path, help="on a disk with 4 KB of room per row")
    arguments = parser.parse_args()
    print(f"command: python benchmarks/ingest.py {' '.join(sys.argv[1:])}")
    print(f"versions: {versions()}")
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores")
    print(
        "| rows | system | wall s | CPU s | us of CPU per row | rows/s | peak GiB | GiB written |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            make_logs(Path(folder) / "logs", rows)
            found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.systems}
            for _ in range(arguments.repeats):
                for name in arguments.systems:
                    found[name].append(measure(name, Path(folder), rows, arguments.memory_mib))
        for name, runs in found.items():
            print_row(rows, name, runs)


def print_row(rows: int, name: str, runs: list[dict[str, float]]) -> None:
    """A line of the table: medians."""
    wall, cpu, peak, size = (
        statistics.median(run[key] for run in runs) for key in ("wall", "cpu", "peak", "size")
    )
    print(
        f"| {rows:,} | {name} | {wall:.0f} | {cpu:.0f} | {cpu / rows * 1e6:.1f} | "
        f"{rows / wall:,.0f} | {peak:.2f} | {size:.2f} |",
        flush=True,
    )


def make_logs(folder: Path, rows: int) -> None:
    """Files of a million rows in order of time."""
    folder.mkdir()
    users, span = max(rows // ROWS_PER_USER, 1), DAYS * 86_400_000
    for start in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - start)
        rng = np.random.default_rng(start)
        columns = {"user_id": rng.integers(0, users, count) * 17}
        for name in IDS[1:]:
            columns[name] = (rng.zipf(1.2, count) % 1_000_000).astype(np.int64)
        for name, share in BEHAVIOURS.items():
            columns[f"is_{name}"] = (rng.random(count) < share).astype(np.int8)
        low, high = (FIRST_MS + span * place // rows for place in (start, start + count))
        columns["time_ms"] = np.sort(rng.integers(low, high, count))
        pq.write_table(pa.table(columns), folder / f"{start:012d}.parquet", row_group_size=131_072)


def measure(system: str, folder: Path, rows: int, memory_mib: int) -> dict[str, float]:
    """Run one system in separate processes."""
    out = folder / "out"
    subprocess.run(["rm", "-rf", str(out)], check=True)
    command = SYSTEMS[system](folder, out, memory_mib)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "INFNET_ROOT": str(folder)}
    start = time.monotonic()
    before = os.times()
    with subprocess.Popen(command, env=environment, stdout=sys.stderr) as process:
        peak = _Peak(process.pid)
        code = process.wait()
        wall = time.monotonic() - start
        peak.stop()
    after = os.times()
    if code:
        raise SystemExit(f"{system} ended with {code}: {' '.join(command)}")
    found = sum(pq.read_metadata(path).num_rows for path in out.rglob("train/*.parquet"))
    found += sum(pq.read_metadata(path).num_rows for path in out.rglob("valid/*.parquet"))
    assert found == rows, f"{system} wrote {found} of {rows} rows"
    cpu = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    size = sum(p.stat().st_size for p in out.rglob("*/*.parquet") if p.parent.name in SPLITS)
    return {
        "wall": wall,
        "cpu": cpu,
        "peak": peak.bytes / 2**30,
        "size": size / 2**30,
    }


SPLITS = ("train", "valid")


class _Peak:
    """Highest sum of the memory of a process and its children; shared pages count once."""

    def __init__(self, pid: int) -> None:
        self.bytes, self._pid, self._ended = 0, pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            total = 0
            try:
                root = psutil.Process(self._pid)
                for process in [root, *root.children(recursive=True)]:
                    total += process.memory_full_info().pss
            except psutil.Error:
                continue
            self.bytes = max(self.bytes, total)

    def stop(self) -> None:
        """Watch no longer."""
        self._ended.set()
        self._thread.join()


def ours(folder: Path, out: Path, memory_mib: int) -> list[str]:
    """The command of our ingest."""
    config = {
        "ingest": {
            "source": "logs",
            "path": str(folder / "logs"),
            "ids": {name: name for name in IDS},
            "behaviours": {
                name: {"where": f"is_{name}", "ids": ["item_id"], "length": LENGTH}
                for name in BEHAVIOURS
            },
            "tasks": {name: f"is_{name}" for name in BEHAVIOURS},
            "valid_from": str(np.datetime64(VALID_MS, "ms")) + "+00:00",
            "memory_mib": memory_mib,
        },
        "data": {"path": str(out)},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "ray_jobs.ingest", "--config", str(path)]
    return [*command, "--launcher", "local"]


def duckdb(folder: Path, out: Path, memory_mib: int) -> list[str]:
    """The same by one process of DuckDB."""
    return [sys.executable, __file__, "--duckdb", json.dumps([str(folder / "logs"), str(out)])]


SYSTEMS = {"ours": ours, "duckdb": duckdb}


def run_duckdb(logs: str, out: str) -> None:
    """Vocabularies, joins, lists by user, slices, a shuffle, two splits."""
    import duckdb as library

    Path(out).mkdir()
    database = library.connect(str(Path(out) / "work.duckdb"))
    database.execute(
        "SET memory_limit = '6GB'; SET threads = 2; SET preserve_insertion_order = false"
    )
    database.execute(f"SET temp_directory = '{out}/spill'")
    for name in IDS:
        database.execute(
            f"CREATE TABLE v_{name} AS SELECT {name} AS value, row_number() OVER "
            f"(ORDER BY count(*) DESC, {name}) AS id FROM '{logs}/*.parquet' "
            f"WHERE time_ms < {VALID_MS} GROUP BY {name}"
        )
    ids = ", ".join(f"coalesce(v_{n}.id, 0) AS {n}" for n in IDS)
    joins = " ".join(f"LEFT JOIN v_{n} ON v_{n}.value = log.{n}" for n in IDS)
    flags = ", ".join(f"is_{name}" for name in BEHAVIOURS)
    database.execute(
        f"CREATE TABLE encoded AS SELECT {ids}, log.user_id AS grp, {flags}, time_ms "
        f"FROM '{logs}/*.parquet' log {joins}"
    )
    counts, lists, slices = [], [], []
    for name in BEHAVIOURS:
        counts.append(
            f"coalesce(sum(is_{name}) OVER (PARTITION BY grp ORDER BY time_ms RANGE BETWEEN "
            f"UNBOUNDED PRECEDING AND 1 PRECEDING), 0)::INT AS n_{name}"
        )
        lists.append(
            f"list(item_id ORDER BY time_ms) FILTER (is_{name} = 1) AS i_{name}, "
            f"list(time_ms ORDER BY time_ms) FILTER (is_{name} = 1) AS t_{name}"
        )
        window = f"greatest(n_{name} - {LENGTH - 1}, 1), n_{name}"
        slices.append(
            f"list_reverse(list_slice(i_{name}, {window})) AS {name}_item_id, "
            f"list_transform(list_reverse(list_slice(t_{name}, {window})), "
            f"lambda t: greatest((time_ms - t) // 1000, 1)) AS {name}_gap_s"
        )
    database.execute(
        f"CREATE TABLE events AS SELECT grp, {', '.join(lists)} FROM encoded GROUP BY grp"
    )
    database.execute(f"CREATE TABLE counted AS SELECT *, {', '.join(counts)} FROM encoded")
    plain = ", ".join([*IDS, flags, "time_ms"])
    for split, where in (("train", f"time_ms < {VALID_MS}"), ("valid", f"time_ms >= {VALID_MS}")):
        Path(out, split).mkdir()
        database.execute(
            f"COPY (SELECT {plain}, {', '.join(slices)} FROM counted JOIN events USING (grp) "
            f"WHERE {where} ORDER BY hash(grp, time_ms)) TO '{out}/{split}/part.parquet' "
            "(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 16384)"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--duckdb"]:
        run_duckdb(*json.loads(sys.argv[2]))
    else:
        main()
