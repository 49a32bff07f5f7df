"""What tracking the changed rows costs in a step, and a delta beside a full save.

    .venv/bin/python benchmarks/deltas.py [--gib 4] [--steps 60] [--repeats 3] [--share 0.01]

One worker, a model with one big table (fp32, 64 wide, row-wise Adagrad) of `--gib` GiB.

    tracking  steps with and without the hooks that mark looked-up rows, one by one in turns
    save      a full checkpoint with checkpoint.background=false, and a delta of `--share` of the
              big table's rows (drawn at random), each until it is complete, in turns
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from checkpoint import foreground, make_config, open_setup

from infnet_dist.checkpoint import CheckpointMetadata, SavedProgress, Saver
from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.config.run import Config
from infnet_dist.deltas.live.publishing import Publisher
from infnet_dist.deltas.live.tracking import ChangedRows
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.ingest.synthetic import make_training_set
from infnet_dist.io.filesystem import Folder
from infnet_dist.training.provenance import versions
from infnet_dist.training.setup import TrainingSetup
from infnet_dist.training.step import EagerStep, StepSettings
from ray_jobs._local import run_local


def main() -> None:
    """Make a small training set, then measure in a worker process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=4.0, help="size of the table's rows")
    parser.add_argument("--steps", type=int, default=60, help="of each kind")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.01, help="of the rows that change")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        data = Path(temporary, "data")
        make_training_set(SyntheticIngest(source="synthetic", num_rows=20_000), data)
        settings = vars(arguments) | {"folder": Path(temporary)}
        (found,) = run_local(
            measure, {"config": make_config(data, 1), "settings": settings}, num_workers=1
        )
    report(found)


def measure(context: WorkerContext, *, config: Config, settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds and bytes of everything."""
    publish = config.publish.model_copy(update={"folder": str(settings["folder"] / "published")})
    config = foreground(config).model_copy(update={"publish": publish})
    setup, batches = open_setup(context, config, settings["gib"])
    found: dict[str, Any] = {"steps": time_steps(setup, batches, settings["steps"])}
    rows = ChangedRows(setup.sharded)
    saver = Saver(Folder(settings["folder"] / "saved"), setup.sharded, config, context)
    publisher = Publisher(setup.sharded, config, context, rows=rows, snapshots=saver.snapshots)
    about = CheckpointMetadata(SavedProgress(step=1), setup.order, {})
    publisher.publish(about)
    publisher.wait()
    found["full"], found["delta"] = [], []
    for repeat in range(settings["repeats"] + 1):  # the first warms up
        start = time.perf_counter()
        saver.save(CheckpointMetadata(SavedProgress(step=repeat), setup.order, {}))
        full = saver.wait()
        full_s = time.perf_counter() - start
        mark_some(rows, settings["share"])
        start = time.perf_counter()
        publisher.publish(about)
        stall_s = time.perf_counter() - start
        delta = publisher.wait()
        delta_s = time.perf_counter() - start
        assert full is not None and delta is not None
        if repeat:
            found["full"].append((full_s, full.num_bytes))
            found["delta"].append((delta_s, delta.num_bytes, stall_s, delta.changed_rows))
        shutil.rmtree(full.folder.url)
    publisher.close()
    saver.close()
    return found


def time_steps(setup: TrainingSetup, batches: list[Any], count: int) -> dict[str, list[float]]:
    """Seconds of steps without and with tracking, in turns, on the same batches."""
    step = EagerStep(setup.sharded, setup.context, seed=0)
    rows = ChangedRows(setup.sharded)  # once: fresh pages would be counted as tracking
    rows.close()
    found: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(count + 5):
        batch = batches[number % len(batches)]
        for kind in ("without", "with") if number % 2 else ("with", "without"):
            if kind == "with":
                attach(rows)
            start = time.perf_counter()
            step.train(batch, StepSettings(number))
            if number >= 5:
                found[kind].append(time.perf_counter() - start)
            rows.close()
    step.close()
    return found


def attach(rows: ChangedRows) -> None:
    """Register the hooks again that `close` removed."""
    for kernel in rows._kernels:
        kernel.hook = kernel.module.register_forward_pre_hook(
            kernel._before_lookup, with_kwargs=True
        )


def mark_some(rows: ChangedRows, share: float) -> None:
    """Mark a share of all rows at random, as if lookups had."""
    for kernel in rows._kernels:
        count = int(share * len(kernel.marks))
        kernel.marks[torch.randint(len(kernel.marks), (count,))] = True


def report(found: dict[str, Any]) -> None:
    """Print medians, and ratios within the run."""
    without, tracked = (statistics.median(found["steps"][key]) for key in ("without", "with"))
    pairs = zip(found["steps"]["with"], found["steps"]["without"], strict=True)
    ratio = statistics.median(one / other for one, other in pairs)
    print(
        f"\ntracking: a step takes {without * 1000:.2f} ms without, {tracked * 1000:.2f} with, "
        f"{tracked / without - 1:+.1%}; median of the pairs' ratios {ratio - 1:+.1%}"
    )
    full_s, full_bytes = (statistics.median(values) for values in zip(*found["full"], strict=True))
    delta_s, delta_bytes, stall_s, rows = (
        statistics.median(values) for values in zip(*found["delta"], strict=True)
    )
    print(f"full save: {full_bytes / 2**30:.3f} GiB in {full_s:.2f} s")
    print(
        f"delta of {rows:,.0f} rows: {delta_bytes / 2**20:.1f} MiB in {delta_s:.3f} s, "
        f"{delta_bytes / full_bytes:.2%} of the bytes and {delta_s / full_s:.2%} of the seconds; "
        f"training waits {stall_s:.3f} s"
    )


if __name__ == "__main__":
    main()
