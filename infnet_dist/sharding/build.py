"""Builds, shards and initialises the model; the order of the steps matters.

meta build -> sparse optimizer in backward -> plan -> DistributedModelParallel -> tables filled ->
dense optimizer. The same calls run on gloo with CPUs and on NCCL with GPUs.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.nn import functional
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import (
    DefaultDataParallelWrapper,
    DistributedModelParallel,
)
from torchrec.distributed.types import ShardingEnv
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper

from infnet_dist.config.run import Config
from infnet_dist.data.hashing import stable_seed
from infnet_dist.data.statistics import TableUsage
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.lookups import Lookups, TableLookups
from infnet_dist.model.build import build_train_model
from infnet_dist.planning.checks import check_budget, check_plan
from infnet_dist.planning.host_memory import host_memory_bytes
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.plan_file import load_plan
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.planning.topology import Topology, this_topology
from infnet_dist.planning.torchrec_plan import to_sharding_plan
from infnet_dist.schema import Schema
from infnet_dist.sharding.optimizers import apply_sparse_optimizer, make_dense_optimizer

_CHUNK_ROWS = 4096
_TABLE = re.compile(r"\.(?:embeddings|embedding_bags)\.([^.]+)\.weight$")  # in a state_dict


class ShardedModel(NamedTuple):
    """A TrainModel spread over the workers.

    Attributes:
        model: takes a RankingBatch, returns (loss, StepOutput).
        optimizer: both optimizers as one, for a step and for checkpoints.
        sparse_optimizer: row-wise Adagrad; it has updated the rows when backward is done.
        dense_optimizer: AdamW.
        plan: the placement of the tables' shards.
        lookups: its features and tables.
    """

    model: DistributedModelParallel
    optimizer: CombinedOptimizer
    sparse_optimizer: KeyedOptimizer
    dense_optimizer: KeyedOptimizerWrapper
    plan: Plan
    lookups: Lookups


class FixedBuckets(DefaultDataParallelWrapper):
    """DDP with the same gradient buckets in every step, so that a resumed run is bit-identical.

    An all-reduce over three or more ranks adds an element's summands in an order that depends on
    its place in its bucket. By default DDP uses one bucket in the first step of a process and
    rebuilds its buckets before the second in the order in which gradients were ready: the sums of a
    step would depend on the step in which the process began. Here they are rebuilt before the first
    step, in the order of the parameters; DDP never rebuilds them twice.
    """

    def _ddp_wrap(
        self,
        dmp: DistributedModelParallel,
        env: ShardingEnv,
        device: torch.device,
        ddp_ignore_param_names: set[str],
    ) -> None:
        super()._ddp_wrap(dmp, env, device, ddp_ignore_param_names)
        reducer = dmp._dmp_wrapped_module.reducer
        reducer._push_all_rebuilt_params()
        if not reducer._rebuild_buckets():  # not an assert: it must happen under python -O too
            raise RuntimeError("DDP kept its first gradient buckets; resume wouldn't be exact")


def build_sharded_model(
    config: Config,
    schema: Schema,
    context: WorkerContext,
    sample_usage: Callable[[], TableUsage] | None = None,
) -> ShardedModel:
    """Build, plan, shard and initialise the model; every rank calls it.

    Args:
        config: the run.
        schema: the selected features.
        context: this worker.
        sample_usage: reads how the training set uses the tables; called on rank 0 where it plans.

    Raises:
        PlanError: the plan file doesn't fit, or no plan can be made.
        ConfigError: unknown table or task names.
    """
    lookups = Lookups(schema, config)
    train_model = build_train_model(config, schema, table_device=torch.device("meta"))
    apply_sparse_optimizer(train_model.model.sparse, config.sparse_optimizer)
    topology = topology_of(context)
    plan = context.on_first(lambda: get_plan(config, schema, topology, sample_usage))
    model = DistributedModelParallel(
        module=train_model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=context.device,
        plan=to_sharding_plan(plan, train_model, context.device),
        sharders=[EmbeddingCollectionSharder(), EmbeddingBagCollectionSharder()],
        init_data_parallel=context.world_size > 1,  # nothing to all-reduce on one worker
        data_parallel_wrapper=FixedBuckets(),
    ).to(context.device)
    fill_tables(model, lookups, seed=config.run.seed)
    dense_optimizer = make_dense_optimizer(model, config.dense_optimizer)
    optimizer = CombinedOptimizer([model.fused_optimizer, ("dense", dense_optimizer)])
    return ShardedModel(model, optimizer, model.fused_optimizer, dense_optimizer, plan, lookups)


def topology_of(context: WorkerContext) -> Topology:
    """The topology of this run's workers; every rank calls it.

    Nodes may differ: each worker counts with the least RAM of all, and `this_topology` assumes
    equal parts of nodes.
    """
    workers = context.local_world_size
    known = context.gather((workers, host_memory_bytes() / workers))
    return this_topology(
        context.device.type,
        context.world_size,
        math.gcd(*(workers for workers, _ in known)),
        bytes_per_worker=min(ram for _, ram in known),
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
        tensors += [t for t in states.values() if isinstance(t, ShardedTensor)]
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
        if match := _TABLE.search(name):
            yield match[1], tensor


def _local_shards(
    tensor: torch.Tensor | ShardedTensor,
) -> Iterator[tuple[torch.Tensor, Sequence[int]]]:
    """This rank's rectangles, each with its first row and column."""
    if isinstance(tensor, ShardedTensor):
        for shard in tensor.local_shards():
            yield shard.tensor, shard.metadata.shard_offsets
    else:
        yield tensor, (0, 0)
