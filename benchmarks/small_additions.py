"""Seconds of many small additions to a training set, as of a folder that grows every few minutes.

    python benchmarks/small_additions.py --rows 200000 --additions 20 --added-rows 2000

A first ingest of `--rows` rows, then `--additions` ingests of one new file each, `valid_from` moved
along, without the data report. Prints the seconds of each, and of an ingest without new files.
"""

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.config.logs import LogsIngest
from infnet_dist.ingest.logs.pipeline import ingest_logs
from infnet_dist.ingest.logs.stages.runner import one_by_one
from infnet_dist.training.provenance import versions

START_MS = 1_767_225_600_000  # 2026-01-01
STEP_MS = 300  # between two rows


def main() -> None:
    """Print one line per ingest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--additions", type=int, default=20)
    parser.add_argument("--added-rows", type=int, default=2_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=20_000)
    options = parser.parse_args()
    print(f"command: python benchmarks/small_additions.py {' '.join(sys.argv[1:])}")
    print(f"versions: {versions()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        rows = 0
        for number in range(options.additions + 1):
            count = options.added_rows if number else options.rows
            write(folder / "logs" / f"{number:05d}.parquet", rows, count, options)
            valid_row = rows if number else count // 2
            took = timed(folder, valid_row)
            print(f"ingest {number}: {count:,} rows after {rows:,}, {took:.2f} s", flush=True)
            rows += count
        print(f"nothing new: {timed(folder, valid_row):.2f} s")


def write(path: Path, first: int, count: int, options: argparse.Namespace) -> None:
    """A file of random impressions in the order of time."""
    rng = np.random.default_rng(first)
    columns = {
        "user_id": rng.integers(0, options.users, count),
        "video_id": rng.zipf(1.2, count) % options.items,
        "is_click": (rng.random(count) < 0.3).astype(np.int8),
        "time_ms": START_MS + STEP_MS * np.arange(first, first + count),
    }
    pq.write_table(pa.table(columns), path)


def timed(folder: Path, valid_row: int) -> float:
    """Seconds of an ingest whose valid begins with a row."""
    start_ms = START_MS + STEP_MS * valid_row
    config = LogsIngest.model_validate(
        {
            "source": "logs",
            "path": str(folder / "logs"),
            "ids": {"user_id": "user", "video_id": "video"},
            "behaviours": {"click": {"where": "is_click", "ids": ["video_id"], "length": 50}},
            "counters": {"video_clicks": {"by": ["video_id"], "where": "is_click"}},
            "tasks": {"click": "is_click"},
            "valid_from": datetime.fromtimestamp(start_ms / 1000, UTC).isoformat(),
        }
    )
    start = time.perf_counter()
    ingest_logs(config, folder / "set", one_by_one, lambda *_: None)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
