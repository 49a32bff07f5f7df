"""Seconds from the death of a worker to the first new step, by phase.

    .venv/bin/python benchmarks/recovery.py [--launcher local|ray] [--repeats 3]

A tiny run of two workers loses one by SIGKILL in mid-epoch and resumes from its checkpoint:

    detect   until the launcher reports the lost worker
    restart  until the new workers have built the model and begin to load
    load     the checkpoint
    step     until a worker begins the first new step
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from infnet_dist.training.provenance import versions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ray_jobs._local_ray import LocalRay
from tests.faults.kit import RESTART, Fault, Job, Running
from tests.runs import make_tiny_set

STEP = 25
PHASES = ("detect", "restart", "load", "step", "in all")


def main() -> None:
    """Lose a worker a few times; print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launcher", choices=("local", "ray"), default="local")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_tiny_set(folder / "data")
        if arguments.launcher == "local":
            found = [recover(Job(folder / str(i), data), None) for i in range(arguments.repeats)]
        else:
            with LocalRay(folder / "root", num_cpus=4) as ray:
                jobs = [Job(folder / str(i), data) for i in range(arguments.repeats)]
                found = [recover(job, ray) for job in jobs]
    print(f"seconds, medians of {arguments.repeats}, launcher {arguments.launcher}")
    for phase in PHASES:
        print(f"{phase:8} {statistics.median(one[phase] for one in found):6.1f}")


def recover(job: Job, ray: LocalRay | None) -> dict[str, float]:
    """Lose worker 1 in one run; the seconds of each phase."""
    fault = Fault("step", rank=1, step=STEP)
    running = job.start(fault) if ray is None else start_on_ray(job, ray, fault)
    gone = when(running, RESTART)
    loaded = when(running, f"(?s){RESTART.pattern}.*loaded .*? in [\\d.]+ s\\)")
    text = running.wait().text
    load_s = float(re.findall(r"loaded .*? in ([\d.]+) s\)", text)[-1])
    killed = (job.folder / "fault-1").stat().st_mtime
    attempts = sorted(job.ledger_lines(), key=lambda line: line["time"])
    last = attempts[-1]["attempt"][1]
    stepped = min(line["time"] for line in attempts if line["attempt"][1] == last)
    seconds = (gone - killed, loaded - load_s - gone, load_s, stepped - loaded, stepped - killed)
    return dict(zip(PHASES, seconds, strict=True))


def when(running: Running, pattern: str | re.Pattern[str]) -> float:
    """The moment at which the output has such lines."""
    running.wait_for(pattern)
    return time.time()


def start_on_ray(job: Job, ray: LocalRay, fault: Fault) -> Running:
    """The same on a Ray of our own."""
    from tests.faults.test_ray_faults import start_on_ray as start

    return start(job, ray.environ, ray.address, fault)


if __name__ == "__main__":
    main()
