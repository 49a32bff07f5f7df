"""Training steps in bf16 and compiled, against fp32 and eager ones.

    .venv/bin/python benchmarks/precision.py [--models infnet din+dcnv2+mmoe] [--token-dim 64]
        [--batch-size 512] [--steps 5] [--repeats 5] [--only fp32 bf16 ...]

The dense part alone (tokens, tower, loss; forward and backward) of the models of `make gpu-check`,
on one CPU core (OMP_NUM_THREADS=1) and random inputs. Variants take turns, ratios are taken within
a repeat, medians of CPU seconds printed. `start` is the CPU time of a variant's first step, that of
compilers in processes that have ended included.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from gpu_checks.models import TOWERS, Sizes, forward_backward, make_dense, make_inputs

from infnet_dist.model.compute import compile_training
from infnet_dist.training.provenance import versions

CPU = torch.device("cpu")
VARIANTS = {
    "fp32": (False, False),
    "bf16": (True, False),
    "fp32, compiled": (False, True),
    "bf16, compiled": (True, True),
}


def main() -> None:
    """Measure all variants of all models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=TOWERS, default=["infnet", "din+dcnv2+mmoe"])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--fields", type=int, default=Sizes().fields)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(Sizes().lengths))
    parser.add_argument("--token-dim", type=int, default=Sizes().token_dim)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5, help="of each variant in a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    sizes = Sizes(
        fields=arguments.fields,
        lengths=tuple(arguments.lengths),
        token_dim=arguments.token_dim,
    )
    print(f"{sizes}, {arguments.batch_size} rows")
    print("\n| model | variant | rows per CPU s | fp32 / variant, all repeats | start, CPU s |")
    print("|---|---|---|---|---|")
    for model in arguments.models:
        compare(model, sizes, arguments)


def compare(model: str, sizes: Sizes, arguments: argparse.Namespace) -> None:
    """Print a line per variant of a model."""
    steps, start_s = {}, {}
    for name in dict.fromkeys(["fp32", *arguments.only]):
        bf16, compiled = VARIANTS[name]
        dense = make_dense(model, sizes, bf16=bf16)
        if compiled:
            compile_training(dense)
        inputs = make_inputs(sizes, arguments.batch_size).to(CPU)
        steps[name] = partial(forward_backward, dense, inputs)
        before = cpu_s()
        steps[name]()
        start_s[name] = cpu_s() - before
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(arguments.repeats + 1):  # the first only warms up
        for name, step in steps.items():
            seconds = run(step, arguments.steps)
            if repeat:
                taken[name].append(seconds)
    rows = arguments.steps * arguments.batch_size
    for name, turns in taken.items():
        ratios = [one / other for one, other in zip(taken["fp32"], turns, strict=True)]
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"| {model} | {name} | {rows / statistics.median(turns):,.0f} | "
            f"{statistics.median(ratios):.2f} ({shown}) | {start_s[name]:.0f} |",
            flush=True,
        )


def run(step: Callable[[], object], steps: int) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - start


def cpu_s() -> float:
    """CPU seconds of this process, and of those that it started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
