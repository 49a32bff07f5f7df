"""Checks of the sharded model with one worker: fbgemm's kernels, NCCL, TorchRec's train pipeline.

Losses and tables of some steps are compared with those of an unsharded model on the CPU, whose
tables are trained by the formulas written out below.
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from gpu_checks.extent import Extent
from gpu_checks.harness import Check, SkippedError, Values, expect, synchronize
from infnet_dist.batch import BatchRows, RankingBatch
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext, local_process_group
from infnet_dist.io.ports import free_ports
from infnet_dist.lookups import Lookups, table_of
from infnet_dist.model.build import build_train_model
from infnet_dist.model.compute import compile_training
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.plan_file import save_plan
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.planning.topology import this_topology
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
from infnet_dist.sharding.build import ShardedModel, build_sharded_model, fill_tables
from infnet_dist.training.step import EagerStep, PipelinedStep, Step, StepSettings

Kernel = Literal["fused", "fused_uvm", "fused_uvm_caching"]
STEPS = 10
CACHE_SHARE = 0.2  # of the rows
TABLES = ("user", "item", "author", "tag")


class Case(NamedTuple):
    """What is trained, and how.

    Attributes:
        optimizer: of the tables.
        kernel: of the tables.
        tolerance: largest relative error of a loss, and a tenth of that of the tables' change.
    """

    optimizer: str = "rowwise_adagrad"
    kernel: Kernel = "fused"
    precision: str = "fp32"
    compiled: bool = False
    step: type[Step] = EagerStep
    tolerance: float = 1e-3


class Outcome(NamedTuple):
    """The losses of all steps, and the tables after them by name, on the CPU."""

    losses: list[float]
    tables: dict[str, torch.Tensor]


CASES: dict[str, Case] = {
    "step": Case(),
    "pipelined step": Case(step=PipelinedStep),
    "tables in host memory": Case(kernel="fused_uvm"),
    "cached tables": Case(kernel="fused_uvm_caching"),
    "adam": Case(optimizer="adam"),
    "partial row-wise adam": Case(optimizer="partial_rowwise_adam"),
    "bf16": Case(precision="bf16", tolerance=3e-2),
    "compiled": Case(compiled=True),
}


def sharded_checks(device: torch.device, extent: Extent) -> Iterator[Check]:
    """All checks of this part; they run in a process group that lasts as long as this iterator."""
    (port,) = free_ports(1)
    with local_process_group(
        0, 1, use_gpu=device.type == "cuda", port=port, timeout_s=120
    ) as context:
        for name, case in CASES.items():
            yield Check(f"sharded {name}", partial(check_case, case, context, extent))
        yield Check("sharded skipped batch", partial(check_skipped, context, extent))
        yield Check("sharded speed", partial(measure_steps, context, extent))


def check_case(case: Case, context: WorkerContext, extent: Extent) -> Values:
    """Losses and tables after some steps, against an unsharded model on the CPU."""
    rows, size = extent.table_rows, extent.parity_batch
    schema, config = make_schema(rows), make_config(case, extent)
    batches = [make_batch(schema, size, seed=seed) for seed in range(STEPS)]
    expected = train_unsharded(config, schema, batches)
    plan = make_kernel_plan(case, config, schema, context.device)
    if context.device.type == "cpu" and case.kernel != "fused":
        raise SkippedError("a CPU has one memory")
    if context.device.type == "cpu" and case.optimizer != "rowwise_adagrad":
        raise SkippedError(f"fbgemm has no {case.optimizer} on CPUs")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        save_plan(plan, path)
        planned = config.model_copy(
            update={"sharding": config.sharding.model_copy(update={"plan": path})}
        )
        sharded = build_sharded_model(planned, schema, context)
    before = tables_of(sharded)
    if case.compiled:
        torch.compiler.reset()
        compile_training(sharded.model.module.model.dense, backend=extent.backend)
    found = train_sharded(case, sharded, context, batches)
    loss_error = max(
        abs(one / other - 1) for one, other in zip(found.losses, expected.losses, strict=True)
    )
    table_error = max(
        float((found.tables[name] - table).norm() / (table - before[name]).norm().clamp(min=1e-12))
        for name, table in expected.tables.items()
    )
    expect(loss_error <= case.tolerance, f"the relative error of a loss is {loss_error:.1e}")
    allowed = 10 * case.tolerance
    expect(table_error <= allowed, f"the relative error of a table's change is {table_error:.1e}")
    return {"error/loss": loss_error, "error/tables": table_error}


def check_skipped(context: WorkerContext, extent: Extent) -> Values:
    """A batch whose loss isn't finite changes no table and no parameter."""
    schema = make_schema(extent.table_rows)
    config = make_config(Case(), extent)
    sharded = build_sharded_model(config, schema, context)
    step = EagerStep(sharded, context, seed=0)
    good = make_batch(schema, extent.parity_batch, seed=0)
    bad = make_batch(schema, extent.parity_batch, seed=1)
    bad.weights_B[0] = torch.inf
    step.train(good, StepSettings(0))
    before = state_of(sharded)
    result = step.train(bad, StepSettings(1))
    expect(result.flags.read().nonfinite_loss, "the flag isn't set")
    after = state_of(sharded)
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    expect(not changed, f"changed: {', '.join(changed)}")
    step.train(good, StepSettings(2))
    same = [name for name, value in state_of(sharded).items() if torch.equal(value, after[name])]
    expect(len(same) < len(after), "the next step changed nothing")
    return {}


def measure_steps(context: WorkerContext, extent: Extent) -> Values:
    """Rows per second of eager and pipelined steps, which take turns, and waits of the host."""
    schema = make_schema(extent.speed_rows)
    batches = [make_batch(schema, extent.speed_batch, seed=seed) for seed in range(4)]
    turns: dict[str, Callable[[], float]] = {}
    for name, kind in (("eager", EagerStep), ("pipelined", PipelinedStep)):
        sharded = build_sharded_model(make_config(Case(), extent), schema, context)
        turns[name] = partial(seconds_per_step, kind(sharded, context, seed=0), batches, extent)
    for turn in turns.values():
        turn()  # warms up
    taken = {name: [] for name in turns}
    for _ in range(3):
        for name, turn in turns.items():
            taken[name].append(turn())
    found: Values = {
        f"{name}/rows/s": extent.speed_batch / statistics.median(times)
        for name, times in taken.items()
    }
    found["eager / pipelined"] = statistics.median(
        one / other for one, other in zip(taken["eager"], taken["pipelined"], strict=True)
    )
    if context.device.type == "cuda":
        found["waits in an eager step"] = count_waits(turns["eager"]) / extent.repeats
    return found


def seconds_per_step(step: Step, batches: list[RankingBatch], extent: Extent) -> float:
    """The mean over `extent.repeats` steps."""
    device, numbers = step._context.device, count()
    again = (batches[number % len(batches)] for number in range(extent.repeats))
    synchronize(device)
    start = time.perf_counter()
    for _ in step.over(again, lambda: StepSettings(next(numbers))):
        pass
    synchronize(device)
    return (time.perf_counter() - start) / extent.repeats


def count_waits(function: Callable[[], object]) -> int:
    """Operations that make the host wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in caught)


# ---- the model and its input


def make_schema(rows: int) -> Schema:
    """Single ids, a history and a bag: an EmbeddingCollection and an EmbeddingBagCollection."""
    history = (
        SequenceAttribute(name="item", table="item", column="click_item"),
        SequenceAttribute(name="author", table="author", column="click_author"),
    )
    return Schema(
        tables=tuple(Table(name=name, num_embeddings=rows) for name in TABLES),
        categorical=tuple(
            CategoricalFeature(name=name, table=name, column=name) for name in TABLES[:3]
        ),
        bags=(BagFeature(name="tags", table="tag", column="tags", pooling="mean", max_length=4),),
        sequences=(SequenceFeature(name="click", attributes=history, max_length=10),),
        tasks=(Task(name="click", column="click"), Task(name="like", column="like")),
        group_column="user",
        time_column="time",
    )


def make_config(case: Case, extent: Extent) -> Config:
    """A small INFNet."""
    sizes = extent.sizes
    return Config.model_validate(
        {
            "data": {"path": "unused", "batch_size": extent.parity_batch},
            "tables": {"embedding_dim": sizes.width},
            "model": {"name": "infnet", "token_dim": sizes.token_dim, "num_hubs": 4},
            "sparse_optimizer": {"name": case.optimizer, "learning_rate": 0.01, "eps": 1e-4},
            "training": {"precision": case.precision},
            "scaling": {"num_workers": 1},
        }
    )


def make_batch(schema: Schema, size: int, *, seed: int) -> RankingBatch:
    """Random ids and labels; all lists are full."""
    generator = torch.Generator().manual_seed(seed)
    lengths = {bag.name: bag.max_length for bag in schema.bags}
    for sequence in schema.sequences:
        lengths |= dict.fromkeys(sequence_keys(sequence), sequence.max_length)
    keys = schema.unweighted_keys
    rows = {f.key: schema.table(f.table).num_embeddings for f in schema.table_features}
    ids = [
        torch.randint(rows[key], (size * lengths.get(key, 1),), generator=generator) for key in keys
    ]
    num_items, num_tasks = sum(s.max_length for s in schema.sequences), len(schema.tasks)
    return RankingBatch(
        sparse_features=KeyedJaggedTensor(
            keys=list(keys),
            values=torch.cat(ids),
            lengths=torch.cat([torch.full((size,), lengths.get(key, 1)) for key in keys]),
            stride=size,
        ),
        weighted_features=None,
        vectors_BV=torch.zeros(size, 0),
        dense_BN=torch.zeros(size, 0),
        time_gap_BL=torch.zeros(size, num_items, dtype=torch.uint8),
        labels_BK=torch.randint(2, (size, num_tasks), generator=generator).float(),
        weights_B=torch.ones(size),
        group_B=torch.zeros(size, dtype=torch.int64),
        truth_BK=torch.full((size, num_tasks), torch.nan),
        rows=BatchRows(epoch=0, intervals=((0, size),)),
    )


def make_kernel_plan(case: Case, config: Config, schema: Schema, device: torch.device) -> Plan:
    """A plan for one worker in which all tables have the case's kernel."""
    table_set = tables_of_run(config, schema)
    on = "cuda" if case.kernel != "fused" else device.type
    if on == "cuda":
        share = CACHE_SHARE if case.kernel == "fused_uvm_caching" else None
        for name in TABLES:
            table_set = table_set.replace(name, compute_kernels=(case.kernel,), cache_share=share)
    plan = make_plan(table_set, this_topology(on, 1, 1))
    kernels = {entry.compute_kernel for entry in plan.tables.values()}
    expect(kernels == {case.kernel}, f"the plan has the kernels {kernels}")
    return plan


# ---- training, sharded and not


def train_sharded(
    case: Case, sharded: ShardedModel, context: WorkerContext, batches: list[RankingBatch]
) -> Outcome:
    """Train on the device."""
    step, numbers = case.step(sharded, context, seed=0), count()
    results = list(step.over(iter(batches), lambda: StepSettings(next(numbers))))
    return Outcome([float(result.loss) for result in results], tables_of(sharded))


def tables_of(sharded: ShardedModel) -> dict[str, torch.Tensor]:
    """Copies of all tables, on the CPU."""
    states = state_of(sharded)
    return {table: value for name, value in states.items() if (table := table_of(name))}


def state_of(sharded: ShardedModel) -> dict[str, torch.Tensor]:
    """Copies of all tables and parameters, on the CPU."""
    found = {}
    for name, value in sharded.model.state_dict().items():
        local = value.local_shards()[0].tensor if hasattr(value, "local_shards") else value
        found[name] = local.detach().to("cpu", copy=True)
    return found


def train_unsharded(config: Config, schema: Schema, batches: list[RankingBatch]) -> Outcome:
    """Train on the CPU in float32, the tables by the formulas of their optimizers."""
    plain = config.training.model_copy(update={"precision": "fp32"})
    config = config.model_copy(update={"training": plain})
    model = build_train_model(config, schema)
    fill_tables(model, Lookups(schema, config), seed=config.run.seed)
    parameters = dict(model.named_parameters())
    tables = {table: p for name, p in parameters.items() if (table := table_of(name))}
    dense = [p for name, p in parameters.items() if not table_of(name)]
    adamw = torch.optim.AdamW(
        dense,
        lr=config.dense_optimizer.learning_rate,
        weight_decay=config.dense_optimizer.weight_decay,
    )
    update = UPDATES[config.sparse_optimizer.name]
    states: dict[str, dict[str, Any]] = {name: {} for name in tables}
    losses = []
    for number, batch in enumerate(batches, 1):
        model.zero_grad()
        loss = model(batch)[0]
        loss.backward()
        adamw.step()
        with torch.no_grad():
            for name, table in tables.items():
                assert table.grad is not None
                change = update(table.grad, states[name], number, config.sparse_optimizer.eps)
                table -= config.sparse_optimizer.learning_rate * change
        losses.append(loss.item())
    return Outcome(losses, {name: table.detach() for name, table in tables.items()})


def rowwise_adagrad(grad: torch.Tensor, state: dict[str, Any], step: int, eps: float) -> Any:
    """Rows that weren't looked up have gradients of 0."""
    state["sum"] = state.get("sum", 0.0) + grad.square().mean(dim=1, keepdim=True)
    return grad / (state["sum"].sqrt() + eps)


def adam(
    grad: torch.Tensor, state: dict[str, Any], step: int, eps: float, *, by_row: bool = False
) -> Any:
    """Rows that weren't looked up, with gradients of 0, and their momenta stay as they are."""
    looked_up = grad.abs().sum(dim=1, keepdim=True) > 0
    square = grad.square().mean(dim=1, keepdim=True) if by_row else grad.square()
    for name, decay, value in (("first", 0.9, grad), ("second", 0.999, square)):
        old = state.get(name, torch.zeros_like(value))
        state[name] = torch.where(looked_up, decay * old + (1 - decay) * value, old)
    first, second = state["first"] / (1 - 0.9**step), state["second"] / (1 - 0.999**step)
    return looked_up * first / (second.sqrt() + eps)


UPDATES: dict[str, Callable[..., Any]] = {
    "rowwise_adagrad": rowwise_adagrad,
    "adam": adam,
    "partial_rowwise_adam": partial(adam, by_row=True),
}
