"""Parquet encodings of id lists: CPU seconds to write and to decode, and bytes.

    .venv/bin/python benchmarks/encodings.py [--rows 32768] [--repeats 5]

Two lists of 10 to 90 ids a row and an id, in row groups of 16,384 rows, zstd, one thread. Medians;
the ratio is that of decoding to Parquet's default (dictionary) in the same run.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.training.provenance import versions

PATHS = ["id", "a.list.element", "b.list.element"]
ENCODINGS: dict[str, dict] = {
    "dictionary": {},
    "plain": {"use_dictionary": False},
    "delta": {
        "use_dictionary": False,
        "column_encoding": dict.fromkeys(PATHS, "DELTA_BINARY_PACKED"),
    },
    "byte_stream_split": {
        "use_dictionary": False,
        "column_encoding": dict.fromkeys(PATHS, "BYTE_STREAM_SPLIT"),
    },
}
RNG = np.random.default_rng(0)
IDS: dict[str, Callable[[int], np.ndarray]] = {
    "uniform, 1 M ids": lambda count: RNG.integers(0, 1_000_000, count),
    "uniform, 10 k ids": lambda count: RNG.integers(0, 10_000, count),
    "Zipf 1.2, 1 M ids": lambda count: RNG.zipf(1.2, count) % 1_000_000,
    "Zipf 1.3, 1 k ids": lambda count: RNG.zipf(1.3, count) % 1_000,
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(f"command: python benchmarks/encodings.py {' '.join(sys.argv[1:])}")
    print(f"versions: {versions()}")
    print("| ids | encoding | write, us/row | decode, us/row | of dictionary | bytes/row |")
    print("|---|---|---|---|---|---|")
    for name, make in IDS.items():
        table = make_table(make, arguments.rows)
        found = {
            e: [measure(table, options) for _ in range(arguments.repeats)]
            for e, options in ENCODINGS.items()
        }
        default = statistics.median(run[1] for run in found["dictionary"])
        for encoding, runs in found.items():
            write, read, size = (statistics.median(run[i] for run in runs) for i in range(3))
            print(
                f"| {name} | {encoding} | {write:.2f} | {read:.2f} | {read / default:.2f} | "
                f"{size:.0f} |",
                flush=True,
            )


def make_table(ids: Callable[[int], np.ndarray], rows: int) -> pa.Table:
    """An id and two lists."""
    offsets = np.concatenate([[0], np.cumsum(RNG.integers(10, 91, rows))]).astype(np.int32)
    lists = {
        name: pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids(int(offsets[-1]))))
        for name in ("a", "b")
    }
    return pa.table({"id": pa.array(ids(rows)), **lists})


def measure(table: pa.Table, options: dict) -> tuple[float, float, float]:
    """Microseconds to write and to decode a row, and its bytes."""
    sink = io.BytesIO()
    start = time.process_time()
    pq.write_table(table, sink, row_group_size=16_384, compression="zstd", **options)
    written = time.process_time()
    with pq.ParquetFile(io.BytesIO(sink.getvalue())) as file:
        for group in range(file.num_row_groups):
            file.read_row_group(group, use_threads=False)
    read = time.process_time()
    scale = 1e6 / len(table)
    return (written - start) * scale, (read - written) * scale, sink.tell() / len(table)


if __name__ == "__main__":
    main()
