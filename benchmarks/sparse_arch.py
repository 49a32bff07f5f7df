"""Lookup, backward and update of tables: ours, fbgemm's kernel called directly, nn.EmbeddingBag.

    .venv/bin/python benchmarks/sparse_arch.py [--cases many one] [--batch-size 2048] [--steps 10]
        [--repeats 3]

    many    26 tables of 100,000 rows of 64 floats, one id of each per row of the batch
    one     1 table of 20,000,000 rows of 64 floats, 26 ids per row of the batch, summed (11 GB)

Random ids, the same for all; the gradients are given, so nothing but the tables is computed. Ours
is SparseArch in a sharded model of one worker, with row-wise Adagrad in its backward pass; the
kernel has the same optimizer; nn.EmbeddingBag has sparse gradients and torch's Adagrad. Each runs
in a process of its own, in turn, on one thread. CPU seconds; ratios are taken within a repeat,
and their median is printed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from lookups import STACK, sparse_step
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.batch import BatchRows, RankingBatch
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext, local_process_group
from infnet_dist.io.ports import free_ports
from infnet_dist.schema import BagFeature, CategoricalFeature, Schema, Table, Task
from infnet_dist.sharding.build import build_sharded_model
from infnet_dist.training.provenance import versions

WIDTH, RATE, EPS = 64, 0.05, 1e-8
CASES = {"many": (26, 100_000, 1), "one": (1, 20_000_000, 26)}  # tables, rows, ids of a bag
VARIANTS = ("ours", "kernel", "embedding_bag")
WARM_UP = 3  # steps

Step = Callable[[torch.Tensor], None]  # ids by table, [T, B * ids of a bag]


def main() -> None:
    """Measure all variants in turn, or one, for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        (case,) = arguments.cases
        print(measure(arguments.variant, case, arguments.batch_size, arguments.steps))
        return
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    for case in arguments.cases:
        found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(arguments.repeats):
            for variant, ms in found.items():
                ms.append(measure_alone(variant, case, arguments))
        print(f"\n{case}, {arguments.batch_size} rows a step\n\n| | CPU ms a step |\n|---|---|")
        for variant, ms in found.items():
            print(f"| {variant} | {statistics.median(ms):.1f} |")
        for other in VARIANTS[1:]:
            ratios = [a / b for a, b in zip(found[other], found["ours"], strict=True)]
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"speed of ours / {other}: {statistics.median(ratios):.2f} ({each})")


def measure_alone(variant: str, case: str, arguments: argparse.Namespace) -> float:
    """CPU milliseconds of a step, in a process of its own."""
    command = [sys.executable, __file__, "--variant", variant, "--cases", case]
    command += ["--batch-size", str(arguments.batch_size), "--steps", str(arguments.steps)]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    if done.returncode:
        sys.exit(f"{done.stderr}\nfailed: {' '.join(command)}")
    return float(done.stdout.splitlines()[-1])


def measure(variant: str, case: str, batch_size: int, steps: int) -> float:
    """CPU milliseconds of a step, the median."""
    torch.set_num_threads(1)
    tables, rows, length = CASES[case]
    generator = torch.Generator().manual_seed(0)
    shape = (steps + WARM_UP, tables, batch_size * length)
    ids = torch.randint(0, rows, shape, generator=generator)
    with local_process_group(
        0, 1, use_gpu=False, port=free_ports(1)[0], timeout_s=600.0
    ) as context:
        make = {"ours": our_step, "kernel": kernel_step, "embedding_bag": bag_step}[variant]
        step = make(context, tables, rows, length, batch_size)  # type: ignore[operator]
        spent = []
        for ids_of_step in ids:
            start = time.process_time()
            step(ids_of_step)
            spent.append(time.process_time() - start)
    return 1e3 * statistics.median(spent[WARM_UP:])


def our_step(context: WorkerContext, tables: int, rows: int, length: int, batch_size: int) -> Step:
    """SparseArch of a sharded model."""
    names = [f"f{number}" for number in range(tables)]
    fields: dict[str, tuple[object, ...]]
    if length == 1:
        fields = {
            "categorical": tuple(CategoricalFeature(name=n, table=n, column=n) for n in names)
        }
    else:
        fields = {
            "bags": tuple(
                BagFeature(name=n, table=n, column=n, pooling="sum", max_length=length)
                for n in names
            )
        }
    schema = Schema(
        tables=tuple(Table(name=n, num_embeddings=rows) for n in names),
        **fields,
        tasks=(Task(name="click", column="click"),),
        group_column=names[0] if length == 1 else "group",
        time_column="time",
    )
    config = Config(
        data={"path": "unused", "batch_size": batch_size},
        tables={"embedding_dim": WIDTH},
        sparse_optimizer={"learning_rate": RATE, "eps": EPS},
        model=STACK,
    )
    sharded = build_sharded_model(config, schema, context)
    lengths = torch.full((tables * batch_size,), length, dtype=torch.int32)
    keys = [feature.key for feature in schema.table_features]

    def batch_of(ids: torch.Tensor) -> RankingBatch:
        jagged = KeyedJaggedTensor(keys, ids.flatten(), lengths=lengths)
        return RankingBatch(
            sparse_features=jagged,
            weighted_features=None,
            dense_BN=torch.empty(batch_size, 0),
            vectors_BV=torch.empty(batch_size, 0),
            time_gap_BL=torch.empty(batch_size, 0, dtype=torch.uint8),
            labels_BK=torch.zeros(batch_size, 1),
            weights_B=torch.ones(batch_size),
            group_B=torch.zeros(batch_size).long(),
            truth_BK=torch.zeros(batch_size, 1),
            rows=BatchRows(0, ()),
        )

    batches: list[RankingBatch] = [batch_of(torch.zeros(tables, batch_size * length).long())]
    step = sparse_step(sharded, batches)

    def with_ids(ids: torch.Tensor) -> None:
        batches[0] = batch_of(ids)
        step(0)

    return with_ids


def kernel_step(
    context: WorkerContext, tables: int, rows: int, length: int, batch_size: int
) -> Step:
    """The kernel that TorchRec calls."""
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, WIDTH, EmbeddingLocation.HOST, ComputeDevice.CPU)] * tables,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=RATE,
        eps=EPS,
        pooling_mode=PoolingMode.SUM,
        device=torch.device("cpu"),
    )
    kernel.init_embedding_weights_uniform(-0.01, 0.01)
    offsets = torch.arange(0, tables * batch_size * length + 1, length)
    gradient = torch.full((batch_size, tables * WIDTH), 1e-3)

    def step(ids: torch.Tensor) -> None:
        kernel(ids.flatten(), offsets).backward(gradient)

    return step


def bag_step(context: WorkerContext, tables: int, rows: int, length: int, batch_size: int) -> Step:
    """Torch's own."""
    bags = nn.ModuleList(
        nn.EmbeddingBag(rows, WIDTH, mode="sum", sparse=True) for _ in range(tables)
    )
    optimizer = torch.optim.Adagrad(bags.parameters(), lr=RATE, eps=EPS)
    gradient = torch.full((batch_size, WIDTH), 1e-3)

    def step(ids: torch.Tensor) -> None:
        optimizer.zero_grad()
        pooled = [
            bag(of_table.view(batch_size, length)) for bag, of_table in zip(bags, ids, strict=True)
        ]
        torch.autograd.backward(pooled, [gradient] * tables)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
