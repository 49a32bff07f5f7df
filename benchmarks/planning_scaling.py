"""Is the predicted throughput of more workers right? Predicted beside measured on gloo ranks.

    .venv/bin/python benchmarks/planning_scaling.py [--ranks 1,2,4] [--steps 30] [--repeats 3]
        [--topology FILE]

Two workers are calibrated (or --topology names an earlier calibration), and the dense part, an MLP,
is measured alone on one worker. From both, and from the planner's plan for each number of workers,
follows the throughput of whole steps, as in `infnet plan whatif --dense-ms`. Then the model (four
tables of sequences, four of bags, the MLP under DDP with AdamW) runs on that many ranks of this
machine: forward, backward with the updates, optimizer. With more ranks than cores, times grow by
the number of ranks that share a core. Medians over repeats; the order of ranks alternates.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.distributed.context import WorkerContext
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.review.throughput import DensePart, estimate_step
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.planning.topology import load_topology, save_topology, this_topology
from infnet_dist.planning.torchrec_plan import to_sharding_plan
from infnet_dist.training.provenance import versions
from ray_jobs._local import run_local
from ray_jobs._plan_calibrate import measure as measure_workers

BATCH, WIDTH, LENGTH, HIDDEN = 256, 32, 8, 768
TABLES = TableSet(
    batch_size=BATCH,
    tables=tuple(
        PlanTable(
            name=f"{kind}{i}",
            num_embeddings=20_000 * (i + 1),
            embedding_dim=WIDTH,
            pooling=pooling,
            # Without data_parallel, which would need an optimizer of its own here.
            sharding_types=("table_wise", "row_wise"),
            features=(PlanFeature(name=f"f_{kind}{i}", mean_length=LENGTH),),
        )
        for kind, pooling in (("sequence", "none"), ("bag", "sum"))
        for i in range(4)
    ),
)


class Model(nn.Module):
    """Lookups, then an MLP."""

    def __init__(self) -> None:
        """Tables on the meta device."""
        super().__init__()
        tables = {
            kind: [
                {
                    "name": table.name,
                    "num_embeddings": table.num_embeddings,
                    "embedding_dim": WIDTH,
                    "feature_names": [feature.name for feature in table.features],
                }
                for table in TABLES.tables
                if table.home == kind
            ]
            for kind in ("sequence", "bag")
        }
        device = torch.device("meta")
        self.sequences = EmbeddingCollection(
            tables=[EmbeddingConfig(**table) for table in tables["sequence"]], device=device
        )
        self.bags = EmbeddingBagCollection(
            tables=[EmbeddingBagConfig(**table) for table in tables["bag"]], device=device
        )
        self.dense = mlp()

    def forward(self, ids: KeyedJaggedTensor) -> torch.Tensor:
        """A loss of all rows."""
        rows = [found.values() for found in self.sequences(ids).values()]
        means = [each.view(BATCH, LENGTH, WIDTH).mean(1) for each in rows]
        return self.dense(torch.cat([*means, self.bags(ids).values()], 1)).square().mean()


def mlp() -> nn.Module:
    """The dense part."""
    width = len(TABLES.tables) * WIDTH
    return nn.Sequential(
        nn.Linear(width, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, 1),
    )


def main() -> None:
    """Calibrate, predict, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--topology", help="calibrated topology (default: calibrate 2 workers)")
    arguments = parser.parse_args()
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    ranks = [int(count) for count in arguments.ranks.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.topology or Path(folder) / "calibrated.json"
        if arguments.topology is None:
            given = {"like": None, "name": "calibrated"}
            save_topology(run_local(measure_workers, given, num_workers=2)[0], path)
        calibrated = load_topology(path)
        plans = {
            count: make_plan(TABLES, this_topology("cpu", count, count, like=path))
            for count in ranks
        }
    print("calibrated on", calibrated.world_size, "workers")
    dense_ms, measured = [], {count: [] for count in ranks}
    for repeat in range(arguments.repeats):
        given = {"steps": arguments.steps}
        dense_ms.append(run_local(measure_dense, given, num_workers=1)[0])
        for count in ranks if repeat % 2 == 0 else ranks[::-1]:
            given = {"plan": plans[count], "steps": arguments.steps}
            measured[count].append(run_local(measure, given, num_workers=count)[0])
    dense = DensePart(statistics.median(dense_ms), sum(p.numel() for p in mlp().parameters()))
    print(f"dense part: {dense.ms:.2f} ms, {dense.parameters:,} parameters")
    print("                milliseconds of a step                         samples/s")
    print(
        "ranks  lookups  dense  all-reduce  predicted     measured    predicted    measured  ratio"
    )
    for count, plan in plans.items():
        step, found = estimate_step(plan, dense), statistics.median(measured[count])
        rows = 1000 * BATCH * count
        print(
            f"{count:5} {step.lookups_ms:8.2f} {step.dense_ms:6.2f} {step.all_reduce_ms:11.2f} "
            f"{step.ms:13.2f} {found:12.2f} {rows / step.ms:12,.0f} {rows / found:11,.0f} "
            f"{found / step.ms:6.2f}"
        )


def measure_dense(context: WorkerContext, *, steps: int) -> float:
    """Milliseconds of the dense part alone."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    given = torch.randn(BATCH, len(TABLES.tables) * WIDTH, requires_grad=True)

    def step() -> None:
        model(given).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return typical_ms(step, steps)


def measure(context: WorkerContext, *, plan: Plan, steps: int) -> float:
    """Milliseconds of a whole step."""
    model = Model()
    for table in (*model.sequences.parameters(), *model.bags.parameters()):
        apply_optimizer_in_backward(RowWiseAdagrad, [table], {"lr": 0.05, "eps": 1e-8})
    sharded = DistributedModelParallel(
        module=model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=context.device,
        plan=to_sharding_plan(plan, model, context.device),
        sharders=[EmbeddingCollectionSharder(), EmbeddingBagCollectionSharder()],
    )
    optimizer = torch.optim.AdamW(
        parameter for _, parameter in in_backward_optimizer_filter(sharded.named_parameters())
    )
    generator = torch.Generator().manual_seed(context.rank)
    batches = [batch(generator) for _ in range(4)]
    numbers = iter(range(10**9))

    def step() -> None:
        dist.barrier()
        sharded(batches[next(numbers) % len(batches)]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return max(context.gather(typical_ms(step, steps)))


def batch(generator: torch.Generator) -> KeyedJaggedTensor:
    """Uniform ids of all tables."""
    ids = [
        torch.randint(table.num_embeddings, (BATCH * LENGTH,), generator=generator)
        for table in TABLES.tables
    ]
    return KeyedJaggedTensor.from_lengths_sync(
        keys=[feature.name for table in TABLES.tables for feature in table.features],
        values=torch.cat(ids),
        lengths=torch.full((len(ids) * BATCH,), LENGTH, dtype=torch.int32),
    )


def typical_ms(step: Callable[[], None], steps: int) -> float:
    """Median milliseconds of a step."""
    times = []
    for _ in range(steps + 5):
        start = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[5:])


if __name__ == "__main__":
    main()
