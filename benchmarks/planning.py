"""Our planner beside TorchRec's default one: CPU seconds, bottleneck, distance to the lower bound.

    .venv/bin/python benchmarks/planning.py [--only 100x8,1000x128] [--share 0.3,0.95] [--limit 120]

Both get the same tables, topology (h100x8), reserve and cost model. Each plans in a separate
process; CPU seconds of one core are counted from the tables to the plan, with enumeration, without
imports. A planner that needs more than --limit CPU seconds is stopped and reported as such. Tables
are seeded: rows from 1,000 to at most 5 billion by a power law, scaled so that rows and optimizer
state take --share of all HBM; 8 to 256 floats; 1 or 2 features of 1 to 100 ids. At shares near 1
not everything fits HBM, since TorchRec counts inputs and outputs too, and rows must spill.
"""

import argparse
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad

from infnet_dist.errors import PlanError
from infnet_dist.planning.costs.sizes import row_bytes
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.planning.topology import Topology, load_topology
from infnet_dist.training.provenance import versions

SIZES = "10x8,100x8,100x128,1000x8,1000x128,1000x1024"
MOST_ROWS = 5e9
# As TorchRec's planner: by default ours doesn't split tables by columns.
TYPES = (
    *("data_parallel", "table_wise", "column_wise", "row_wise", "table_row_wise", "grid_shard"),
)


def main() -> None:
    """Plan every size with both planners and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=SIZES, help="TABLESxRANKS, with commas")
    parser.add_argument("--share", default="0.3", help="shares of all HBM, with commas")
    parser.add_argument("--limit", type=int, default=120, help="CPU seconds a planner may take")
    parser.add_argument("--planners", default="ours,torchrec", help="with commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", choices=("ours", "torchrec"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments)
        return
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    print("tables x ranks  share  planner   CPU s  bottleneck ms  over bound  peak GiB")
    for share in arguments.share.split(","):
        for size in arguments.only.split(","):
            planners = arguments.planners.split(",")
            found = {who: run(who, size, share, arguments) for who in planners}
            for who, row in found.items():
                print(f"{size:14}  {float(share):5.2f}  {who:8} {show(row)}", flush=True)
            ours, theirs = found.get("ours", {}), found.get("torchrec", {})
            if "seconds" in ours and "seconds" in theirs:
                ratios = [ours[key] / theirs[key] for key in ("seconds", "bottleneck_ms")]
                print(f"{'':14}  ours / torchrec: CPU {ratios[0]:.3f}, bottleneck {ratios[1]:.3f}")


def show(row: dict[str, Any]) -> str:
    """The measured cells, or why there are none."""
    if "error" in row:
        return row["error"]
    over = f"{row['over_bound']:10.1%}" if "over_bound" in row else f"{'-':>10}"
    return f"{row['seconds']:7.2f}  {row['bottleneck_ms']:13.4g}  {over}  {row['peak_gib']:8.2f}"


def run(who: str, size: str, share: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one planner on one input, in a separate process."""
    command = [sys.executable, __file__, "--one", who, "--only", size, "--share", share]
    command += ["--seed", str(arguments.seed), "--limit", str(arguments.limit)]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode < 0:
        return {"error": f"not done in {arguments.limit} CPU s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:90]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(arguments: argparse.Namespace) -> None:
    """Plan once and print JSON; the kernel ends this process at the limit."""
    logging.disable(logging.CRITICAL)
    count, ranks = map(int, arguments.only.split("x"))
    topology = load_topology("h100x8").with_world_size(ranks)
    table_set = make_tables(count, topology, float(arguments.share), arguments.seed)
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + arguments.limit, used + arguments.limit))
    start = time.process_time()
    plan = plan_ours if arguments.one == "ours" else plan_torchrec
    try:
        result = plan(table_set, topology)
    except PlanError as error:
        result = {"error": str(error)[:90]}
    result["seconds"] = time.process_time() - start
    result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(result))


def make_tables(count: int, topology: Topology, share: float, seed: int) -> TableSet:
    """The seeded tables; the largest is chosen so that all together take the share."""
    rng = np.random.default_rng(seed)
    place = rng.random(count) ** 2  # most tables are small
    widths = rng.choice([8, 16, 32, 64, 128, 256], count)
    lengths = [
        rng.choice([1, 1, 1, 2, 5, 10, 20, 50, 100], rng.integers(1, 3)) for _ in range(count)
    ]

    def tables(most_rows: float) -> TableSet:
        rows = 1e3 * (most_rows / 1e3) ** place
        return TableSet(
            batch_size=512,
            tables=tuple(
                PlanTable(
                    name=f"t{i}",
                    num_embeddings=int(rows[i]),
                    embedding_dim=int(widths[i]),
                    sharding_types=TYPES,
                    features=tuple(
                        PlanFeature(name=f"t{i}_{j}", mean_length=float(length))
                        for j, length in enumerate(lengths[i])
                    ),
                )
                for i in range(count)
            ),
        )

    def taken(most_rows: float) -> float:
        found = tables(most_rows)
        return sum(t.num_embeddings * row_bytes(t, found.optimizer) for t in found.tables)

    wanted = share * topology.capacity[0] * topology.world_size
    low, high = 2e3, MOST_ROWS
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if taken(middle) < wanted else (low, middle)
    return tables(low)


def plan_ours(table_set: TableSet, topology: Topology) -> dict[str, Any]:
    """Our planner."""
    plan = make_plan(table_set, topology)
    over = plan.bottleneck_ms / plan.lower_bound_ms - 1
    return {"bottleneck_ms": plan.bottleneck_ms, "over_bound": over}


def plan_torchrec(table_set: TableSet, topology: Topology) -> dict[str, Any]:
    """TorchRec's planner with its default proposers."""
    model = nn.Sequential(
        EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=table.name,
                    num_embeddings=table.num_embeddings,
                    embedding_dim=table.embedding_dim,
                    feature_names=[feature.name for feature in table.features],
                )
                for table in table_set.tables
            ],
            device=torch.device("meta"),
        )
    )
    apply_optimizer_in_backward(RowWiseAdagrad, model.parameters(), {"lr": 0.1})
    planner = EmbeddingShardingPlanner(
        topology=topology.to_torchrec(),
        batch_size=table_set.batch_size,
        storage_reservation=FixedPercentageStorageReservation(topology.reserve),
        constraints={
            table.name: ParameterConstraints(pooling_factors=list(table.lengths))
            for table in table_set.tables
        },
        debug=False,
    )
    try:
        planner.plan(model, [EmbeddingBagCollectionSharder()])
    except Exception as error:  # PlannerError and plain RuntimeErrors
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:90]}
    time_ms = np.zeros(topology.world_size)
    for option in planner._best_plan or ():
        for shard in option.shards:
            time_ms[shard.rank] += shard.perf.total
    return {"bottleneck_ms": float(time_ms.max())}


if __name__ == "__main__":
    main()
