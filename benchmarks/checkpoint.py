"""What a checkpoint costs: stall of training, rates of saving and loading against the disk's own.

    .venv/bin/python benchmarks/checkpoint.py [--gib 4] [--workers 1] [--repeats 3] [--folder DIR]

A model with one big table (fp32, 64 wide, row-wise Adagrad) of `--gib` GiB, row-wise over
`--workers` processes, is saved in three ways in turn, each with steps of training around it:

    disk        as many bytes, written and read in blocks of 16 MiB by one process: what the disk
                gives. Writing ends with fsync; before reading, the page cache is dropped
    foreground  checkpoint.background=false: training waits until all is on the disk
    background  checkpoint.background=true: training waits for the copy alone; steps that are made
                while the files are written are timed as well
    load        the newest one into a model, the page cache dropped

They take turns, after a first turn that doesn't count. The first background save, for which memory
is still being made ready, is told apart.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from infnet_dist import checkpoint
from infnet_dist.batch import RankingBatch
from infnet_dist.checkpoint import CheckpointMetadata, SavedProgress, Saver
from infnet_dist.checkpoint.shards import ModelState
from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.config.run import Config, parse_config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.ingest.synthetic import make_training_set
from infnet_dist.io.filesystem import Folder
from infnet_dist.sharding.build import ShardedModel, build_sharded_model
from infnet_dist.sharding.optimizers import learning_rate_factors
from infnet_dist.training.provenance import versions
from infnet_dist.training.setup import TrainingSetup, open_training_set
from infnet_dist.training.step import EagerStep, StepSettings
from ray_jobs._local import run_local

WIDTH, BLOCK_BYTES = 64, 16 * 2**20


def main() -> None:
    """Make a small training set, then measure in worker processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=4.0, help="size of the table's rows")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        data = Path(temporary, "data")
        make_training_set(SyntheticIngest(source="synthetic", num_rows=20_000), data)
        found = run_local(
            measure,
            {
                "config": make_config(data, arguments.workers),
                "gib": arguments.gib,
                "repeats": arguments.repeats,
                "folder": Path(temporary),
            },
            num_workers=arguments.workers,
        )
    report(found)


def make_config(data: Path, workers: int) -> Config:
    """A small tower over one big table."""
    rows = {"overrides": {"user": {"sharding_types": ["row_wise"]}}, "embedding_dim": WIDTH}
    return parse_config(
        {
            "data": {"path": str(data), "batch_size": 512},
            "tables": rows,
            "scaling": {"num_workers": workers},
            "tracking": {"wandb": "disabled"},
        }
    )


def measure(
    context: WorkerContext, *, config: Config, gib: float, repeats: int, folder: Path
) -> dict[str, Any]:
    """Seconds of everything, on one rank."""
    setup, batches = open_setup(context, config, gib)
    steps = Steps(setup, batches)
    steps.make(5)
    state = sum(p.nbytes for p in ModelState(setup.sharded).shards())
    results: dict[str, Any] = {"bytes": state, "step_s": steps.make(20)}
    results["rss_gib"] = rss_gib()
    results |= {"disk": [], "foreground": [], "background": [], "load_s": []}
    for repeat in range(repeats + 1):  # the first warms up: fresh pages of the page cache cost much
        saver = Saver(Folder(folder / "foreground"), setup.sharded, foreground(config), context)
        disk_s = disk(folder / f"plain-{context.rank}", state, context)
        foreground_s = save(saver, setup, steps)
        saver.close()
        load_s = load(folder / "foreground", setup.sharded, context)
        if repeat:
            results["disk"].append(disk_s)
            results["foreground"].append(foreground_s)
            results["load_s"].append(load_s)
    results["foreground_rss_gib"] = rss_gib()
    saver = Saver(Folder(folder / "background"), setup.sharded, config, context)
    results["background"] = [save(saver, setup, steps) for _ in range(repeats + 1)]
    results["background_rss_gib"] = rss_gib()
    saver.close()
    return results


def foreground(config: Config) -> Config:
    """The same, saving while training waits."""
    waiting = config.checkpoint.model_copy(update={"background": False})
    return config.model_copy(update={"checkpoint": waiting})


def open_setup(
    context: WorkerContext, config: Config, gib: float
) -> tuple[TrainingSetup, list[RankingBatch]]:
    """A setup whose user table has `gib` GiB of rows, and some batches of its data."""
    manifest, schema = open_training_set(config)
    rows = int(gib * 2**30 / (4 * WIDTH))
    tables = tuple(
        table.model_copy(update={"num_embeddings": rows}) if table.name == "user" else table
        for table in schema.tables
    )
    schema = schema.model_copy(update={"tables": tables})
    sharded = build_sharded_model(config, schema, context)
    setup = TrainingSetup(config, context, manifest, schema, sharded)
    reader = setup.reader("train", shuffle=True)
    batches = [batch for batch, _ in zip(reader.batches(), range(10), strict=False)]
    return setup, batches


class Steps:
    """Steps of training over the same batches again and again."""

    def __init__(self, setup: TrainingSetup, batches: list[RankingBatch]) -> None:
        self._setup, self._batches = setup, batches
        self._step = EagerStep(setup.sharded, setup.context, seed=setup.config.run.seed)
        self.done = 0

    def make(self, count: int) -> float:
        """Make some; the median of their seconds."""
        taken = []
        for _ in range(count):
            start = time.perf_counter()
            batch = self._batches[self.done % len(self._batches)]
            factors = learning_rate_factors(self._setup.config, 0, 1_000_000)
            self._step.train(batch, StepSettings(0, factors))
            self.done += 1
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)


def save(saver: Saver, setup: TrainingSetup, steps: Steps) -> dict[str, float]:
    """Seconds that training waits, until the checkpoint is complete, and of a step meanwhile."""
    setup.context.barrier()
    facts = CheckpointMetadata(
        progress=SavedProgress(step=steps.done), order=setup.order, metrics={}
    )
    start = time.perf_counter()
    saver.save(facts)
    stall = time.perf_counter() - start
    during = []
    busy = True
    while busy:  # the same number of steps on all ranks
        during.append(steps.make(1))
        busy = any(setup.context.gather(saver.busy))
    saver.wait()
    return {
        "stall_s": stall,
        "whole_s": time.perf_counter() - start,
        "step_s": statistics.median(during),
    }


def disk(path: Path, size: int, context: WorkerContext) -> dict[str, float]:
    """Seconds that the disk takes for plain writing and reading."""
    block = memoryview(os.urandom(BLOCK_BYTES))
    context.barrier()
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(size // BLOCK_BYTES):
            file.write(block)
        os.fsync(file.fileno())
    context.barrier()
    write_s = time.perf_counter() - start
    drop_cache(path)
    into = bytearray(BLOCK_BYTES)
    context.barrier()
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(into):
            pass
    context.barrier()
    read_s = time.perf_counter() - start
    path.unlink()
    return {"write_s": write_s, "read_s": read_s}


def load(folder: Path, sharded: ShardedModel, context: WorkerContext) -> float:
    """Seconds to load the newest checkpoint."""
    newest = checkpoint.newest(Folder(folder))
    assert newest is not None
    for path in Path(newest.url).iterdir():
        drop_cache(path)
    context.barrier()
    start = time.perf_counter()
    checkpoint.load(newest, sharded, context)
    return time.perf_counter() - start


def drop_cache(path: Path) -> None:
    """Make the next reader fetch a file from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rss_gib() -> float:
    """Memory of this process."""
    return float(psutil.Process().memory_info().rss / 2**30)


def report(found: list[dict[str, Any]]) -> None:
    """Print rank 0's medians, and ratios within the run."""
    own = found[0]
    gib = sum(rank["bytes"] for rank in found) / 2**30

    def median(kind: str, key: str, skip: int = 0) -> float:
        return statistics.median(one[key] for one in own[kind][skip:])

    write_s, read_s = median("disk", "write_s"), median("disk", "read_s")
    whole_s, load_s = median("foreground", "stall_s"), statistics.median(own["load_s"])
    stall_s, first = median("background", "stall_s", 1), own["background"][0]
    print(f"\nstate: {gib:.2f} GiB (rows and optimizer state) on {len(found)} worker(s)")
    print(f"disk: {gib / write_s:.2f} GiB/s written, {gib / read_s:.2f} read")
    print(f"foreground save: {whole_s:.2f} s, {write_s / whole_s:.2f} of the disk's rate")
    print(
        f"background save: training waits {stall_s:.2f} s, {stall_s / whole_s:.1%} of the "
        f"foreground's; the first time {first['stall_s']:.2f} s; complete after "
        f"{median('background', 'whole_s', 1):.2f} s"
    )
    step_ms, during_ms = own["step_s"] * 1000, median("background", "step_s", 1) * 1000
    print(f"a step takes {step_ms:.1f} ms, {during_ms:.1f} while files are written")
    print(f"load: {load_s:.2f} s, {read_s / load_s:.2f} of the disk's rate")
    print(
        f"memory of rank 0: {own['rss_gib']:.2f} GiB before, {own['foreground_rss_gib']:.2f} with "
        f"foreground saves, {own['background_rss_gib']:.2f} with background saves"
    )


if __name__ == "__main__":
    main()
