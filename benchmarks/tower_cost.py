"""What tokens and tower cost by the length of the history: INFNet, full attention, DIN.

    .venv/bin/python benchmarks/tower_cost.py [--fields 100] [--lengths 500 2000 4000]
        [--token-dim 64] [--batch-size 32] [--repeats 5] [--models infnet transformer ...]

Forward and backward of the dense part alone, on one CPU core (OMP_NUM_THREADS=1) and random inputs:
two behaviours of half the length each. DIN is its paper's model: target attention, an MLP, and a
linear head. The models take turns, ratios are taken within a repeat, medians of CPU seconds
printed. FLOPs are those of matrix products and attention, as torch counts them.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from gpu_checks.models import Sizes, flops_per_sample, forward_backward, make_dense, make_inputs

from infnet_dist.training.provenance import versions

CPU = torch.device("cpu")
MODELS = ("infnet", "transformer", "din+deep+linear", "hstu+deep+linear")


def main() -> None:
    """Measure all models at each length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fields", type=int, default=100)
    parser.add_argument("--lengths", type=int, nargs="+", default=[500, 2000, 4000])
    parser.add_argument("--token-dim", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS[:3])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    print("\n| items | model | CPU ms a row | us a token | model / INFNet, all repeats | MFLOPs |")
    print("|---|---|---|---|---|---|")
    for length in arguments.lengths:
        sizes = Sizes(arguments.fields, (length // 2, length - length // 2), arguments.token_dim)
        models = dict.fromkeys([MODELS[0], *arguments.models])
        compare(models, sizes, arguments.batch_size, arguments.repeats)


def compare(models: Iterable[str], sizes: Sizes, batch_size: int, repeats: int) -> None:
    """Print a line per model."""
    inputs = make_inputs(sizes, batch_size).to(CPU)
    steps: dict[str, Callable[[], object]] = {
        model: partial(forward_backward, make_dense(model, sizes), inputs) for model in models
    }
    taken: dict[str, list[float]] = {model: [] for model in steps}
    for repeat in range(repeats + 1):  # the first only warms up
        for model, step in steps.items():
            start = time.process_time()
            step()
            if repeat:
                taken[model].append(time.process_time() - start)
    length = sum(sizes.lengths)
    for model, turns in taken.items():
        ratios = [one / other for one, other in zip(turns, taken["infnet"], strict=True)]
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        row_s = statistics.median(turns) / batch_size
        print(
            f"| {length} | {model} | {1e3 * row_s:.1f} | "
            f"{1e6 * row_s / (length + sizes.fields):.1f} | "
            f"{statistics.median(ratios):.2f} ({shown}) | "
            f"{flops_per_sample(model, sizes) / 1e6:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
