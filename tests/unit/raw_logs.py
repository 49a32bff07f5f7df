"""Synthetic logs in many files, and the expected training set, by plain loops."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import read_manifest

DAY_MS = 86_400_000
START_MS = 1_767_225_600_000  # 2026-01-01
Row = dict[str, Any]


def make_rows(
    seed: int, rows: int = 400, users: int = 9, items: int = 12, days: int = 4, tick_ms: int = 1000
) -> list[Row]:
    """Random impressions; a coarse `tick_ms` makes many ties in time."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(rows):
        item = int(rng.integers(items))
        found.append(
            {
                "user_id": int(rng.integers(users)) * 1000,
                "item_id": item * 7,
                "author": f"author {item % 5}",
                "tags": [int(t) for t in rng.integers(0, 30, rng.integers(0, 4))],
                "duration_s": float(rng.gamma(2, 20)) if rng.random() < 0.9 else None,
                "age": float(rng.normal(40, 9)),
                "is_click": int(rng.random() < 0.4),
                "is_like": int(rng.random() < 0.2),
                "play_ms": int(rng.gamma(2, 4000)),
                "time_ms": START_MS + int(rng.integers(days * DAY_MS) // tick_ms * tick_ms),
            }
        )
    return found


TYPES = pa.schema(
    {
        "user_id": pa.int64(),
        "item_id": pa.int32(),
        "author": pa.string(),
        "tags": pa.list_(pa.int64()),
        "duration_s": pa.float64(),
        "age": pa.float32(),
        "is_click": pa.int8(),
        "is_like": pa.int64(),
        "play_ms": pa.int64(),
        "time_ms": pa.int64(),
    }
)


def write_logs(folder: Path, rows: list[Row], files: int = 3, row_group_rows: int = 50) -> Path:
    """The rows in several files."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // files)
    for i in range(files):
        part = pa.Table.from_pylist(rows[i * size : (i + 1) * size], TYPES)
        pq.write_table(part, folder / f"log-{i}.parquet", row_group_size=row_group_rows)
    return folder


def settings(path: Path, **changes: Any) -> LogsIngest:
    """A config that uses every kind of feature."""
    given: dict[str, Any] = {
        "source": "logs",
        "path": str(path),
        "tables": {"tag": {"encoding": "hash", "num_embeddings": 50, "num_hashes": 2}},
        "ids": {"user_id": "user", "item_id": "item", "author": "author"},
        "lists": {"tags": {"table": "tag", "max_length": 3}},
        "dense": {
            "duration_s": {"buckets": "quantile", "num_buckets": 8},
            "age": {"buckets": None},
        },
        "behaviours": {
            "exposed": {"ids": ["item_id"], "actions": ["is_click", "is_like"], "length": 6},
            "click": {"where": "is_click", "ids": ["item_id", "author"], "length": 4},
        },
        "counters": {
            "item_shown": {"by": ["item_id"]},
            "item_clicked": {"by": ["item_id"], "where": "is_click"},
            "user_author_clicked": {"by": ["user_id", "author"], "where": "is_click"},
        },
        "tasks": {"click": "is_click", "like": "is_like"},
        "watch_time": "play_ms",
        "valid_from": "2026-01-04",
        "row_group_rows": 64,
    }
    return LogsIngest.model_validate(given | changes)


def read_split(folder: Path, split: str) -> list[Row]:
    """All rows of a split, in the manifest's order."""
    parts = read_manifest(folder).split(split).parts
    return pa.concat_tables([pq.read_table(folder / part.file) for part in parts]).to_pylist()


def vocabulary(folder: Path, table: str, version: int = 1) -> dict[Any, int]:
    """Ids by value, those without one left out."""
    rows = pq.read_table(folder / "vocabulary" / table / f"g{version:04d}.parquet").to_pylist()
    return {row["value"]: row["id"] for row in rows if row["id"]}


def until(time_ms: int, config: LogsIngest) -> int:
    """Up to when a row knows events."""
    if config.refresh == "live":
        return time_ms
    offset = round(config.utc_offset_h * 3_600_000)
    return (time_ms + offset) // DAY_MS * DAY_MS - offset


class Truth:
    """Expected columns of these logs; rows are in the order of the files."""

    def __init__(self, rows: list[Row], config: LogsIngest, folder: Path, version: int = 1) -> None:
        self.config = config
        self.item = vocabulary(folder, "item", version)
        self.author = vocabulary(folder, "author", version)
        self.user = vocabulary(folder, "user", version)
        self.by_user: dict[int, list[tuple[int, int, Row]]] = defaultdict(list)
        self.all = [(row["time_ms"], i, row) for i, row in enumerate(rows)]
        for time_ms, i, row in self.all:
            self.by_user[row["user_id"]].append((time_ms, i, row))

    def history(self, row: Row, flag: str | None, length: int) -> list[Row]:
        cutoff = until(row["time_ms"], self.config)
        before = [
            event
            for event in self.by_user[row["user_id"]]
            if event[0] < cutoff and (flag is None or event[2][flag] == 1)
        ]
        newest = sorted(before, key=lambda event: event[:2], reverse=True)[:length]
        return [event[2] for event in newest]

    def count(self, row: Row, by: list[str], flag: str | None) -> int:
        cutoff = until(row["time_ms"], self.config)
        return sum(
            time_ms < cutoff
            and all(other[name] == row[name] for name in by)
            and (flag is None or other[flag] == 1)
            for time_ms, _, other in self.all
        )

    def expected(self, row: Row) -> Row:
        """All but tags and numbers."""
        exposed, click = self.history(row, None, 6), self.history(row, "is_click", 4)
        return {
            "user_id": self.user.get(row["user_id"], 0),
            "item_id": self.item.get(row["item_id"], 0),
            "author": self.author.get(row["author"], 0),
            "exposed_item_id": [self.item.get(e["item_id"], 0) for e in exposed],
            "exposed_actions": [1 + e["is_click"] + 2 * e["is_like"] for e in exposed],
            "exposed_gap_s": [gap(row, e) for e in exposed],
            "click_item_id": [self.item.get(e["item_id"], 0) for e in click],
            "click_author": [self.author.get(e["author"], 0) for e in click],
            "click_gap_s": [gap(row, e) for e in click],
            "item_shown": 1.0 * self.count(row, ["item_id"], None),
            "item_clicked": 1.0 * self.count(row, ["item_id"], "is_click"),
            "user_author_clicked": 1.0 * self.count(row, ["user_id", "author"], "is_click"),
            "label_click": row["is_click"],
            "label_like": row["is_like"],
            "label_watch_time": row["play_ms"],
            "group": row["user_id"],
            "time_ms": row["time_ms"],
        }


def gap(row: Row, event: Row) -> int:
    return max((row["time_ms"] - event["time_ms"]) // 1000, 1)


def canonical(rows: list[Row], names: list[str]) -> list[str]:
    """Rows as sorted texts, to compare without an order."""
    return sorted(str([row[name] for name in names]) for row in rows)
