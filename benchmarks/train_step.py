"""Samples per second of the training step with 1 and 2 workers.

    .venv/bin/python benchmarks/train_step.py [--config FILE] [--steps 150] [--repeats 3]

Each repeat trains 1 and 2 workers in turn (plain processes, OMP_NUM_THREADS=1), on the same rows
per worker and step (weak scaling), and takes the rate from the run's own metrics, without the first
interval. Prints medians and, since machines are noisy, the ratio within each repeat.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from infnet_dist.training.provenance import versions

REPOSITORY = Path(__file__).resolve().parents[1]
LOG_EVERY = 25


def main() -> None:
    """Make the training set once, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/smoke.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    with tempfile.TemporaryDirectory() as root:
        common = ["--config", arguments.config]
        for override in arguments.overrides:
            common += ["--set", override]
        run(root, "ingest", *common)
        rates: dict[int, list[float]] = {1: [], 2: []}
        for repeat in range(arguments.repeats):
            for workers in rates:
                run_id = f"{repeat}-{workers}"
                run(
                    root,
                    "train",
                    *common,
                    *("--launcher", "local", "--run-id", run_id),
                    *(
                        "--set",
                        f"scaling.num_workers={workers}",
                        "--set",
                        "tracking.wandb=disabled",
                    ),
                    *("--set", f"training.max_steps={arguments.steps}"),
                    *("--set", f"training.log_every_steps={LOG_EVERY}"),
                )
                rates[workers].append(rate_of(Path(root), run_id))
            print(f"repeat {repeat}: " + ", ".join(f"{w}: {r[-1]:,.0f}" for w, r in rates.items()))
    for workers, values in rates.items():
        print(f"{workers} worker(s): median {statistics.median(values):,.0f} samples/s")
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    print(f"2 workers / 1 worker: median {statistics.median(ratios):.2f}, all {ratios}")


def run(root: str, verb: str, *arguments: str) -> None:
    """Run one entry point in a separate process."""
    environ = os.environ | {"INFNET_ROOT": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"ray_jobs.{verb}", *arguments]
    subprocess.run(command, cwd=REPOSITORY, env=environ, check=True, capture_output=True)


def rate_of(root: Path, run_id: str) -> float:
    """Median samples per second over the intervals after the first."""
    (path,) = root.glob(f"runs/*/{run_id}/metrics.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    rates = [r["perf/samples_per_s"] for r in records if "perf/samples_per_s" in r]
    return statistics.median(rates[1:])


if __name__ == "__main__":
    main()
