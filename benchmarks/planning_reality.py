"""Is the cost model right on this machine? Predicted bytes and times beside measured ones.

    .venv/bin/python benchmarks/planning_reality.py [--ranks 2] [--steps 10] [--repeats 9]
        [--topology FILE] [--rows 100000] [--length 10] [--batch 512]

Eight plans, and the planner's own if it isn't one of them, for the same eight tables (of 64 floats,
float32, in one EmbeddingCollection) run on gloo ranks of this machine: lookup, all-to-all, backward
with the update; no tower. The workers are calibrated first, or --topology names an earlier
calibration. The plans take turns in the same processes, each for --steps, in an order that changes
from repeat to repeat. Printed are, for each plan, the estimated milliseconds of a step without and
with calibration, the measured ones (median over repeats), the planned and the held bytes of the
fullest rank; the rank correlation (Spearman) of estimates and measurements; and the planner's own
plan over the fastest, within a repeat.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.distributed.context import WorkerContext
from infnet_dist.planning.costs.options import ShardingOption
from infnet_dist.planning.estimates import estimate_plan
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.planning.topology import Topology, load_topology, this_topology
from infnet_dist.planning.torchrec_plan import to_sharding_plan
from infnet_dist.sharding.build import table_bytes
from infnet_dist.training.provenance import versions
from ray_jobs._local import run_local
from ray_jobs._plan_calibrate import measure as measure_workers

TABLES, WIDTH = 8, 64


class Lookups(nn.Module):
    """All tables, and a loss that needs every row."""

    def __init__(self, tables: Sequence[PlanTable]) -> None:
        """Tables on the meta device."""
        super().__init__()
        self.embeddings = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=table.name,
                    num_embeddings=table.num_embeddings,
                    embedding_dim=table.embedding_dim,
                    feature_names=[feature.name for feature in table.features],
                )
                for table in tables
            ],
            device=torch.device("meta"),
        )

    def forward(self, ids: KeyedJaggedTensor) -> torch.Tensor:
        """Mean square of all rows that were looked up."""
        found = self.embeddings(ids)
        return torch.stack([rows.values().square().mean() for rows in found.values()]).sum()


def main() -> None:
    """Measure every plan and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--topology", help="calibrated topology (default: calibrate)")
    arguments = parser.parse_args()
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    ranks = arguments.ranks
    calibrated = load_topology(arguments.topology) if arguments.topology else calibrate(ranks)
    table_set = make_tables(arguments.rows, arguments.length, arguments.batch)
    chosen = make_plan(table_set, calibrated)
    plans = {
        name: estimate_plan(table_set, calibrated, one) for name, one in by_hand(ranks).items()
    }
    own = next((name for name, plan in plans.items() if is_same(plan, chosen)), "planned")
    plans[own] = chosen
    default = this_topology("cpu", ranks, ranks)
    before = {
        name: estimate_plan(table_set, default, options_of(plan)) for name, plan in plans.items()
    }
    given = {"plans": plans, "steps": arguments.steps, "repeats": arguments.repeats}
    found = run_local(measure, given, num_workers=ranks)
    measured = {name: found[0][name].ms for name in plans}
    held = {name: max(rank[name].bytes for rank in found) for name in plans}
    medians = {name: statistics.median(times) for name, times in measured.items()}
    print("                             ms, a step                            MiB, fullest rank")
    print("plan                         default  calibrated  measured  ratio     planned     held")
    for name, plan in plans.items():
        planned, got = max(plan.ranks.stored_bytes), held[name]
        print(
            f"{name:28} {before[name].bottleneck_ms:7.1f} {plan.bottleneck_ms:11.1f} "
            f"{medians[name]:9.1f} {medians[name] / plan.bottleneck_ms:6.2f} "
            f"{planned / 2**20:11.2f} {got / 2**20:8.2f}"
        )
    for kind, all_plans in (("default", before), ("calibrated", plans)):
        estimates = [all_plans[name].bottleneck_ms for name in plans]
        correlation = spearman(estimates, list(medians.values()))
        print(f"rank correlation of {kind} estimates and measured ms: {correlation:.2f}")
    best = min(medians, key=lambda name: medians[name])
    ratios = [one / two for one, two in zip(measured[own], measured[best], strict=True)]
    print(
        f"the planner's own plan ({own}) / the fastest ({best}): {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


def calibrate(ranks: int) -> Topology:
    """The calibrated topology of this machine."""
    given = {"like": None, "name": "calibrated"}
    found: Topology = run_local(measure_workers, given, num_workers=ranks)[0]
    return found


def make_tables(rows: int, length: int, batch_size: int) -> TableSet:
    """Eight equal tables, each read by one sequence."""
    return TableSet(
        batch_size=batch_size,
        tables=tuple(
            PlanTable(
                name=f"t{i}",
                num_embeddings=rows,
                embedding_dim=WIDTH,
                pooling="none",
                features=(PlanFeature(name=f"f_t{i}", mean_length=length),),
            )
            for i in range(TABLES)
        ),
    )


Options = dict[str, tuple[ShardingOption, tuple[int, ...]]]


def by_hand(ranks: int) -> dict[str, Options]:
    """Eight plans that an engineer might write."""
    rows = (ShardingOption("row_wise", "fused", WIDTH), ())
    columns = (ShardingOption("column_wise", "fused", WIDTH // 2), (0, 1))

    def whole(rank: int) -> tuple[ShardingOption, tuple[int, ...]]:
        return ShardingOption("table_wise", "fused", WIDTH), (rank,)

    in_turn = [whole(i % ranks) for i in range(TABLES)]
    found = {
        "table_wise, in turn": in_turn,
        "table_wise, 3 of 4 on 0": [whole(0 if i % 4 else 1) for i in range(TABLES)],
        "table_wise, all on 0": [whole(0)] * TABLES,
        "row_wise": [rows] * TABLES,
        "column_wise": [columns] * TABLES,
        "row_wise 4, table_wise 4": [rows] * 4 + in_turn[4:],
        "row_wise 6, all others on 0": [rows] * 6 + [whole(0)] * 2,
        "row_ 2, column_ 2, table_ 4": [rows] * 2 + [columns] * 2 + in_turn[4:],
    }
    return {
        name: {f"t{i}": option for i, option in enumerate(options)}
        for name, options in found.items()
    }


def options_of(plan: Plan) -> Options:
    """The choices of a plan."""
    return {name: (entry.sharding_option, entry.places) for name, entry in plan.tables.items()}


def is_same(one: Plan, two: Plan) -> bool:
    """Whether plans of equal tables have the same types, and ranks equal loads."""
    types = [sorted(entry.sharding_type for entry in plan.tables.values()) for plan in (one, two)]
    return types[0] == types[1] and one.ranks == two.ranks


class Measurement(NamedTuple):
    """Of a plan on this rank: milliseconds of a step by repeat, bytes of the tables."""

    ms: list[float]
    bytes: int


def measure(
    context: WorkerContext, *, plans: dict[str, Plan], steps: int, repeats: int
) -> dict[str, Measurement]:
    """Run all plans in turn."""
    batches = make_batches(next(iter(plans.values())).made_for.tables, context)
    models = {name: shard(plan, context) for name, plan in plans.items()}
    found = {
        name: Measurement([], table_bytes(model, model.fused_optimizer))
        for name, model in models.items()
    }
    names = list(plans)
    for repeat in range(-1, repeats):  # the first only warms up
        start = repeat % len(names)
        for name in names[start:] + names[:start]:
            ms = statistics.median(step_ms(models[name], one) for one in cycle(batches, steps))
            if repeat >= 0:
                found[name].ms.append(ms)
    return found


def shard(plan: Plan, context: WorkerContext) -> DistributedModelParallel:
    """The tables under a plan."""
    model = Lookups(plan.made_for.tables.tables)
    for table in model.embeddings.parameters():
        apply_optimizer_in_backward(RowWiseAdagrad, [table], {"lr": 0.05, "eps": 1e-8})
    return DistributedModelParallel(
        module=model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=context.device,
        plan=to_sharding_plan(plan, model, context.device),
        sharders=[EmbeddingCollectionSharder()],
    )


def make_batches(table_set: TableSet, context: WorkerContext) -> list[KeyedJaggedTensor]:
    """Four batches of uniform ids."""
    generator = torch.Generator().manual_seed(context.rank)
    rows, length = table_set.tables[0].num_embeddings, int(table_set.tables[0].lengths[0])
    count = TABLES * table_set.batch_size
    return [
        KeyedJaggedTensor.from_lengths_sync(
            keys=[f"f_t{i}" for i in range(TABLES)],
            values=torch.randint(0, rows, (count * length,), generator=generator),
            lengths=torch.full((count,), length, dtype=torch.int32),
        )
        for _ in range(4)
    ]


def cycle(batches: list[KeyedJaggedTensor], steps: int) -> Iterator[KeyedJaggedTensor]:
    """As many batches as steps."""
    return itertools.islice(itertools.cycle(batches), steps)


def step_ms(model: DistributedModelParallel, batch: KeyedJaggedTensor) -> float:
    """Milliseconds of a step, until the last rank is done."""
    dist.barrier()
    start = time.perf_counter()
    model(batch).backward()
    dist.barrier()
    return 1000 * (time.perf_counter() - start)


def spearman(one: list[float], two: list[float]) -> float:
    """Rank correlation; equal values share their mean rank."""

    def ranks(values: list[float]) -> np.ndarray:
        _, place, counts = np.unique(np.round(values, 9), return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[place]

    return float(np.corrcoef(ranks(one), ranks(two))[0, 1])


if __name__ == "__main__":
    main()
