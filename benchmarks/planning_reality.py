"""Is the cost model right on this machine? Predicted bytes and times beside measured ones.

    .venv/bin/python benchmarks/planning_reality.py [--ranks 2] [--steps 30] [--repeats 3]

Five plans for the same eight tables (100,000 x 64, float32, 10 ids each, one EmbeddingCollection)
run on gloo ranks of this machine: lookup, all-to-all, backward with the update; no tower. Printed
are, for each plan, the estimated and the measured milliseconds of a step (median over repeats; the
order of plans changes from repeat to repeat), the planned and the held bytes of the fullest rank,
and the rank correlation (Spearman) of estimates and measurements.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping

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
from infnet_dist.planning.topology import this_topology
from infnet_dist.planning.torchrec_plan import to_sharding_plan
from infnet_dist.sharding.build import table_bytes
from infnet_dist.training.provenance import versions
from ray_jobs._local import run_local

TABLES, ROWS, WIDTH, LENGTH, BATCH = 8, 100_000, 64, 10, 512


class Lookups(nn.Module):
    """All tables, and a loss that needs every row."""

    def __init__(self, names: list[str]) -> None:
        """Tables on the meta device."""
        super().__init__()
        self.embeddings = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=name, num_embeddings=ROWS, embedding_dim=WIDTH, feature_names=[f"f_{name}"]
                )
                for name in names
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
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    plans = make_plans(arguments.ranks)
    measured: dict[str, list[float]] = {name: [] for name in plans}
    held: dict[str, list[int]] = {}
    for repeat in range(arguments.repeats):
        names = list(plans)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            found = run_local(
                measure,
                {"plan": plans[name], "steps": arguments.steps},
                num_workers=arguments.ranks,
            )[0]
            measured[name].append(found["ms"])
            held[name] = found["bytes"]
    print("plan                     estimated ms  measured ms   planned MiB   held MiB")
    for name, plan in plans.items():
        planned, got = max(plan.ranks.stored_bytes), max(held[name])
        print(
            f"{name:24} {plan.bottleneck_ms:12.1f} {statistics.median(measured[name]):12.1f} "
            f"{planned / 2**20:13.2f} {got / 2**20:10.2f}"
        )
    estimates = [plan.bottleneck_ms for plan in plans.values()]
    medians = [statistics.median(measured[name]) for name in plans]
    print(f"rank correlation of estimated and measured ms: {spearman(estimates, medians):.2f}")
    ratios = [m / e for m, e in zip(medians, estimates, strict=True)]
    print("measured / estimated ms:", ", ".join(f"{ratio:.2f}" for ratio in ratios))


def make_plans(ranks: int) -> dict[str, Plan]:
    """Our plan, and four that an engineer might write by hand."""
    tables = tuple(
        PlanTable(
            name=f"t{i}",
            num_embeddings=ROWS,
            embedding_dim=WIDTH,
            pooling="none",
            features=(PlanFeature(name=f"f_t{i}", mean_length=LENGTH),),
        )
        for i in range(TABLES)
    )
    table_set = TableSet(batch_size=BATCH, tables=tables)
    topology = this_topology("cpu", ranks, ranks)

    def fixed(options: Mapping[str, tuple[ShardingOption, tuple[int, ...]]]) -> Plan:
        return estimate_plan(table_set, topology, options)

    whole, rows = (
        ShardingOption("table_wise", "fused", WIDTH),
        ShardingOption("row_wise", "fused", WIDTH),
    )
    columns = ShardingOption("column_wise", "fused", WIDTH // 2)
    return {
        "ours": make_plan(table_set, topology),
        "table_wise, in turn": fixed({f"t{i}": (whole, (i % ranks,)) for i in range(TABLES)}),
        "table_wise, 3 of 4 on 0": fixed(
            {f"t{i}": (whole, (0 if i % 4 else 1,)) for i in range(TABLES)}
        ),
        "row_wise": fixed({f"t{i}": (rows, ()) for i in range(TABLES)}),
        "column_wise": fixed({f"t{i}": (columns, (0, 1)) for i in range(TABLES)}),
    }


def measure(context: WorkerContext, *, plan: Plan, steps: int) -> dict[str, object]:
    """Milliseconds of a step and bytes of the tables by rank."""
    model = Lookups([table.name for table in plan.made_for.tables.tables])
    for table in model.embeddings.parameters():
        apply_optimizer_in_backward(RowWiseAdagrad, [table], {"lr": 0.05, "eps": 1e-8})
    sharded = DistributedModelParallel(
        module=model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=context.device,
        plan=to_sharding_plan(plan, model, context.device),
        sharders=[EmbeddingCollectionSharder()],
    )
    generator = torch.Generator().manual_seed(context.rank)
    keys = [f"f_t{i}" for i in range(TABLES)]
    count = TABLES * BATCH * LENGTH
    batches = [
        KeyedJaggedTensor.from_lengths_sync(
            keys=keys,
            values=torch.randint(0, ROWS, (count,), generator=generator),
            lengths=torch.full((TABLES * BATCH,), LENGTH, dtype=torch.int32),
        )
        for _ in range(4)
    ]
    times = []
    for step in range(steps + 5):
        dist.barrier()
        start = time.perf_counter()
        sharded(batches[step % len(batches)]).backward()
        dist.barrier()
        times.append(time.perf_counter() - start)
    own = table_bytes(sharded, sharded.fused_optimizer)
    return {"ms": 1000 * statistics.median(times[5:]), "bytes": context.gather(own)}


def spearman(one: list[float], two: list[float]) -> float:
    """Rank correlation; equal values share their mean rank."""

    def ranks(values: list[float]) -> np.ndarray:
        _, place, counts = np.unique(np.round(values, 9), return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[place]

    return float(np.corrcoef(ranks(one), ranks(two))[0, 1])


if __name__ == "__main__":
    main()
