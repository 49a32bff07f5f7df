"""CPU seconds per million rows: our reader against pyarrow's bare decode and other readers.

    .venv/bin/python benchmarks/reader.py [--case NAME|all] [--rows 300000] [--batch-size 4096]
        [--repeats 5] [--items 55] [--ids uniform|skewed] [--row-group-rows 16384]
        [--rows-per-part 1000000] [--files ours|pyarrow]
        [--systems bare ours loader ray_data petastorm]

Synthetic rows: 20 ids, three lists of ids of mean length `--items` (no lists for 0), three labels.
`--case` sets some of these at once, `--rows` too, see CASES. All systems read the same columns
of the same files, each in a separate process with one thread: one warm-up epoch, and one that
counts:

    bare      decodes every row group and throws it away: the least that a reader has to do
    ours      shuffled, exactly resumable, KeyedJaggedTensor batches of `--batch-size`
    loader    torch DataLoader over an IterableDataset of `ParquetFile.iter_batches`, not shuffled:
              ids and labels as tensors, lists as values and offsets
    ray_data  Ray Data's Arrow batches, not shuffled, with two CPUs; its workers decode, but only
              the CPU time of the process that asks for the batches is counted
    petastorm make_batch_reader with one thread, not shuffled; it can't hand over lists of different
              lengths, so with lists make_reader, row by row, and only the first 20,000 rows

The CPU time of all threads of the process is counted. Ratios are taken within a repeat. Files are
ours, or `--files pyarrow`: rewritten with the encodings that pyarrow chooses (dictionaries), zstd.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset

from infnet_dist.contrib.petastorm.bridge import load_petastorm
from infnet_dist.contrib.petastorm.metadata import write_petastorm_metadata
from infnet_dist.data.manifest import read_manifest
from infnet_dist.data.reader import Reader
from infnet_dist.ingest.writing.writer import TrainingSetWriter
from infnet_dist.schema import (
    CategoricalFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
)
from infnet_dist.training.provenance import versions

NUM_IDS, NUM_LISTS, NUM_LABELS, NUM_EMBEDDINGS = 20, 3, 3, 1_000_000
CASES: dict[str, dict[str, int | str]] = {
    "long": {"items": 55, "ids": "uniform"},
    "skewed": {"items": 55, "ids": "skewed"},
    "short": {"items": 5, "ids": "uniform"},
    "very-long": {"items": 200, "ids": "uniform", "rows": 100_000, "row_group_rows": 8_192},
    "scalar": {"items": 0, "ids": "uniform", "rows": 500_000},
    "small-files": {"items": 55, "ids": "uniform", "rows_per_part": 5_000},
}
SCHEMA = Schema(
    tables=(Table(name="id", num_embeddings=NUM_EMBEDDINGS),),
    categorical=tuple(
        CategoricalFeature(name=f"id{i}", table="id", column=f"id{i}") for i in range(NUM_IDS)
    ),
    sequences=tuple(
        SequenceFeature(
            name=f"list{i}",
            attributes=(SequenceAttribute(name="item", table="id", column=f"list{i}"),),
            max_length=1_000,
        )
        for i in range(NUM_LISTS)
    ),
    tasks=tuple(Task(name=f"label{i}", column=f"label{i}") for i in range(NUM_LABELS)),
    group_column="user_id",
    time_column="time_ms",
)


SCALAR_SCHEMA = SCHEMA.model_copy(update={"sequences": ()})


def main() -> None:
    """Make the sets, read each in turns, print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=(*CASES, "all"))
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--batch-size", type=int, default=4_096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--row-group-rows", type=int, default=16_384)
    parser.add_argument("--rows-per-part", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=55, help="mean length of a list; 0: no lists")
    parser.add_argument("--ids", choices=("uniform", "skewed"), default="uniform")
    parser.add_argument("--files", choices=("ours", "pyarrow"), default="ours")
    parser.add_argument("--systems", nargs="+", choices=[*SYSTEMS], default=[*SYSTEMS])
    parser.add_argument("--read", nargs=2, metavar=("SYSTEM", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(measure(arguments.read[0], Path(arguments.read[1]), arguments.batch_size)))
        return
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    names = [*CASES] if arguments.case == "all" else [arguments.case or "as the flags say"]
    for name in names:
        case = argparse.Namespace(**(vars(arguments) | CASES.get(name, {})))
        compare(name, case)


def compare(name: str, case: argparse.Namespace) -> None:
    """Read one set with every system in turns; print a table."""
    results: dict[str, list[dict[str, float]]] = {system: [] for system in case.systems}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "set")
        make_set(folder, case)
        for _ in range(case.repeats):
            for system, found in results.items():
                command = [sys.executable, __file__, "--batch-size", str(case.batch_size)]
                command += ["--read", system, str(folder)]
                environ = os.environ | {"OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE)
                found.append(json.loads(done.stdout.splitlines()[-1]))
        files = [*(folder / "train").iterdir()]
        size = sum(path.stat().st_size for path in files) / case.rows
    print(f"\n{name}: {case.rows} rows, {case.ids} ids, {case.items} items, {len(files)} files,")
    print(f"{case.row_group_rows} rows per row group, {size:.0f} bytes per row\n")
    print("| reader | CPU s per million rows | over bare decode | peak GiB |\n|---|---|---|---|")
    for system, found in results.items():
        pairs = zip(found, results.get("bare", found), strict=True)
        ratio = statistics.median(mine["cpu_s"] / bare["cpu_s"] for mine, bare in pairs)
        cpu_s = statistics.median(run["cpu_s"] for run in found)
        gib = max(run["gib"] for run in found)
        print(f"| {system} | {cpu_s:.2f} | {ratio:.2f} | {gib:.2f} |", flush=True)


def make_set(folder: Path, arguments: argparse.Namespace) -> None:
    """Write the rows in chunks; no lists for a mean length of 0."""
    schema = SCHEMA if arguments.items else SCALAR_SCHEMA
    rng = np.random.default_rng(0)

    def ids(count: int) -> pa.Array:
        if arguments.ids == "uniform":
            return pa.array(rng.integers(0, NUM_EMBEDDINGS, count))
        return pa.array((rng.zipf(1.2, count) % NUM_EMBEDDINGS).astype(np.int64))

    with TrainingSetWriter(
        folder,
        rows_per_part=arguments.rows_per_part,
        row_group_rows=arguments.row_group_rows,
        source={},
    ) as writer:
        for start in range(0, arguments.rows, 50_000):
            count = min(50_000, arguments.rows - start)
            columns: dict[str, pa.Array] = {f.column: ids(count) for f in SCHEMA.categorical}
            for sequence in schema.sequences:
                spread = arguments.items * 4 // 5
                lengths = arguments.items + rng.integers(-spread, spread + 1, count)
                offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
                lists = pa.ListArray.from_arrays(offsets, ids(int(lengths.sum())))
                columns[sequence.attributes[0].column] = lists
            for task in SCHEMA.tasks:
                columns[task.column] = pa.array(rng.integers(0, 2, count), pa.int8())
            columns["user_id"] = ids(count)
            columns["time_ms"] = pa.array(np.arange(start, start + count))
            writer.write("train", pa.table(columns))
        writer.publish(schema)
    if arguments.files == "pyarrow":
        for path in (folder / "train").iterdir():
            table = pq.read_table(path)
            size = arguments.row_group_rows
            pq.write_table(table, path, row_group_size=size, compression="zstd")


def measure(system: str, folder: Path, batch_size: int) -> dict[str, float]:
    """Read one epoch to get warm, then one that counts."""
    torch.set_num_threads(1)
    for _ in SYSTEMS[system](folder, batch_size):
        pass
    start, rows = time.process_time(), 0
    for count in SYSTEMS[system](folder, batch_size):
        rows += count
    cpu_s = time.process_time() - start
    return {"cpu_s": cpu_s / rows * 1e6, "gib": peak_gib()}


def peak_gib() -> float:
    """Most memory that this process had; getrusage's figure would begin with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def columns_of(folder: Path) -> list[str]:
    """What everyone reads."""
    return list(read_manifest(folder).schema_.columns)


def bare(folder: Path, batch_size: int) -> Iterator[int]:
    """Rows of each row group."""
    columns = columns_of(folder)
    for path in sorted((folder / "train").iterdir()):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns, use_threads=False)
                yield table.num_rows


@cache
def make_reader(folder: Path, batch_size: int) -> Reader:
    """One for both epochs, as a training run has it: it keeps the memory of its blocks."""
    manifest = read_manifest(folder)
    return Reader(
        folder=folder,
        manifest=manifest,
        schema=manifest.schema_,
        split="train",
        batch_size=batch_size,
        rank=0,
        world_size=1,
        shuffle_rows=65_536,
    )


def ours(folder: Path, batch_size: int) -> Iterator[int]:
    """Rows of each batch."""
    for batch in make_reader(folder, batch_size).batches():
        yield batch.num_rows


class ArrowBatches(IterableDataset[dict[str, torch.Tensor]]):
    """What one would write first: each batch's columns as tensors."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        """Read the files of a folder in order."""
        self.paths, self.batch_size = sorted((folder / "train").iterdir()), batch_size
        self.columns = columns_of(folder)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches within each file."""
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(
                    self.batch_size, columns=self.columns, use_threads=False
                ):
                    tensors = {}
                    for name in self.columns:
                        column = batch.column(name)
                        if pa.types.is_list(column.type):
                            offsets = column.offsets.to_numpy()
                            tensors[f"{name}.offsets"] = torch.tensor(offsets - offsets[0])
                            column = column.flatten()
                        tensors[name] = torch.tensor(column.to_numpy())
                    yield tensors


def loader(folder: Path, batch_size: int) -> Iterator[int]:
    """Rows of each batch."""
    for batch in DataLoader(ArrowBatches(folder, batch_size), batch_size=None):
        yield len(batch["user_id"])


def ray_data(folder: Path, batch_size: int) -> Iterator[int]:
    """Rows of each batch."""
    import ray

    ray.init(num_cpus=2, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.read_parquet(str(folder / "train"), columns=columns_of(folder))
    for batch in dataset.iter_batches(batch_size=batch_size, batch_format="pyarrow"):
        yield batch.num_rows


def petastorm(folder: Path, batch_size: int) -> Iterator[int]:
    """Rows of each batch, which are row groups; or row by row."""
    load_petastorm()
    from petastorm import make_batch_reader, make_reader

    manifest = read_manifest(folder)
    url, columns = f"file://{folder}/train", columns_of(folder)
    options = {"workers_count": 1, "reader_pool_type": "thread", "shuffle_row_groups": False}
    if not manifest.schema_.sequences:
        with make_batch_reader(url, schema_fields=columns, **options) as batches:
            for batch in batches:
                yield len(batch.user_id)
        return
    write_petastorm_metadata(folder, manifest)
    with make_reader(url, schema_fields=columns, **options) as rows:
        for _ in islice(rows, 20_000):
            yield 1


SYSTEMS: dict[str, Callable[[Path, int], Iterator[int]]] = {
    "bare": bare,
    "ours": ours,
    "loader": loader,
    "ray_data": ray_data,
    "petastorm": petastorm,
}

if __name__ == "__main__":
    main()
