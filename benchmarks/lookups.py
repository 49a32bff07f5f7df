"""What bags and widths by table save: CPU time, bytes between workers, memory.

    .venv/bin/python benchmarks/lookups.py [--only bags|widths] [--rows 50000] [--batch-size 256]
        [--steps 4] [--repeats 7] [--tables industrial]

Random ids in two sets, trained on gloo ranks of this machine (OMP_NUM_THREADS=1):

    bags    20 bags of 10 ids each (mean), a candidate and a user, 16 floats a row, 1 and 2 ranks.
            Training samples per CPU second of all ranks: the model with bags; with the same ids as
            histories, as before there were bags; its sparse part alone (forward, backward, update
            of the rows); and TorchRec's EmbeddingBagCollection alone under the same plan, which
            sums or averages the same ids. The cheapest model: mean of a history, an MLP.
    widths  The tables of a tables file, at most `--rows` rows each, on 2 ranks: with its widths,
            types and bags, against 128 floats of fp16 for all tables, bags as histories. Samples
            per second, bytes by collective, peak memory.

"Before": every table is in an EmbeddingCollection, and a bag is a behaviour of its own, whose items
are tokens. Variants take turns, ratios are taken within a repeat, medians printed.
"""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.batch import BatchRows, RankingBatch
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.lookups import Lookups
from infnet_dist.planning.tables import TableSet, load_table_set
from infnet_dist.planning.torchrec_plan import to_sharding_plan
from infnet_dist.schema import (
    BagFeature,
    CategoricalFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
    sequence_keys,
)
from infnet_dist.sharding.build import ShardedModel, build_sharded_model
from infnet_dist.sharding.optimizers import (
    apply_sparse_optimizers,
    learning_rate_factors,
    make_sparse_optimizer,
)
from infnet_dist.training.provenance import versions
from infnet_dist.training.step import EagerStep, StepSettings
from ray_jobs._local import run_local

BAGS, IDS, WIDTH = 20, 10, 16
STACK = {
    "name": "stack",
    "token_dim": 16,
    "sequence": {"name": "mean"},
    "interaction": {"name": "deep"},
    "head": {"name": "linear"},
}
ONE_WIDTH = {"embedding_dim": 128, "data_type": "fp16"}
WARM_UP = 2  # steps


def main() -> None:
    """Measure both sets, or one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("bags", "widths"))
    parser.add_argument("--rows", type=int, default=50_000, help="of a table")
    parser.add_argument("--batch-size", type=int, default=256, help="rows per rank and step")
    parser.add_argument("--steps", type=int, default=4, help="of each variant in a repeat")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tables", default="industrial", help="a tables file")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print("command:", "python", *sys.argv)
    print("versions:", json.dumps(versions()))
    print("machine:", platform.processor() or platform.machine(), os.cpu_count(), "cores")
    if arguments.only != "widths":
        for ranks in (1, 2):
            compare_bags(ranks, arguments)
    if arguments.only != "bags":
        compare_widths(arguments)


# ---- bags


def compare_bags(ranks: int, arguments: argparse.Namespace) -> None:
    """Print samples per CPU second of all variants, and ratios within a repeat."""
    sizes = {"rows": arguments.rows, "batch_size": arguments.batch_size}
    sizes |= {"steps": arguments.steps, "repeats": arguments.repeats}
    found = run_local(measure_bags, sizes, num_workers=ranks)
    cpu_s = {
        name: [sum(turn) for turn in zip(*(rank[name] for rank in found), strict=True)]
        for name in found[0]
    }
    samples = ranks * arguments.steps * arguments.batch_size
    print(f"\n{BAGS} bags of {IDS} ids, {arguments.rows} rows a table, {ranks} rank(s)\n")
    print("| | samples per CPU s |\n|---|---|")
    for name, turns in cpu_s.items():
        print(f"| {name} | {samples / statistics.median(turns):,.0f} |")
    for one, other in (
        ("model, bags", "model, histories"),
        ("sparse part", "bare, sum"),
        ("sparse part", "bare, mean"),
        ("model, bags", "bare, mean"),
    ):
        print(f"{one} / {other}: {spread(cpu_s[other], cpu_s[one])}")


def measure_bags(
    context: WorkerContext, *, rows: int, batch_size: int, steps: int, repeats: int
) -> dict[str, list[float]]:
    """CPU seconds of this rank by variant and repeat."""
    torch.set_num_threads(1)
    config = Config(
        data={"path": "unused", "batch_size": batch_size},
        tables={"embedding_dim": WIDTH},
        model=STACK,
    )
    bags, histories = bag_schema(rows), as_histories(bag_schema(rows))
    model = build_sharded_model(config, bags, context)
    before = build_before(config, histories, context)
    print_plan(context, model)
    bag_batches = [random_batch(bags, batch_size, seed=2 * i + context.rank) for i in range(4)]
    history_batches = [
        random_batch(histories, batch_size, seed=2 * i + context.rank) for i in range(4)
    ]
    variants: dict[str, Callable[[int], None]] = {
        "model, bags": whole_step(model, config, context, bag_batches),
        "model, histories": whole_step(before, config, context, history_batches),
        "sparse part": sparse_step(model, bag_batches),
        "bare, sum": bare_step(model, PoolingType.SUM, bag_batches, context),
        "bare, mean": bare_step(model, PoolingType.MEAN, bag_batches, context),
    }
    cpu_s: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):  # the first only warms up
        for name, step in variants.items():
            dist.barrier()
            start = time.process_time()
            for number in range(steps):
                step(number)
            if repeat:
                cpu_s[name].append(time.process_time() - start)
    return cpu_s


def bag_schema(rows: int) -> Schema:
    """The set with bags."""
    names = [f"bag{i}" for i in range(BAGS)]
    return Schema(
        tables=tuple(Table(name=n, num_embeddings=rows) for n in ("user", "item", *names)),
        categorical=tuple(CategoricalFeature(name=n, table=n, column=n) for n in ("user", "item")),
        bags=tuple(
            BagFeature(name=n, table=n, column=n, pooling="mean", max_length=IDS) for n in names
        ),
        tasks=(Task(name="click", column="click"),),
        group_column="user",
        time_column="time",
    )


def as_histories(schema: Schema) -> Schema:
    """The same ids, each bag a behaviour of its own; weights are lost."""
    behaviours = tuple(
        SequenceFeature(
            name=bag.name,
            attributes=(SequenceAttribute(name="id", table=bag.table, column=bag.column),),
            max_length=bag.max_length,
        )
        for bag in schema.bags
    )
    return schema.model_copy(update={"bags": (), "sequences": (*schema.sequences, *behaviours)})


def build_before(config: Config, schema: Schema, context: WorkerContext) -> ShardedModel:
    """A model whose tables are all in EmbeddingCollections, single ids included."""
    with mock.patch.object(Lookups, "_home", lambda self, table: "sequence"):
        return build_sharded_model(config, schema, context)


def whole_step(
    sharded: ShardedModel, config: Config, context: WorkerContext, batches: list[RankingBatch]
) -> Callable[[int], None]:
    """Training steps of the whole model."""
    factors = learning_rate_factors(config, 0, 1000)
    eager = EagerStep(sharded, context, seed=0)

    def step(number: int) -> None:
        eager.train(batches[number % len(batches)], StepSettings(number, factors))

    return step


def sparse_step(sharded: ShardedModel, batches: list[RankingBatch]) -> Callable[[int], None]:
    """SparseArch alone: its outputs are given gradients at once."""
    sparse = sharded.model.module.model.sparse
    widths = [lookup.width for lookup in sharded.lookups.fields]
    gradients = [torch.full((len(batches[0].weights_B), width), 1e-3) for width in widths]

    def step(number: int) -> None:
        sharded.sparse_optimizer.zero_grad()
        embeddings = sparse(batches[number % len(batches)].sparse_features, None)
        torch.autograd.backward(embeddings.fields, gradients)
        sharded.sparse_optimizer.step()

    return step


class Bare(nn.Module):
    """One EmbeddingBagCollection, as TorchRec has it."""

    def __init__(self, lookups: Lookups, pooling: PoolingType) -> None:
        """All tables of `lookups`, on the meta device."""
        super().__init__()
        self.bags = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=table.name,
                    num_embeddings=table.table.num_embeddings,
                    embedding_dim=table.kernel_width,
                    feature_names=list(table.keys),
                    pooling=pooling,
                )
                for table in lookups.tables
            ],
            device=torch.device("meta"),
        )

    def forward(self, ids: KeyedJaggedTensor) -> torch.Tensor:
        """All pooled rows side by side."""
        pooled: torch.Tensor = self.bags(ids).values()
        return pooled


def bare_step(
    like: ShardedModel, pooling: PoolingType, batches: list[RankingBatch], context: WorkerContext
) -> Callable[[int], None]:
    """The collection alone, with the plan and the optimizers of `like`."""
    bare = Bare(like.lookups, pooling)
    apply_sparse_optimizers(bare, like.lookups)
    sharded = DistributedModelParallel(
        module=bare,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=context.device,
        plan=to_sharding_plan(like.plan, bare, context.device),
        sharders=[EmbeddingBagCollectionSharder()],
    )
    optimizer = make_sparse_optimizer(sharded, like.lookups)
    width = sum(lookup.width for lookup in like.lookups.fields)
    gradient = torch.full((len(batches[0].weights_B), width), 1e-3)

    def step(number: int) -> None:
        optimizer.zero_grad()
        sharded(batches[number % len(batches)].sparse_features).backward(gradient)
        optimizer.step()

    return step


# ---- widths


def compare_widths(arguments: argparse.Namespace) -> None:
    """Print speed, bytes and memory of both, and ratios within a repeat."""
    table_set = load_table_set(arguments.tables)
    sizes = {"tables": table_set, "rows": arguments.rows}
    sizes |= {"batch_size": arguments.batch_size, "steps": arguments.steps}
    found: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
    for repeat in range(arguments.repeats):
        for name in sorted(found, reverse=repeat % 2 == 1):
            options = sizes | {"before": name == "before"}
            ranks = run_local(measure_widths, options, num_workers=2)
            found[name].append({key: max(rank[key] for rank in ranks) for key in ranks[0]})
    before, now = found["before"], found["now"]
    print(f"\n{len(table_set.tables)} tables of at most {arguments.rows} rows, 2 ranks\n")
    print("| | before | now | before / now |\n|---|---|---|---|")
    for key in sorted(before[0] | now[0]):
        one, other = [r.get(key, 0.0) for r in before], [r.get(key, 0.0) for r in now]
        medians = f"{statistics.median(one):,.2f} | {statistics.median(other):,.2f}"
        print(f"| {key} | {medians} | {spread(one, other) if min(one + other) else ''} |")
    for name, turns in found.items():
        rates = [2 * 1e3 * arguments.batch_size / turn["ms a step"] for turn in turns]
        print(f"{name}: median {statistics.median(rates):,.0f} samples/s")


def measure_widths(
    context: WorkerContext,
    *,
    tables: TableSet,
    rows: int,
    batch_size: int,
    steps: int,
    before: bool,
) -> dict[str, float]:
    """This rank's milliseconds and bytes per step, and its memory."""
    torch.set_num_threads(1)
    start_mb = memory_mb("VmRSS")
    config = Config(
        data={"path": "unused", "batch_size": batch_size},
        tables=ONE_WIDTH if before else {"overrides": settings_of(tables)},
    )
    schema = schema_of(tables, rows)
    if before:
        schema = as_histories(schema)
    build = build_before if before else build_sharded_model
    sharded = build(config, schema, context)
    print_plan(context, sharded)
    batches = [random_batch(schema, batch_size, seed=2 * i + context.rank) for i in range(4)]
    step = whole_step(sharded, config, context, batches)
    with CollectiveBytes() as counted:
        step(0)
    for number in range(WARM_UP):
        step(number)
    dist.barrier()
    start, start_cpu = time.perf_counter(), time.process_time()
    for number in range(steps):
        step(number)
    dist.barrier()
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    megabytes = {f"MB a step, {name}": count / 1e6 for name, count in counted.bytes.items()}
    return megabytes | {
        "MB a step, all": sum(megabytes.values()),
        "ms a step": 1e3 * wall_s / steps,
        "CPU ms a step and rank": 1e3 * cpu_s / steps,
        "peak memory, MB": memory_mb("VmHWM"),
        "peak memory above the start, MB": memory_mb("VmHWM") - start_mb,
    }


def settings_of(tables: TableSet) -> dict[str, dict[str, object]]:
    """Overrides of `tables` in a run file."""
    return {
        table.name: {"embedding_dim": table.embedding_dim, "data_type": table.data_type}
        for table in tables.tables
    }


def schema_of(tables: TableSet, rows: int) -> Schema:
    """A set with these tables and features; lists are as long as their mean length."""
    singles, bags, behaviours = [], [], {}
    for table in tables.tables:
        for feature in table.features:
            name, length = feature.name, round(feature.mean_length)
            behaviour, _, attribute = name.partition(".")
            if attribute:
                found = SequenceAttribute(name=attribute, table=table.name, column=name)
                behaviours.setdefault((behaviour, length), []).append(found)
            elif length == 1:
                singles.append(CategoricalFeature(name=name, table=table.name, column=name))
            else:
                options = {"weight_column": f"{name}_weight"} if table.weighted else {}
                options |= {"pooling": table.pooling, "max_length": length}
                bags.append(BagFeature(name=name, table=table.name, column=name, **options))
    return Schema(
        tables=tuple(
            Table(name=table.name, num_embeddings=min(table.num_embeddings, rows))
            for table in tables.tables
        ),
        categorical=tuple(singles),
        bags=tuple(bags),
        sequences=tuple(
            SequenceFeature(name=name, attributes=tuple(attributes), max_length=length)
            for (name, length), attributes in behaviours.items()
        ),
        tasks=tuple(Task(name=name, column=name) for name in ("click", "like", "long_view")),
        group_column="user",
        time_column="time",
    )


class CollectiveBytes(TorchDispatchMode):
    """Bytes that this rank puts into a collective or gets out of it, the larger, by its kind.

    Attributes:
        bytes: by name of the operation.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Run the operation; count it if it is a collective."""
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func.name().partition("::")
        if namespace in ("c10d", "_c10d_functional") and "wait" not in name:
            sizes = [sum(map(_bytes_of, _flat(part))) for part in (*args, result)]
            self.bytes[name.partition(".")[0].strip("_")] += max(sizes)
        return result


def _flat(part: Any) -> Iterator[torch.Tensor]:
    if isinstance(part, torch.Tensor):
        yield part
    elif isinstance(part, list | tuple):
        for element in part:
            yield from _flat(element)


def _bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# ---- both


def random_batch(schema: Schema, size: int, *, seed: int) -> RankingBatch:
    """Uniform ids; all lists are full."""
    generator = torch.Generator().manual_seed(seed)
    lengths = {bag.name: bag.max_length for bag in schema.bags}
    for sequence in schema.sequences:
        lengths |= dict.fromkeys(sequence_keys(sequence), sequence.max_length)
    tables = {feature.key: schema.table(feature.table) for feature in schema.table_features}

    def jagged(keys: tuple[str, ...], *, weighted: bool) -> KeyedJaggedTensor:
        counts = [size * lengths.get(key, 1) for key in keys]
        ids = [
            torch.randint(tables[key].num_embeddings, (count,), generator=generator)
            for key, count in zip(keys, counts, strict=True)
        ]
        return KeyedJaggedTensor(
            keys=list(keys),
            values=torch.cat(ids),
            lengths=torch.cat([torch.full((size,), lengths.get(key, 1)) for key in keys]),
            weights=torch.rand(sum(counts), generator=generator) if weighted else None,
            stride=size,
        )

    num_items, num_tasks = sum(s.max_length for s in schema.sequences), len(schema.tasks)
    return RankingBatch(
        sparse_features=jagged(schema.unweighted_keys, weighted=False),
        weighted_features=jagged(schema.weighted_keys, weighted=True)
        if schema.weighted_keys
        else None,
        vectors_BV=torch.zeros(size, 0),
        dense_BN=torch.zeros(size, 0),
        time_gap_BL=torch.zeros(size, num_items, dtype=torch.uint8),
        labels_BK=torch.randint(2, (size, num_tasks), generator=generator).float(),
        weights_B=torch.ones(size),
        group_B=torch.zeros(size, dtype=torch.int64),
        truth_BK=torch.full((size, num_tasks), torch.nan),
        rows=BatchRows(epoch=0, intervals=((0, size),)),
    )


def print_plan(context: WorkerContext, sharded: ShardedModel) -> None:
    """Number of tables by home and sharding type."""
    tables = sharded.lookups.tables
    kinds = Counter((t.home, sharded.plan.tables[t.name].sharding_type) for t in tables)
    if context.is_first:
        print("plan:", ", ".join(f"{n} {home} {kind}" for (home, kind), n in kinds.items()))


def memory_mb(key: str) -> float:
    """Memory of this process from the kernel; getrusage's figure would begin with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) / 1e3


def spread(numerators: list[float], denominators: list[float]) -> str:
    """Ratios within the repeats: median (least to most)."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
