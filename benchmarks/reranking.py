"""Milliseconds to order the candidates of a request: fusion, exposure filter, rules, diversity.

    .venv/bin/python benchmarks/reranking.py [--candidates 500] [--results 50] [--dims 32 64]
        [--repeats 300] [--limit-ms 10]

One thread. Random candidates, another request in each repeat: three tasks fused as click_times, two
rules (authors, advertisements), a Bloom filter with 3,000 exposures. Variants take turns; median
and 99th percentile over the repeats; `alone` is the same without filter and rules. The exit status
is 1 if a median of MMR or DPP with the default window is above `--limit-ms`.
"""

import argparse
import json
import os
import platform
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy loads its BLAS

import numpy as np

from infnet_dist.reranking.exposure import ExposureFilter, ExposureSettings
from infnet_dist.reranking.fusion import ClickTimes
from infnet_dist.reranking.ordering import Candidates, order_candidates
from infnet_dist.reranking.rules import InWindow, in_a_row
from infnet_dist.reranking.settings import DiversitySettings, OrderSettings
from infnet_dist.training.provenance import versions

METHODS: dict[str, DiversitySettings] = {
    "by score": DiversitySettings("none"),
    "mmr, window 10": DiversitySettings("mmr"),
    "mmr, no window": DiversitySettings("mmr", window=None),
    "dpp, window 10": DiversitySettings("dpp"),
    "dpp, no window": DiversitySettings("dpp", window=None),
}
LIMITED = ("mmr, window 10", "dpp, window 10")
RULES = (InWindow("is_ad", 1, 5, (1,)), in_a_row("author", 1))
FUSION = ClickTimes("click", {"like": 4.0, "share": 8.0})
NOW_S = 6.5 * 86_400
WARM_UP = 5  # requests


def main() -> int:
    """Print a table; 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--results", type=int, default=50)
    parser.add_argument("--dims", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--limit-ms", type=float, default=10.0)
    arguments = parser.parse_args()
    print("command: python", "benchmarks/reranking.py", *sys.argv[1:])
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    print(f"\n{arguments.candidates} candidates, {arguments.results} results\n")
    print("| width | method | median, ms | p99, ms | alone: median, ms | p99, ms |")
    print("|---|---|---|---|---|---|")
    slowest = 0.0
    for dim in arguments.dims:
        found = measure(arguments, dim)
        for method in METHODS:
            whole, alone = found[method, True], found[method, False]
            times = [f"{np.quantile(one, q):.2f}" for one in (whole, alone) for q in (0.5, 0.99)]
            print(f"| {dim} | {method} | {' | '.join(times)} |", flush=True)
            if method in LIMITED:
                slowest = max(slowest, float(np.median(whole)))
    print(f"\nslowest median with a window: {slowest:.2f} ms, limit {arguments.limit_ms:g} ms")
    return int(slowest > arguments.limit_ms)


def measure(arguments: argparse.Namespace, dim: int) -> dict[tuple[str, bool], list[float]]:
    """Milliseconds of each repeat by method, with filter and rules or without."""
    rng = np.random.default_rng(dim)
    shown = ExposureFilter(ExposureSettings(per_day=500))
    for day in range(6):
        shown.add(rng.integers(0, 10**9, 500), now_s=day * 86_400)
    found: dict[tuple[str, bool], list[float]] = {
        (method, whole): [] for method in METHODS for whole in (True, False)
    }
    for repeat in range(WARM_UP + arguments.repeats):
        request = random_request(rng, arguments.candidates, dim)
        for (method, whole), times in found.items():
            settings = OrderSettings(
                FUSION,
                count=arguments.results,
                diversity=METHODS[method],
                rules=RULES if whole else (),
            )
            exposure = shown if whole else None
            start = time.perf_counter()
            order_candidates(request, settings, exposure=exposure, now_s=NOW_S)
            if repeat >= WARM_UP:
                times.append(1000 * (time.perf_counter() - start))
    return found


def random_request(rng: np.random.Generator, count: int, dim: int) -> Candidates:
    """Candidates in 20 clusters of similar items."""
    cluster = rng.integers(0, 20, count)
    centres = rng.normal(size=(20, dim))
    embeddings = centres[cluster] + 0.7 * rng.normal(size=(count, dim))
    return Candidates(
        logits={task: rng.normal(-2, 1, count) for task in ("click", "like", "share")},
        columns={
            "author": rng.integers(0, 100, count),
            "is_ad": (rng.uniform(size=count) < 0.1).astype(np.int64),
        },
        item_ids=rng.integers(0, 10**9, count),
        embeddings_ND=embeddings.astype(np.float32),
    )


if __name__ == "__main__":
    sys.exit(main())
