"""Rates of dropped ids (`tables.unknown_id_rate`) on a set whose valid has mostly new items.

    .venv/bin/python benchmarks/unknown_ids.py [--kuairand FOLDER] [--rates 0 null] [--seeds 4]
        [--share 0.76] [--rows 150000] [--set KEY=VALUE ...]

Random items that make `share` of valid's rows are taken out of train. FOLDER holds KuaiRand's slice
of configs/kuairand_logs.yaml; without it the logs are synthetic, `rows` of them. One worker, one
epoch per rate and seed. Metrics of valid, mean over the seeds; and the difference from the first
rate, per seed, with its standard error.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.ingest.synthetic import make_training_set
from infnet_dist.io.parsing import dump_yaml
from infnet_dist.training.provenance import versions

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("auc", "gauc", "normalized_entropy", "calibration")
TASKS = ("click", "long_view")
IDS = {
    "user_id": "user",
    "item_id": "item",
    "author_id": "author",
    "topic_id": "topic",
    "age_group_id": "age_group",
    "tab_id": "tab",
}
KUAIRAND_IDS = ("user_id", "video_id", "author_id", "tag", "music_id", "tab", "user_active_degree")
TRAINING = {
    "model": {"token_dim": 16, "num_hubs": 8, "first_order": True},
    "sparse_optimizer": {"learning_rate": 0.05, "eps": 0.001},
    "dense_optimizer": {"learning_rate": 0.003},
    "schedule": {"decay_share": 0.4},
    "scaling": {"num_workers": 1},
    "tracking": {"wandb": "disabled"},
}


def main() -> None:
    """Print a table per task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kuairand", type=Path)
    parser.add_argument("--rates", nargs="+", default=["0", "null"])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.76)
    parser.add_argument("--rows", type=int, default=150_000)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    print(f"command: python benchmarks/unknown_ids.py {' '.join(sys.argv[1:])}")
    print(f"versions: {versions()}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        raw, share = arguments.kuairand, arguments.share
        config = kuairand(raw, share, folder) if raw else synthetic(arguments.rows, share, folder)
        (folder / "run.yaml").write_text(dump_yaml(config | TRAINING))
        run("ingest", folder, [])
        found = {
            rate: np.array(
                [measure(folder, rate, seed, arguments.set) for seed in range(arguments.seeds)]
            )
            for rate in arguments.rates
        }
    print("| task | unknown_id_rate | AUC | gAUC | NE | calibration | AUC, difference |")
    print("|---|---|---|---|---|---|---|")
    for k, task in enumerate(TASKS):
        for rate, values in found.items():
            mean = " | ".join(f"{value:.4f}" for value in values[:, k].mean(0))
            change = (values - found[arguments.rates[0]])[:, k, 0]
            error = change.std(ddof=1) / len(change) ** 0.5 if len(change) > 1 else float("nan")
            print(f"| {task} | {rate} | {mean} | {change.mean():+.4f} +- {error:.4f} |")


def kuairand(raw: Path, share: float, folder: Path) -> dict:
    """Write the slice's logs without the items that are to be new; the sections of a run."""
    valid = pq.read_table(raw / "interactions_valid.parquet")
    train = pq.read_table(raw / "interactions_train.parquet")
    train = without_new(train, valid["video_id"].to_numpy(), "video_id", share)
    pq.write_table(pa.concat_tables([train, valid]), folder / "log.parquet")
    videos, users = (str(raw / f"{name}.parquet") for name in ("videos", "users"))
    tables = ("user", "video", "author", "tag", "music", "tab", "activity")
    ingest = {
        "joins": {
            "videos": {"path": videos, "key": "video_id", "columns": ["tag", "music_id"]},
            "users": {"path": users, "key": "user_id", "columns": ["user_active_degree"]},
        },
        "ids": dict(zip(KUAIRAND_IDS, tables, strict=True)),
        "tasks": {"click": "is_click", "long_view": "long_view"},
        "valid_from": "2022-05-04",
        "utc_offset_h": 8,
    }
    return sections(folder, ingest)


def synthetic(rows: int, share: float, folder: Path) -> dict:
    """Write synthetic logs without the items that are to be new; the sections of a run."""
    made = SyntheticIngest(source="synthetic", num_rows=rows, num_users=1_000, num_items=1_000)
    make_training_set(made, folder / "synthetic")
    train, valid = (
        pq.read_table(folder / "synthetic" / split, columns=[*IDS, "time_ms", *TASKS])
        for split in ("train", "valid")
    )
    start = datetime.fromtimestamp(valid["time_ms"].to_numpy().min() / 1000, UTC)
    train = without_new(train, valid["item_id"].to_numpy(), "item_id", share)
    pq.write_table(pa.concat_tables([train, valid]), folder / "log.parquet")
    ingest = {
        "ids": IDS,
        "tasks": {task: task for task in TASKS},
        "valid_from": start.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    return sections(folder, ingest)


def sections(folder: Path, ingest: dict) -> dict:
    """What differs from the defaults, but for `TRAINING`."""
    return {
        "run": {"folder": str(folder / "runs")},
        "ingest": {"source": "logs", "path": str(folder / "log.parquet")} | ingest,
        "data": {"path": str(folder / "set"), "batch_size": 256},
    }


def without_new(train: pa.Table, scored: np.ndarray, column: str, share: float) -> pa.Table:
    """Train without random items that make at least `share` of the scored rows."""
    items, counts = np.unique(scored, return_counts=True)
    order = np.random.default_rng(0).permutation(len(items))
    taken = np.searchsorted(counts[order].cumsum(), share * len(scored)) + 1
    return train.filter(pa.array(~np.isin(train[column].to_numpy(), items[order][:taken])))


def measure(folder: Path, rate: str, seed: int, overrides: list[str]) -> list[list[float]]:
    """Metrics of valid by task, after one epoch."""
    own = [f"tables.unknown_id_rate={rate}", f"run.seed={seed}", f"run.name=rate-{rate}-{seed}"]
    run("train", folder, [*own, *overrides])
    (summary,) = (folder / "runs" / f"rate-{rate}-{seed}").glob("*/summary.json")
    metrics = json.loads(summary.read_text())["metrics"]
    return [[metrics[f"valid/{metric}/{task}"] for metric in METRICS] for task in TASKS]


def run(job: str, folder: Path, overrides: list[str]) -> None:
    """Run a job of ray_jobs without Ray."""
    command = [sys.executable, "-m", f"ray_jobs.{job}", "--config", str(folder / "run.yaml")]
    sets = [argument for override in overrides for argument in ("--set", override)]
    done = subprocess.run(
        [*command, "--launcher", "local", *sets],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout[-6_000:])


if __name__ == "__main__":
    main()
