"""Is the predicted throughput of more workers right? Predicted beside measured on gloo ranks.

    .venv/bin/python benchmarks/planning_scaling.py [--ranks 1,2,4] [--steps 30] [--repeats 3]
        [--topology FILE] [--batch-size 256]

Two workers are calibrated (or --topology names an earlier calibration). The model is INFNet with a
history of two attributes, six bags and two single ids. Its step without lookups is measured on one
worker: rows that were looked up once are given to the rest of the model. From both, and from the
plan that a run makes by itself, follows the throughput of whole steps, as in `infnet plan whatif
--dense-ms`. Then that many ranks of this machine run the training step. With more ranks than cores,
times grow by the number of ranks that share a core. Medians over repeats; the order of ranks
alternates. OMP_NUM_THREADS=1.
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
from typing import NamedTuple

import torch
import torch.distributed as dist
from lookups import random_batch
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from infnet_dist.batch import RankingBatch
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.review.throughput import DensePart, estimate_step
from infnet_dist.planning.topology import load_topology, save_topology
from infnet_dist.schema import (
    BagFeature,
    CategoricalFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
)
from infnet_dist.sharding.build import ShardedModel, build_sharded_model
from infnet_dist.sharding.optimizers import learning_rate_factors
from infnet_dist.training.provenance import versions
from infnet_dist.training.step import EagerStep, StepSettings
from ray_jobs._local import run_local
from ray_jobs._plan_calibrate import measure as measure_workers

ROWS, BAGS, BAG_LENGTH, HISTORY = 50_000, 6, 8, 30
WARM_UP = 5  # steps


def main() -> None:
    """Calibrate, predict, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256, help="rows per rank and step")
    parser.add_argument("--topology", help="calibrated topology (default: calibrate 2 workers)")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    ranks = [int(count) for count in arguments.ranks.split(",")]
    dense: list[Measurement] = []
    found: dict[int, list[Measurement]] = {count: [] for count in ranks}
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.topology or Path(folder) / "calibrated.json"
        if arguments.topology is None:
            given = {"like": None, "name": "calibrated"}
            save_topology(run_local(measure_workers, given, num_workers=2)[0], path)
        print("calibrated on", load_topology(path).world_size, "workers")
        config = Config(
            data={"path": "unused", "batch_size": arguments.batch_size},
            sharding={"topology": path},
        )
        given = {"config": config, "steps": arguments.steps}
        for repeat in range(arguments.repeats):
            alone = given | {"with_lookups": False}
            dense.append(run_local(measure, alone, num_workers=1)[0])
            for count in ranks if repeat % 2 == 0 else ranks[::-1]:
                found[count].append(run_local(measure, given, num_workers=count)[0])
    part = DensePart(statistics.median(one.ms for one in dense), dense[0].parameters)
    print(f"step without lookups: {part.ms:.2f} ms; {part.parameters:,} parameters")
    print_table(found, part, arguments.batch_size)


class Measurement(NamedTuple):
    """Of some ranks.

    Attributes:
        ms: median milliseconds of a step, of the slowest rank.
        parameters: of the dense part.
        plan: the run's own.
    """

    ms: float
    parameters: int
    plan: Plan


def print_table(found: dict[int, list[Measurement]], dense: DensePart, batch_size: int) -> None:
    """One row per number of ranks."""
    parts = "lookups ms | dense ms | all-reduce ms | predicted ms | measured ms"
    print(f"| ranks | {parts} | predicted samples/s | measured | predicted / measured | tables |")
    print("|---" * 10 + "|")
    for count, measurements in found.items():
        plan = measurements[0].plan
        step, ms = estimate_step(plan, dense), statistics.median(one.ms for one in measurements)
        rows = 1000 * batch_size * count
        types = sorted({f"{entry.sharding_type}" for entry in plan.tables.values()})
        print(
            f"| {count} | {step.lookups_ms:.2f} | {step.dense_ms:.2f} | {step.all_reduce_ms:.2f} "
            f"| {step.ms:.2f} | {ms:.2f} | {rows / step.ms:,.0f} | {rows / ms:,.0f} "
            f"| {ms / step.ms:.2f} | {', '.join(types)} |"
        )


def measure(
    context: WorkerContext, *, config: Config, steps: int, with_lookups: bool = True
) -> Measurement:
    """Milliseconds of a training step, with or without its lookups."""
    torch.set_num_threads(1)
    schema = make_schema()
    sharded = build_sharded_model(config, schema, context)
    size = config.data.batch_size
    batches = [random_batch(schema, size, seed=4 * context.rank + i) for i in range(4)]
    if not with_lookups:
        model = sharded.model.module.model
        model.sparse = GivenRows(model.sparse, batches[0])
        batches = batches[:1]
    eager = EagerStep(sharded, context, seed=0)
    factors = learning_rate_factors(config, 0, 1000)

    def step(number: int) -> None:
        eager.train(batches[number % len(batches)], StepSettings(number, factors))

    ms = max(context.gather(typical_ms(step, steps)))
    return Measurement(ms, parameters_of(sharded), sharded.plan)


def make_schema() -> Schema:
    """Features of the benchmark."""
    bags = [f"bag{i}" for i in range(BAGS)]
    attributes = [
        SequenceAttribute(name=name, table=name, column=f"history_{name}")
        for name in ("item", "author")
    ]
    return Schema(
        tables=tuple(
            Table(name=name, num_embeddings=ROWS) for name in ("user", "item", "author", *bags)
        ),
        categorical=tuple(
            CategoricalFeature(name=name, table=name, column=name) for name in ("user", "item")
        ),
        bags=tuple(
            BagFeature(name=name, table=name, column=name, pooling="sum", max_length=BAG_LENGTH)
            for name in bags
        ),
        sequences=(
            SequenceFeature(name="history", attributes=tuple(attributes), max_length=HISTORY),
        ),
        tasks=tuple(Task(name=name, column=name) for name in ("click", "like")),
        group_column="user",
        time_column="time",
    )


class GivenRows(nn.Module):
    """Stands in for `SparseArch`: the rows of one batch, looked up once.

    Args:
        sparse: a sharded SparseArch without weighted bags.
        batch: its ids.
    """

    def __init__(self, sparse: nn.Module, batch: RankingBatch) -> None:
        super().__init__()
        self.pooling = sparse.pooling
        with torch.no_grad():
            rows = [collection(batch.sparse_features) for collection in sparse.sequences.values()]
            sums = sparse.bags(batch.sparse_features)
            self._rows = [
                {
                    key: JaggedTensor(leaf(one.values()), lengths=one.lengths())
                    for key, one in each.items()
                }
                for each in rows
            ]
            self._sums = KeyedTensor(sums.keys(), sums.length_per_key(), leaf(sums.values()))

    def forward(self, sparse_features, weighted_features):  # type: ignore[no-untyped-def]
        """See `SparseArch.forward`."""
        return self.pooling(self._rows, [self._sums], sparse_features, weighted_features)


def leaf(values: torch.Tensor) -> torch.Tensor:
    """A copy that takes gradients."""
    return values.detach().clone().requires_grad_()


def parameters_of(sharded: ShardedModel) -> int:
    """Of the dense part."""
    return sum(parameter.numel() for parameter in sharded.dense_optimizer.params.values())


def typical_ms(step: Callable[[int], None], steps: int) -> float:
    """Median milliseconds of a step."""
    times = []
    for number in range(WARM_UP + steps):
        dist.barrier()
        start = time.perf_counter()
        step(number)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[WARM_UP:])


if __name__ == "__main__":
    main()
