"""Time of the stored transforms: keys of texts, vocabularies, and whole requests.

    .venv/bin/python benchmarks/transforms.py [--repeats 5] [--values 1000000]

Keys of texts in numpy (requests) and by pandas (long columns of ingest); lookups in a vocabulary
of `values` values, mapped from its file; and requests of 500 candidates with 20 id features, of
which 5 are texts, and a history of 2,000 events with 3 ids, actions and time gaps. Median ms.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from infnet_dist.features.definition import (
    Behaviour,
    Definition,
    HistoryActions,
    HistoryGaps,
    HistoryIds,
    IdColumn,
    IdInput,
    IdsInput,
    IdTable,
    TimeColumn,
)
from infnet_dist.features.hashing import text_keys
from infnet_dist.features.ids import KeyMap
from infnet_dist.features.storage import load_transforms, save_key_map, save_transforms
from infnet_dist.ingest.convert.keys import keys
from infnet_dist.training.provenance import versions

CANDIDATES, EVENTS = 500, 2_000
TEXTS, INTEGERS = 5, 15
NOW_MS = 1_800_000_000_000


def main() -> None:
    """Print a line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--values", type=int, default=1_000_000)
    arguments = parser.parse_args()
    repeats, values = arguments.repeats, arguments.values
    print(f"command: python benchmarks/transforms.py {' '.join(sys.argv[1:])}")
    print(f"versions: {versions()}")
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores")
    rng = np.random.default_rng(0)
    for count in (1, 500, 100_000):
        texts = [f"video {number}" for number in rng.integers(0, 10**9, count)]
        column = pa.array(texts, pa.large_string())
        show(f"keys of {count:,} texts, numpy", repeats, lambda t=texts: text_keys(t))
        show(f"keys of {count:,} texts, pandas", repeats, lambda c=column: keys(c))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, values)
        show("load and verify the transforms", 1, lambda: load_transforms(folder))
        transforms = load_transforms(folder)
        columns = request(rng, values)
        show("a request", repeats, lambda: transforms.encode(columns))


def show(what: str, repeats: int, run: Callable[[], object]) -> None:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    print(f"{what}: {statistics.median(times):.3f} ms", flush=True)


def make(folder: Path, values: int) -> None:
    """A folder of transforms: one vocabulary of integers, one of texts."""
    numbers = np.arange(1, values + 1)
    texts = keys(pa.array([f"video {number}" for number in range(values)], pa.large_string()))
    maps = [KeyMap.of(found, numbers) for found in (numbers * 977, texts)]
    kinds = {f"id{i}": ("text" if i < TEXTS else "integer") for i in range(TEXTS + INTEGERS)}
    ids = {name: IdColumn(name, kind) for name, kind in kinds.items()}
    history = [f"id{TEXTS + i}" for i in range(3)]
    rows = values + 1
    definition = Definition(
        generation=1,
        raw=kinds | {"like": "flag", "time": "integer"},
        tables={
            kind: IdTable("vocabulary", rows, save_key_map(folder, number, found))
            for number, (kind, found) in enumerate(zip(("integer", "text"), maps, strict=True))
        },
        columns={
            **ids,
            **{f"click_{name}": HistoryIds("click", name, "integer") for name in history},
            "click_actions": HistoryActions("click", ("like",)),
            "click_gap_s": HistoryGaps("click"),
        },
        behaviours={"click": Behaviour(EVENTS)},
        inputs=(
            *(IdInput(name, name, rows) for name in ids),
            *(IdsInput(f"click.{n}", f"click_{n}", rows, EVENTS) for n in history),
            IdsInput("click.actions", "click_actions", 3, EVENTS),
        ),
        time=TimeColumn("time", "ms"),
    )
    save_transforms(folder, definition)


def request(rng: np.random.Generator, values: int) -> dict[str, object]:
    """One user's candidates as Python values; the history is that of the first row alone."""
    columns: dict[str, object] = {"time": [NOW_MS] * CANDIDATES}
    for i in range(TEXTS + INTEGERS):
        found = rng.integers(0, values, CANDIDATES)
        columns[f"id{i}"] = [f"video {v}" for v in found] if i < TEXTS else found.tolist()
    empty: list[list[int]] = [[] for _ in range(CANDIDATES - 1)]
    events = {f"id{TEXTS + i}": rng.integers(0, values, EVENTS).tolist() for i in range(3)}
    events |= {"like": rng.integers(0, 2, EVENTS).tolist()}
    events |= {"time": [NOW_MS - 1000 * (i + 1) for i in range(EVENTS)]}
    return columns | {"click": {name: [found, *empty] for name, found in events.items()}}


if __name__ == "__main__":
    main()
