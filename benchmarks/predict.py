"""Rows per second of predict beside evaluation's forward passes, and the memory that each takes.

    .venv/bin/python benchmarks/predict.py [--rows 300000] [--copies 1] [--workers 2]
        [--batch-size 512] [--repeats 3] [--config configs/smoke.yaml]

A model is trained for two steps on synthetic logs; then these take turns, each in processes of its
own with one thread, on the rows of train:

    evaluation  reads them as a split, looks up, computes logits, and keeps them for the metrics,
                which aren't computed
    predict     the same rows as an input of Parquet files, `--copies` times over (links to the same
                files), to parts with the scores of all tasks and a key

The seconds begin after the checkpoint is loaded, and end when the last rank is done. Memory is the
most that a process had: that of predict shouldn't grow with `--copies`.
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
from pathlib import Path
from typing import Any

import torch

from infnet_dist import checkpoint
from infnet_dist.config.run import Config, load_config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.evaluation.metrics import MetricState
from infnet_dist.io.filesystem import Folder
from infnet_dist.prediction.job import PredictionJob, PredictionRequest, begin_job
from infnet_dist.prediction.predict import predict
from infnet_dist.training.provenance import versions
from infnet_dist.training.setup import TrainingSetup, open_training_set, stream
from ray_jobs._local import run_local

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    """Make a training set and a checkpoint, measure in turns, print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/smoke.yaml")
    parser.add_argument("--rows", type=int, default=300_000, help="of all splits; 0.8 are in train")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        config, path = train(root, arguments)
        link(config.data.path / "train", root / "input", arguments.copies)
        found: list[dict[str, dict[str, float]]] = []
        for repeat in range(arguments.repeats):
            job = begin(config, path, root / "input", root / f"scores-{repeat}")
            given = {"config": config, "path": path}
            found.append(
                {
                    "evaluation": measure(evaluation, arguments.workers, **given),
                    "predict": measure(scores, arguments.workers, **given, job=job),
                }
            )
    report(found)


def train(root: Path, arguments: argparse.Namespace) -> tuple[Config, Folder]:
    """Ingest, and train for two steps; the run's config and its checkpoint."""
    overrides = [
        f"ingest.num_rows={arguments.rows}",
        f"data.path={root / 'set'}",
        f"data.batch_size={arguments.batch_size}",
        f"run.folder={root / 'runs'}",
        f"scaling.num_workers={arguments.workers}",
        "training.max_steps=2",
        "tracking.wandb=disabled",
    ]
    words = [word for override in overrides for word in ("--set", override)]
    for verb, more in (("ingest", []), ("train", ["--run-id", "run"])):
        command = [sys.executable, "-m", f"ray_jobs.{verb}", "--config", arguments.config, *words]
        command += ["--launcher", "local", *more]
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    config = load_config(REPOSITORY / arguments.config, overrides)
    newest = checkpoint.newest(Folder(root / "runs" / config.run.name / "run" / "checkpoints"))
    assert newest is not None
    return config, newest


def link(parts: Path, folder: Path, copies: int) -> None:
    """An input with the same parts several times."""
    folder.mkdir()
    for copy in range(copies):
        for part in parts.iterdir():
            os.link(part, folder / f"{copy:04d}-{part.name}")


def begin(config: Config, path: Folder, place: Path, output: Path) -> PredictionJob:
    """The job of one repeat."""
    manifest, schema = open_training_set(config)
    keys = {"user": schema.categorical[0].column}
    request = PredictionRequest(output=Folder(output), place=str(place), keys=keys)
    return begin_job(config, path, request, schema, manifest)


def measure(worker: Any, workers: int, **given: Any) -> dict[str, float]:
    """Rows per second over all workers, and the most memory of one."""
    found = run_local(worker, given, num_workers=workers)
    rows, seconds = found[0]["rows"], max(one["seconds"] for one in found)
    return {"rows": rows, "rate": rows / seconds, "gib": max(one["gib"] for one in found)}


def evaluation(context: WorkerContext, *, config: Config, path: Folder) -> dict[str, float]:
    """The loop of an evaluation of train."""
    setup = TrainingSetup.open(config, context, splits=["train"], for_training=False)
    checkpoint.load(path, setup.sharded, context, with_optimizer=False)
    model, state = setup.sharded.model, MetricState([task.name for task in setup.schema.tasks])
    model.eval()
    reader = setup.reader("train", shuffle=False)
    context.barrier()
    start = time.monotonic()
    with torch.no_grad():
        for batch, _ in stream(reader.batches(), context.device):
            _, output = model(batch)
            state.update(
                output.logits_BK,
                batch.labels_BK,
                truth_BK=batch.truth_BK,
                group_B=batch.group_B,
                weights_B=batch.weights_B,
            )
    context.barrier()
    return {"rows": reader.rows, "seconds": time.monotonic() - start, "gib": peak_gib()}


def scores(
    context: WorkerContext, *, config: Config, path: Folder, job: PredictionJob
) -> dict[str, float]:
    """A prediction."""
    return predict(context, config=config, path=path, job=job) | {"gib": peak_gib()}


def peak_gib() -> float:
    """Most memory that this process had."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 2**20


def report(found: list[dict[str, dict[str, float]]]) -> None:
    """Print medians, and the ratio within each repeat."""
    print("\n| | rows | rows/s | peak GiB of a process |\n|---|---|---|---|")
    for name in ("evaluation", "predict"):
        rate = statistics.median(one[name]["rate"] for one in found)
        gib = max(one[name]["gib"] for one in found)
        print(f"| {name} | {found[0][name]['rows']:,.0f} | {rate:,.0f} | {gib:.2f} |")
    ratios = [one["predict"]["rate"] / one["evaluation"]["rate"] for one in found]
    all_of_them = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"predict / evaluation: {statistics.median(ratios):.2f} (all: {all_of_them})")


if __name__ == "__main__":
    main()
