"""Peak memory of a worker from building to loading, against its tables and optimizer state.

    .venv/bin/python benchmarks/memory.py [--gib 6] [--workers 2] [--batch-size 128]
        [--steps 20] [--folder DIR]

A model with one big table (fp32, 64 wide, row-wise Adagrad, read as single id and histories) of
`--gib` GiB is spread row-wise over `--workers` processes. All ids of the big table are uniform
over its rows: no row is hot, the worst case for saves in the background. For each phase the script
prints the peak of resident memory of each worker, less what the process takes before the model is
built, divided by the bytes of the worker's rows and optimizer state:

    build       meta build, shards, initial rows
    train       `--steps` steps
    foreground  a save while training waits
    background  a save while training continues, with the steps that it needs; the second one
    load        the newest checkpoint, same plan
    other plan  the same in new processes, table-wise: build and load, of the worker with the table
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist import checkpoint
from infnet_dist.batch import RankingBatch
from infnet_dist.checkpoint import CheckpointMetadata, SavedProgress, Saver
from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.config.run import Config, parse_config
from infnet_dist.data.hashing import stable_seed
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.ingest.synthetic import make_training_set
from infnet_dist.io.filesystem import Folder
from infnet_dist.sharding.build import build_sharded_model, table_bytes
from infnet_dist.training.provenance import versions
from infnet_dist.training.setup import TrainingSetup, open_training_set
from infnet_dist.training.step import StepSettings, make_step
from ray_jobs._local import run_local

WIDTH, TABLE = 64, "item"


def main() -> None:
    """Make a small training set, then measure in worker processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=6.0, help="size of the table's rows")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128, help="rows per worker and step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="for checkpoints; default: temporary")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        data, workers = Path(temporary, "data"), arguments.workers
        make_training_set(SyntheticIngest(source="synthetic", num_rows=20_000), data)
        common = {"gib": arguments.gib, "folder": Path(temporary, "checkpoints")}
        config = make_config(data, arguments, "row_wise")
        found = run_local(
            measure, {"config": config, "steps": arguments.steps, **common}, num_workers=workers
        )
        config = make_config(data, arguments, "table_wise")
        moved = run_local(measure_load, {"config": config, **common}, num_workers=workers)
    report(found, moved)


def make_config(data: Path, arguments: argparse.Namespace, sharding_type: str) -> Config:
    """A small tower over one big table."""
    return parse_config(
        {
            "data": {"path": str(data), "batch_size": arguments.batch_size},
            "tables": {
                "overrides": {TABLE: {"sharding_types": [sharding_type]}},
                "embedding_dim": WIDTH,
            },
            "scaling": {"num_workers": arguments.workers},
            "tracking": {"wandb": "disabled"},
        }
    )


class Peaks:
    """Peaks of this process's resident memory by phase, in bytes above those at the start."""

    def __init__(self) -> None:
        self.before = status("VmRSS")
        self.by_phase: dict[str, int] = {}

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """The peak of what runs inside."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        yield
        self.by_phase[phase] = status("VmHWM") - self.before


def status(name: str) -> int:
    """Bytes of a line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(
    context: WorkerContext, *, config: Config, gib: float, steps: int, folder: Path
) -> dict[str, Any]:
    """Peaks of all phases on one rank, and seconds of the saves."""
    peaks = Peaks()
    with peaks.of("build"):
        setup = build(config, context, gib)
    loop = Steps(setup)
    with peaks.of("train"):
        loop.make(steps)
    waiting = config.checkpoint.model_copy(update={"background": False})
    found: dict[str, Any] = {}
    for phase, settings in (
        ("foreground", config.model_copy(update={"checkpoint": waiting})),
        ("background", config),
    ):
        saver = Saver(Folder(folder), setup.sharded, settings, context)
        with peaks.of(phase):
            save(saver, setup, loop)
            found[phase] = save(saver, setup, loop)
        saver.close()
    with peaks.of("load"):
        assert checkpoint.load_newest(Folder(folder), setup.sharded, context)[0] is not None
    return found | describe(setup, peaks)


def measure_load(
    context: WorkerContext, *, config: Config, gib: float, folder: Path
) -> dict[str, Any]:
    """The peak of building a model under another plan and loading the newest checkpoint."""
    peaks = Peaks()
    with peaks.of("other plan"):
        setup = build(config, context, gib)
        assert checkpoint.load_newest(Folder(folder), setup.sharded, context)[0] is not None
    return describe(setup, peaks)


def describe(setup: TrainingSetup, peaks: Peaks) -> dict[str, Any]:
    """A rank's figures."""
    stored = table_bytes(setup.sharded.model, setup.sharded.sparse_optimizer)
    return {"stored": stored, "before": peaks.before, "peaks": peaks.by_phase}


def build(config: Config, context: WorkerContext, gib: float) -> TrainingSetup:
    """A setup whose big table has `gib` GiB of rows."""
    manifest, schema = open_training_set(config)
    rows = int(gib * 2**30 / (4 * WIDTH))
    tables = tuple(
        table.model_copy(update={"num_embeddings": rows}) if table.name == TABLE else table
        for table in schema.tables
    )
    schema = schema.model_copy(update={"tables": tables})
    sharded = build_sharded_model(config, schema, context)
    return TrainingSetup(config, context, manifest, schema, sharded)


class Steps:
    """Steps of training, whose ids of the big table are uniform over its rows."""

    def __init__(self, setup: TrainingSetup) -> None:
        self._rank = setup.context.rank
        schema = setup.schema
        self._rows = next(table.num_embeddings for table in schema.tables if table.name == TABLE)
        self._keys = {field.key for field in schema.fields if field.table == TABLE}
        reader = setup.reader("train", shuffle=True)
        batches = [batch for batch, _ in zip(reader.batches(), range(4), strict=False)]
        uniform = (self._uniform(batch, step) for step, batch in enumerate(cycle(batches)))
        numbers = count()
        self._steps = make_step(setup).over(uniform, lambda: StepSettings(next(numbers)))
        self.done = 0

    def make(self, count: int) -> float:
        """Make some; the seconds of one."""
        start = time.perf_counter()
        for _ in range(count):
            next(self._steps)
        self.done += count
        return (time.perf_counter() - start) / count

    def _uniform(self, batch: RankingBatch, step: int) -> RankingBatch:
        features = batch.sparse_features
        seed = stable_seed(step, "ids", self._rank)
        generator = torch.Generator().manual_seed(seed)
        values = features.values().clone()
        ends = features.offset_per_key()
        for key, start, stop in zip(features.keys(), ends, ends[1:], strict=False):
            if key in self._keys:
                values[start:stop].random_(self._rows, generator=generator)
        changed = KeyedJaggedTensor(features.keys(), values, lengths=features.lengths())
        return replace(batch, sparse_features=changed)


def save(saver: Saver, setup: TrainingSetup, loop: Steps) -> dict[str, float]:
    """Save while steps continue; seconds that training waits, of the whole, and of the steps."""
    alone_s = loop.make(5)
    setup.context.barrier()
    progress = SavedProgress(step=loop.done)
    start = time.perf_counter()
    saver.save(CheckpointMetadata(progress=progress, order=setup.order, metrics={}))
    stall_s = time.perf_counter() - start
    during, busy = [], any(setup.context.gather(saver.busy))
    while busy:  # the same number of steps on all ranks
        during.append(loop.make(1))
        busy = any(setup.context.gather(saver.busy))
    saved = saver.wait()
    assert saved is not None
    whole_s = time.perf_counter() - start
    stalled_s = stall_s + sum(during) - len(during) * alone_s
    return {"alone_s": alone_s, "stall_s": stall_s, "whole_s": whole_s, "steps": len(during)} | {
        "during_s": sum(during) / max(1, len(during)),
        "longest_s": max(during, default=0.0),
        "stalled_s": stalled_s,
        "copies_s": saved.waited_s,
    }


def report(found: list[dict[str, Any]], moved: list[dict[str, Any]]) -> None:
    """Print each rank's ratios, and what the background save cost the steps."""
    for rank, own in enumerate(found):
        print(
            f"\nrank {rank}: {own['stored'] / 2**30:.2f} GiB of rows and optimizer state; the "
            f"process alone takes {own['before'] / 2**30:.2f} GiB"
        )
        for phase, peak in own["peaks"].items():
            print(f"  {phase:12} {peak / own['stored']:.3f}  ({peak / 2**30:.2f} GiB)")
    rank, own = max(enumerate(moved), key=lambda one: one[1]["stored"])
    peak = own["peaks"]["other plan"]
    print(f"\nrank {rank} of the other plan: {own['stored'] / 2**30:.2f} GiB")
    print(f"  other plan   {peak / own['stored']:.3f}  ({peak / 2**30:.2f} GiB)")
    one, waited = found[0]["background"], found[0]["foreground"]
    print(f"\nforeground save: training waits {waited['whole_s']:.2f} s")
    print(
        f"background save: training waits {one['stall_s']:.2f} s, complete after "
        f"{one['whole_s']:.2f} s; {one['steps']} steps of {one['during_s'] * 1000:.0f} ms "
        f"meanwhile (longest {one['longest_s'] * 1000:.0f} ms), {one['alone_s'] * 1000:.0f} ms "
        f"without; in all {one['stalled_s']:.2f} s lost, "
        f"{one['copies_s']:.2f} s of them for copies of rows, "
        f"{one['stalled_s'] / waited['whole_s']:.1%} of the foreground save"
    )


if __name__ == "__main__":
    main()
