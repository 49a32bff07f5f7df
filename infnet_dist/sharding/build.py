"""Builds, shards and initialises the model; the order of the steps matters.

meta build -> sparse optimizer in backward -> plan -> DistributedModelParallel -> tables filled ->
dense optimizer. The same calls run on gloo with CPUs and on NCCL with GPUs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from infnet_dist.config.run import Config
from infnet_dist.config.tables import TableConfig
from infnet_dist.data.hashing import stable_seed
from infnet_dist.data.statistics import TableUsage
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.lookups import Lookups, TableLookups, table_of
from infnet_dist.model.build import build_train_model
from infnet_dist.model.compute import compile_training, set_tf32
from infnet_dist.planning.checks import check_budget, check_plan
from infnet_dist.planning.host_memory import host_memory_bytes
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.plan_file import load_plan
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.planning.topology import Topology, this_topology
from infnet_dist.planning.torchrec_plan import to_sharding_plan
from infnet_dist.schema import Schema
from infnet_dist.sharding.dense_optimizer import (
    DenseUpdate,
    WeightAverage,
    make_dense_optimizer,
)
from infnet_dist.sharding.optimizers import (
    apply_sparse_optimizers,
    check_plan_optimizers,
    ignores_zero_gradients,
    make_sparse_optimizer,
)
from infnet_dist.sharding.row_clipping import RowClipping
from infnet_dist.sharding.sharders import make_sharders
from infnet_dist.sharding.trainable import check_trainable_names, freeze_tables

_CHUNK_ROWS = 4096


class ShardedModel(NamedTuple):
    """A TrainModel spread over the workers.

    Attributes:
        model: takes a RankingBatch, returns (loss, StepOutput).
        sparse_optimizer: of the tables; but for data-parallel ones, backward updates the rows.
        dense_optimizer: of all other parameters.
        dense_update: applies it.
        masks_updates: whether a step with zero gradients changes nothing, so that a flag on the
            device can skip it.
        average: of the dense parameters; None without `dense_optimizer.ema_decay`.
        plan: the placement of the tables' shards.
        lookups: its features and tables.
    """

    model: DistributedModelParallel
    sparse_optimizer: CombinedOptimizer
    dense_optimizer: CombinedOptimizer
    dense_update: DenseUpdate
    masks_updates: bool
    average: WeightAverage | None
    plan: Plan
    lookups: Lookups

    @property
    def optimizer(self) -> CombinedOptimizer:
        """The state of all optimizers, for checkpoints."""
        average = [("average", self.average)] if self.average else []
        return CombinedOptimizer([self.sparse_optimizer, self.dense_optimizer, *average])

    def update(self, *, skipped: torch.Tensor | bool, is_last: bool) -> None:
        """Update what the backward pass doesn't: data-parallel tables and the dense part.

        Arguments as of `DenseUpdate.end_step`.
        """
        for _, optimizer in self.sparse_optimizer.optimizers[1:]:  # the first one is fused
            optimizer.step()
        self.dense_update.end_step(skipped=skipped, is_last=is_last)

    def serving_weights(self) -> AbstractContextManager[None]:
        """The dense parameters are those to evaluate and to serve: the average, if there is one."""
        return self.average.in_place() if self.average else nullcontext()


def _fix_buckets(wrapped: DistributedDataParallel) -> None:
    """Use the same buckets of gradients in every step, so that a resumed run is bit-identical.

    By default DDP uses one bucket in the first step of a process and rebuilds its buckets before
    the second in the order in which gradients were ready: the sums of a step would depend on the
    step in which the process began. It never rebuilds them twice.
    """
    wrapped.reducer._push_all_rebuilt_params()
    if not wrapped.reducer._rebuild_buckets():  # not an assert: it must happen under python -O too
        raise RuntimeError("DDP kept its first gradient buckets; resume wouldn't be exact")


def build_sharded_model(
    config: Config,
    schema: Schema,
    context: WorkerContext,
    sample_usage: Callable[[], TableUsage] | None = None,
    *,
    for_training: bool = True,
    beside: Plan | None = None,
) -> ShardedModel:
    """Build, plan, shard and initialise the model; every rank calls it.

    Args:
        config: the run.
        schema: the selected features.
        context: this worker.
        sample_usage: reads how the training set uses the tables; called on rank 0 where it plans.
        for_training: whether the model has the optimizers of `config`; without, also those that
            this device lacks may be configured.
        beside: plan of another model on these workers, for whose tables memory is left; then the
            plan has no optimizer state either, unlike that of an evaluation.

    Raises:
        PlanError: the plan file doesn't fit, or no plan can be made.
        ConfigError: unknown table or task names.
    """
    planned = config
    if not for_training:
        config = _without_optimizers(config)
    if beside is not None:
        planned = config
    lookups = Lookups(schema, config)
    train_model = build_train_model(config, schema, table_device=torch.device("meta"))
    if for_training:
        check_trainable_names(train_model, config)
    set_tf32(config.training.precision == "tf32")
    if config.training.compile and for_training:
        context.together(lambda: compile_training(train_model.model.dense))
    apply_sparse_optimizers(train_model.model.sparse, lookups)
    topology = topology_of(context, config.sharding.topology)
    if beside is not None:
        topology = topology.without(beside.ranks.memory.max(axis=0))
    plan = context.on_first(lambda: get_plan(planned, schema, topology, sample_usage))
    check_plan_optimizers(plan, lookups)
    if (max_norm := config.sparse_optimizer.max_gradient_norm) is not None:
        # TorchRec divides by the number of workers later, as the loss is the mean over them.
        clipping = RowClipping(lookups, max_norm * context.world_size)
        train_model.model.sparse.pooling.register_forward_hook(clipping)
    model = DistributedModelParallel(
        module=train_model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=context.device,
        plan=to_sharding_plan(plan, train_model, context.device),
        sharders=make_sharders(config.sharding, context),
        init_data_parallel=False,  # `DenseUpdate` averages the gradients of the dense part
    ).to(context.device)
    for module in model.modules():
        for lookup in getattr(module, "_lookups", ()):  # data-parallel tables have a DDP each
            if isinstance(lookup, DistributedDataParallel):
                _fix_buckets(lookup)
    fill_tables(model, lookups, seed=config.run.seed)
    return _with_optimizers(model, config, plan, lookups)


def _without_optimizers(config: Config) -> Config:
    """No table is trained, and the dense part has no average."""
    frozen = {"trainable": False}
    training = config.training.model_copy(update={"trainable": {}, "ids_only": False})
    overrides = {
        name: override.model_copy(update=frozen)
        for name, override in {"*": TableConfig(), **config.tables.overrides}.items()
    }
    tables = config.tables.model_copy(update={"overrides": overrides})
    dense = config.dense_optimizer.model_copy(update={"ema_decay": None})
    update = {"tables": tables, "dense_optimizer": dense, "training": training}
    return config.model_copy(update=update)


def _with_optimizers(
    model: DistributedModelParallel, config: Config, plan: Plan, lookups: Lookups
) -> ShardedModel:
    options = config.dense_optimizer
    dense_optimizer = make_dense_optimizer(model, options, config.training.lr_factor)
    sparse_optimizer = make_sparse_optimizer(model, lookups)
    freeze_tables(sparse_optimizer, lookups)
    average = None
    parameters = {
        name.removeprefix("dense."): value for name, value in dense_optimizer.params.items()
    }
    for parameter in parameters.values():
        dist.broadcast(parameter.detach(), src=0)
    if options.ema_decay is not None:
        average = WeightAverage(parameters, options.ema_decay)
    dense_update = DenseUpdate(
        dense_optimizer,
        average,
        max_gradient_norm=options.max_gradient_norm,
        accumulate_steps=config.training.accumulate_steps,
    )
    return ShardedModel(
        model=model,
        sparse_optimizer=sparse_optimizer,
        dense_optimizer=dense_optimizer,
        dense_update=dense_update,
        masks_updates=dense_update.masks and all(map(ignores_zero_gradients, lookups.tables)),
        average=average,
        plan=plan,
        lookups=lookups,
    )


def topology_of(context: WorkerContext, like: str | Path | None = None) -> Topology:
    """The topology of this run's workers, with the costs of `like`; every rank calls it.

    Nodes may differ: each worker counts with the least RAM of all, and `this_topology` assumes
    equal parts of nodes.
    """
    workers = context.local_world_size
    known = context.gather((workers, host_memory_bytes() / workers))
    return context.on_first(
        lambda: this_topology(
            context.device.type,
            context.world_size,
            math.gcd(*(workers for workers, _ in known)),
            bytes_per_worker=min(ram for _, ram in known),
            like=like,
        )
    )


def get_plan(
    config: Config,
    schema: Schema,
    topology: Topology,
    sample_usage: Callable[[], TableUsage] | None = None,
) -> Plan:
    """The plan file of the run, checked; with `sharding.plan: auto` a new plan for `topology`."""
    if config.sharding.plan == "auto":
        usage = sample_usage() if sample_usage else None
        return make_plan(tables_of_run(config, schema, usage), topology)
    plan = load_plan(config.sharding.plan)
    check_plan(
        plan,
        tables_of_run(config, schema),
        world_size=topology.world_size,
        workers_per_node=topology.workers_per_node,
        device=topology.device,
    )
    check_budget(plan, topology, background_save=config.checkpoint.background)
    return plan


def table_bytes(model: nn.Module, sparse_optimizer: KeyedOptimizer) -> int:
    """Bytes of this rank's shards of the tables: rows and optimizer state."""
    tensors = [tensor for _, tensor in _table_states(model)]
    for states in sparse_optimizer.state_dict()["state"].values():
        tensors += states.values()
    return sum(shard.nbytes for tensor in tensors for shard, _ in _local_shards(tensor))


def fill_tables(model: nn.Module, lookups: Lookups, *, seed: int) -> None:
    """Initialise the rows of all tables; by default uniformly in +-1/sqrt(num_embeddings).

    A row's values depend on (seed, table, row) alone, so runs under different plans and numbers of
    workers start from the same model. Seeds by rank would differ with the plan, and one seed for
    all ranks would give row-wise shards equal rows. Columns that only the kernel needs are 0.
    """
    tables = {table.name: table for table in lookups.tables}
    for name, tensor in _table_states(model):
        table = tables[name]
        for shard, (row, column) in _local_shards(tensor):
            _fill(shard, table, seed, row, column)


def _fill(shard: torch.Tensor, table: TableLookups, seed: int, row: int, column: int) -> None:
    stop, width = row + shard.shape[0], table.settings.embedding_dim
    padding = table.kernel_width - width
    for chunk in range(row // _CHUNK_ROWS, -(-stop // _CHUNK_ROWS)):
        generator = torch.Generator().manual_seed(stable_seed(seed, table.name, chunk))
        values = functional.pad(_initial_values(table, generator), (0, padding))
        first, last = max(row, chunk * _CHUNK_ROWS), min(stop, (chunk + 1) * _CHUNK_ROWS)
        part = values[first - chunk * _CHUNK_ROWS : last - chunk * _CHUNK_ROWS]
        with torch.no_grad():
            shard[first - row : last - row].copy_(part[:, column : column + shard.shape[1]])


def _initial_values(table: TableLookups, generator: torch.Generator) -> torch.Tensor:
    """`_CHUNK_ROWS` rows, float32."""
    settings = table.settings
    shape = (_CHUNK_ROWS, settings.embedding_dim)
    scale = settings.initial_scale or table.table.num_embeddings**-0.5
    if settings.initialization == "zeros":
        return torch.zeros(shape)
    if settings.initialization == "normal":
        return torch.randn(shape, generator=generator).mul_(scale)
    return torch.rand(shape, generator=generator).mul_(2 * scale).sub_(scale)


def _table_states(model: nn.Module) -> Iterator[tuple[str, torch.Tensor | ShardedTensor]]:
    """Name and rows of each table; a data-parallel one is a plain tensor."""
    for name, tensor in model.state_dict().items():
        if table := table_of(name):
            yield table, tensor


def _local_shards(
    tensor: torch.Tensor | ShardedTensor,
) -> Iterator[tuple[torch.Tensor, Sequence[int]]]:
    """This rank's rectangles, each with its first row and column."""
    if isinstance(tensor, ShardedTensor):
        for shard in tensor.local_shards():
            yield shard.tensor, shard.metadata.shard_offsets
    else:
        yield tensor, (0, 0)
