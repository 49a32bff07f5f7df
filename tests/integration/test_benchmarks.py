"""Every benchmark runs, on sizes that measure nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

TINY = {
    "checkpoint": "--gib 0.01 --repeats 1",
    "check": "--only sparse_arch --tolerance 1000",
    "daily_loop": "--days 3 --rows-a-day 900 --files-a-day 2",
    "deltas": "--gib 0.01 --steps 2 --repeats 1",
    "encodings": "--rows 256 --repeats 1",
    "gpu_check": "--device cpu --only parity --json /dev/null",
    "ingest": "--rows 4000 --systems ours",
    "lookups": "--rows 100 --batch-size 8 --steps 2 --repeats 1",
    "memory": "--gib 0.01 --steps 2",
    "mixed_widths": "--world-size 8",
    "peers": "--systems ours --rows 2560 --repeats 1 --set ingest.num_rows=4000",
    "planning": "--only 4x8 --limit 60",
    "planning_reality": "--steps 2 --repeats 1",
    "planning_scaling": "--ranks 1 --steps 2 --repeats 1 --batch-size 8",
    "precision": "--models mean+dcn+linear --fields 2 --lengths 3 --token-dim 8 --batch-size 4 "
    "--steps 1 --repeats 1",
    "predict": "--rows 4000 --copies 2 --batch-size 64 --repeats 1",
    "reader": "--rows 4000 --batch-size 256 --repeats 1 --items 3 --row-group-rows 1000 "
    "--systems bare ours loader petastorm",
    "recovery": "--repeats 1",
    "reranking": "--candidates 30 --results 5 --dims 4 --repeats 3 --limit-ms 60000",
    "serving_model": "--cases 6x8 --requests 1 --warm-up 0 --chunk-rows 4 --fields 4 --token-dim 8",
    "small_additions": "--rows 2000 --additions 2 --added-rows 300 --users 50 --items 50",
    "sparse_arch": "--cases many --batch-size 8 --steps 1 --repeats 1",
    "tower_cost": "--fields 2 --lengths 4 --token-dim 8 --batch-size 2 --repeats 1",
    "train_step": "--steps 60 --repeats 1 --set ingest.num_rows=20000",
    "transforms": "--values 2000 --repeats 1",
    "unknown_ids": "--rows 4000 --seeds 1 --rates null",
}
BENCHMARKS = sorted((REPOSITORY / "benchmarks").glob("*.py"))


def test_every_benchmark_has_a_tiny_run() -> None:
    assert {path.stem for path in BENCHMARKS} == TINY.keys()


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_runs(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path), *TINY[path.stem].split()],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout[-6_000:]
    assert f"benchmarks/{path.name}" in done.stdout  # its command
    assert "versions" in done.stdout
