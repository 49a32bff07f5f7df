"""Milliseconds per request of INFNet's dense part: naive, user once, and without the candidate.

    .venv/bin/python benchmarks/serving_model.py [--cases 100x50 500x200 500x2000] [--requests 30]
        [--warm-up 3] [--chunk-rows 50] [--fields 50] [--token-dim 32] [--check]

    naive   the tower as it is trained: every candidate has a copy of the history
    chunks  the same in chunks of candidates, which keeps a long history's tokens in the caches
    once    the history is read once for all candidates, with the same logits
    user    once, with model.history_reads=user: history tokens don't depend on the candidate

N candidates x L history items of two behaviours with two attributes, random weights and inputs,
all items valid. No lookups: embeddings are given. One thread, in turn within a repeat; ratios are
medians of those within a repeat. --check only compares the logits.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from infnet_dist.features.numbers import NUM_TIME_GAP_BUCKETS
from infnet_dist.model.dense import DenseArch
from infnet_dist.model.request import CandidateArch, UserArch
from infnet_dist.model.tokens import SparseEmbeddings, TokenArch
from infnet_dist.model.towers.infnet import INFNet
from infnet_dist.training.provenance import versions

VARIANTS = ("naive", "chunks", "once", "user")
NUM_TASKS = 3


class Inputs:
    """A request: N candidates, L items."""

    def __init__(self, candidates: int, items: int, fields: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        self.count = candidates
        self.lengths = [items - items // 2, items // 2]
        user = [normal(1, width).expand(candidates, -1) for _ in range(fields // 2)]
        self.fields = user + [normal(candidates, width) for _ in range(fields - fields // 2)]
        self.sequences = [normal(1, length, 2 * width) for length in self.lengths]
        self.masks = [torch.ones(1, length, dtype=torch.bool) for length in self.lengths]
        self.gaps_1L = torch.randint(
            0, NUM_TIME_GAP_BUCKETS, (1, items), generator=generator, dtype=torch.uint8
        )
        self.vectors_NV, self.dense_NN = torch.empty(candidates, 0), torch.empty(candidates, 0)


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["100x50", "500x200", "500x2000"])
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--chunk-rows", type=int, default=50)
    parser.add_argument("--fields", type=int, default=50)
    parser.add_argument("--token-dim", type=int, default=32)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    for case in arguments.cases:
        candidates, items = map(int, case.split("x"))
        inputs = Inputs(candidates, items, arguments.fields, arguments.token_dim)
        run = variants(inputs, arguments)
        difference = check(run)
        print(f"\n{candidates} candidates x {items} items, {arguments.fields} fields")
        print(f"naive and once differ by at most {difference:.2g} of a logit")
        if not arguments.check:
            report(measure(run, arguments.requests, arguments.warm_up), candidates)


def variants(
    inputs: Inputs, arguments: argparse.Namespace
) -> dict[str, Callable[[], torch.Tensor]]:
    """By name, a function that scores the request."""
    plain, independent = (  # whether the history depends on the candidate
        make_dense(inputs, arguments.fields, arguments.token_dim, reads)
        for reads in ("all", "user")
    )
    chunk = arguments.chunk_rows
    return {
        "naive": lambda: repeated(plain, inputs, inputs.count),
        "chunks": lambda: repeated(plain, inputs, chunk),
        "once": once(plain, inputs, chunk),
        "user": once(independent, inputs, chunk),
    }


def make_dense(inputs: Inputs, fields: int, width: int, reads: str) -> DenseArch:
    """An INFNet with default sizes; both variants have the same seed."""
    torch.manual_seed(0)
    tokens = TokenArch(
        field_widths=[width] * fields,
        sequence_lengths=inputs.lengths,
        item_widths=[[width, width]] * 2,
        target_fields=[[fields - 1, fields - 2]] * 2,
        num_dense=0,
        num_tasks=NUM_TASKS,
        token_dim=width,
        num_time_gap_buckets=NUM_TIME_GAP_BUCKETS,
    )
    tower = INFNet(
        num_fields=tokens.num_fields,
        sequence_lengths=inputs.lengths,
        num_tasks=NUM_TASKS,
        token_dim=width,
        history_reads=reads,  # type: ignore[arg-type]
    )
    return DenseArch(tokens, tower).eval()


def repeated(dense: DenseArch, inputs: Inputs, chunk: int) -> torch.Tensor:
    """Logits with a copy of the history per candidate."""
    logits = []
    for start in range(0, inputs.count, chunk):
        rows = slice(start, min(start + chunk, inputs.count))
        count = rows.stop - rows.start
        embeddings = SparseEmbeddings(
            [field[rows] for field in inputs.fields],
            [items.repeat(count, 1, 1) for items in inputs.sequences],
            [mask.repeat(count, 1) for mask in inputs.masks],
        )
        gaps_BL = inputs.gaps_1L.repeat(count, 1)
        logits.append(dense(embeddings, inputs.vectors_NV[rows], inputs.dense_NN[rows], gaps_BL))
    return torch.cat(logits)


def once(dense: DenseArch, inputs: Inputs, chunk: int) -> Callable[[], torch.Tensor]:
    """Logits with one history."""
    user_part, candidate_part = UserArch(dense), CandidateArch(dense)

    def score() -> torch.Tensor:
        user = user_part(inputs.sequences, inputs.masks, inputs.gaps_1L)
        logits = []
        for start in range(0, inputs.count, chunk):
            rows = slice(start, start + chunk)
            fields = [field[rows] for field in inputs.fields]
            logits.append(
                candidate_part(user, fields, inputs.vectors_NV[rows], inputs.dense_NN[rows])
            )
        return torch.cat(logits)

    return score


@torch.no_grad()
def check(run: dict[str, Callable[[], torch.Tensor]]) -> float:
    """The largest difference of logits of naive and once."""
    return float((run["naive"]() - run["once"]()).abs().max())


@torch.no_grad()
def measure(
    run: dict[str, Callable[[], torch.Tensor]], requests: int, warm_up: int
) -> dict[str, list[float]]:
    """Milliseconds of each request, by variant, in turn."""
    found: dict[str, list[float]] = {name: [] for name in run}
    for number in range(requests + warm_up):
        for name, score in run.items():
            start = time.perf_counter()
            score()
            if number >= warm_up:
                found[name].append(1e3 * (time.perf_counter() - start))
    return found


def report(found: dict[str, list[float]], candidates: int) -> None:
    """Print medians, p99, rates, and ratios within a repeat."""
    print("\n| | median ms | p99 ms | candidates/s | naive / this |\n|---|---|---|---|---|")
    for name, ms in found.items():
        median = statistics.median(ms)
        ratio = statistics.median(a / b for a, b in zip(found["naive"], ms, strict=True))
        print(
            f"| {name} | {median:.1f} | {np.percentile(ms, 99):.1f} | "
            f"{1e3 * candidates / median:,.0f} | {ratio:.1f} |"
        )


if __name__ == "__main__":
    main()
