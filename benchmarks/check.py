"""Reruns the short benchmarks, and compares their ratios with the committed ones.

    make bench-check
    .venv/bin/python benchmarks/check.py [--only peers sparse_arch train_step] [--tolerance 0.15]

A ratio compares two measurements of the same run, so it depends little on the machine; but on a
busy one it varies by more than the tolerance. Prints a line per ratio; the exit code is 1 if one is
lower than the committed one by more than the tolerance. That is to be looked at: measure again
first, on a quiet machine. If a ratio has changed for good, commit the new one, here and in
RESULTS.md.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from infnet_dist.training.provenance import versions

FOLDER = Path(__file__).parent
NUMBER = r"(\d+\.\d+)"


class Ratio(NamedTuple):
    """A ratio that a benchmark prints; higher is better.

    Attributes:
        pattern: finds it in the output.
        committed: its value when it was measured last.
    """

    pattern: str
    committed: float


class Benchmark(NamedTuple):
    """A script of this folder.

    Attributes:
        arguments: that make it short.
        ratios: by what they compare.
    """

    arguments: Sequence[str]
    ratios: Mapping[str, Ratio]


# 2026-11-29, 2 cores, CPU.
BENCHMARKS = {
    "sparse_arch": Benchmark(
        ["--cases", "many"],
        {
            "SparseArch / fbgemm's kernel": Ratio(f"ours / kernel: {NUMBER}", 0.86),
            "SparseArch / nn.EmbeddingBag": Ratio(f"ours / embedding_bag: {NUMBER}", 1.03),
        },
    ),
    "peers": Benchmark(
        ["--rows", "40960", "--repeats", "3"],
        {
            f"{model} / best peer": Ratio(rf"\| {model} \| best peer \| \| \| {NUMBER}", ratio)
            for model, ratio in (("dcnv2", 0.76), ("din", 0.70), ("mmoe", 1.07))
        },
    ),
    "train_step": Benchmark(
        ["--steps", "150", "--repeats", "3"],
        {"2 workers / 1 worker": Ratio(f"2 workers / 1 worker: median {NUMBER}", 1.81)},
    ),
}


def main() -> int:
    """Run them; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--tolerance", type=float, default=0.15, help="share of a ratio")
    arguments = parser.parse_args()
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()), flush=True)
    lower = 0
    for name in arguments.only:
        benchmark = BENCHMARKS[name]
        command = [sys.executable, str(FOLDER / f"{name}.py"), *benchmark.arguments]
        print(f"running {name}.py {' '.join(benchmark.arguments)}", file=sys.stderr, flush=True)
        done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stderr}\n{name}.py failed")
        for what, ratio in benchmark.ratios.items():
            value = found(ratio.pattern, done.stdout)
            is_lower = value < ratio.committed * (1 - arguments.tolerance)
            lower += is_lower
            verdict = "LOWER" if is_lower else "ok"
            print(f"{what}: {value:.2f}, committed {ratio.committed:.2f}: {verdict}", flush=True)
    return 1 if lower else 0


def found(pattern: str, text: str) -> float:
    """The number that a pattern finds in a benchmark's output.

    Raises:
        ValueError: nothing matches: the benchmark prints something else now.
    """
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"{pattern!r} isn't in:\n{text}")
    return float(match[1])


if __name__ == "__main__":
    sys.exit(main())
