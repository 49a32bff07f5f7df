"""What was never run on a GPU, checked on one in at most 8 minutes; exit code 1 if a check fails.

    make gpu-check
    PYTHONPATH=. python benchmarks/gpu_check.py [--device cpu] [--parts sharded dense] [--only TEXT]

`dense`: towers, tokens and losses, against float64 on the CPU; repeatability, synchronisation,
precision, compilation, memory, latency, speed. It needs torch alone.
`sharded`: a sharded step through NCCL, pipelines, cached tables, Adam, against the same on the CPU.
It needs the packages of `make install EXTRA=gpu`, and is skipped where they are missing.

Prints a line per check, and writes all of it to --json as well, after each check. With --device cpu
sizes are small, so that its figures mean nothing.
"""

import argparse
import faulthandler
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from gpu_checks.dense import dense_checks
from gpu_checks.extent import SHORT, Extent
from gpu_checks.harness import Check, Result, SkippedError, Values, run_checks

PARTS = ("sharded", "dense")


def main() -> int:
    """Run the checks; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--only", default="", help="checks whose name contains this text")
    parser.add_argument("--limit-s", type=float, default=420, help="when the last check starts")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device, *([0] if arguments.device == "cuda" else []))
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU here; --device cpu runs all that a CPU can")
        return 1
    deadline = time.monotonic() + arguments.limit_s
    faulthandler.dump_traceback_later(arguments.limit_s + 60, exit=True)  # a check that hangs
    header = {"command": " ".join(["python", *sys.argv]), "versions": versions(device)}
    for name, value in header.items():
        print(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
    results: list[Result] = []

    def report(result: Result) -> None:
        results.append(result)
        print(result.row(), flush=True)
        found = [one.as_dict() for one in results]
        arguments.json.write_text(json.dumps(header | {"results": found}, indent=2))

    checks = checks_of(arguments.parts, device, SHORT if device.type == "cpu" else Extent())
    chosen = (check for check in checks if arguments.only in check.name)
    run_checks(chosen, deadline=deadline, report=report)
    faulthandler.cancel_dump_traceback_later()
    counts = {
        status: sum(result.status == status for result in results)
        for status in ("passed", "failed", "skipped")
    }
    print(", ".join(f"{count} {status}" for status, count in counts.items()), arguments.json)
    return 1 if counts["failed"] else 0


def checks_of(parts: list[str], device: torch.device, extent: Extent) -> Iterator[Check]:
    """The checks of these parts."""
    if "sharded" in parts:
        try:
            from gpu_checks.sharded import sharded_checks

            yield from sharded_checks(device, extent)
        except Exception as error:  # of an import or the process group: checks raise elsewhere
            yield Check("sharded", partial(report_missing, error))
    if "dense" in parts:
        yield from dense_checks(device, extent)


def report_missing(error: Exception) -> Values:
    """Skip where a package is missing, and fail otherwise."""
    ours = ("gpu_checks", "infnet_dist")
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith(ours):
        raise SkippedError(f"{error}; make install EXTRA=gpu installs it")
    raise error


def versions(device: torch.device) -> dict[str, str | None]:
    """Python, torch, CUDA and the machine."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": gpu or f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} thread(s)",
    }


if __name__ == "__main__":
    sys.exit(main())
