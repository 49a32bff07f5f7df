"""Builds, shards and initialises the model; the order of the steps matters.

meta build -> sparse optimizer in backward -> plan -> DistributedModelParallel -> tables filled ->
dense optimizer. The same calls run on gloo with CPUs and on NCCL with GPUs.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
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
from infnet_dist.model.build import build_train_model
from infnet_dist.planning.checks import check_budget, check_plan
from infnet_dist.planning.host_memory import host_memory_bytes
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.plan_file import load_plan
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.planning.topology import Topology, this_topology
from infnet_dist.planning.torchrec_plan import CollectionSharder, find_collection, to_sharding_plan
from infnet_dist.schema import Schema
from infnet_dist.sharding.optimizers import apply_sparse_optimizer, make_dense_optimizer

_CHUNK_ROWS = 4096


class ShardedModel(NamedTuple):
    """A TrainModel spread over the workers.

    Attributes:
        model: takes a RankingBatch, returns (loss, StepOutput).
        optimizer: both optimizers as one, for a step and for checkpoints.
        sparse_optimizer: row-wise Adagrad; it has updated the rows when backward is done.
        dense_optimizer: AdamW.
        plan: the placement of the tables' shards.
        schema: its features, tables and tasks.
    """

    model: DistributedModelParallel
    optimizer: CombinedOptimizer
    sparse_optimizer: KeyedOptimizer
    dense_optimizer: KeyedOptimizerWrapper
    plan: Plan
    schema: Schema


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
    train_model = build_train_model(config, schema, table_device=torch.device("meta"))
    _, collection = find_collection(train_model)
    apply_sparse_optimizer(collection, config.sparse_optimizer)
    topology = topology_of(context)
    plan = context.on_first(lambda: get_plan(config, schema, topology, sample_usage))
    model = DistributedModelParallel(
        module=train_model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=context.device,
        plan=to_sharding_plan(plan, train_model, context.device),
        sharders=[CollectionSharder()],
        init_data_parallel=context.world_size > 1,  # nothing to all-reduce on one worker
        data_parallel_wrapper=FixedBuckets(),
    ).to(context.device)
    fill_tables(model, seed=config.run.seed)
    dense_optimizer = make_dense_optimizer(model, config.dense_optimizer)
    optimizer = CombinedOptimizer([model.fused_optimizer, ("dense", dense_optimizer)])
    return ShardedModel(model, optimizer, model.fused_optimizer, dense_optimizer, plan, schema)


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
    shards = [shard.tensor for tensor in tensors for shard in tensor.local_shards()]
    return sum(shard.nbytes for shard in shards)


def fill_tables(model: nn.Module, *, seed: int) -> None:
    """Initialise every table's rows uniformly in +-1/sqrt(num_embeddings), as TorchRec does.

    A row's values depend on (seed, table, row) alone, so runs under different plans and numbers of
    workers start from the same model. Seeds by rank would differ with the plan, and one seed for
    all ranks would give row-wise shards equal rows.
    """
    for name, tensor in _table_states(model):
        table = name.split(".")[-2]
        rows, columns = tensor.size()
        bound = rows**-0.5
        for shard in tensor.local_shards():
            row, column = shard.metadata.shard_offsets
            _fill(shard.tensor, (seed, table), row, column, columns, bound)


def _fill(
    shard: torch.Tensor, key: tuple[int, str], row: int, column: int, width: int, bound: float
) -> None:
    stop = row + shard.shape[0]
    for chunk in range(row // _CHUNK_ROWS, -(-stop // _CHUNK_ROWS)):
        generator = torch.Generator().manual_seed(stable_seed(*key, chunk))
        values = torch.rand(_CHUNK_ROWS, width, generator=generator).mul_(2 * bound).sub_(bound)
        first, last = max(row, chunk * _CHUNK_ROWS), min(stop, (chunk + 1) * _CHUNK_ROWS)
        part = values[first - chunk * _CHUNK_ROWS : last - chunk * _CHUNK_ROWS]
        with torch.no_grad():
            shard[first - row : last - row].copy_(part[:, column : column + shard.shape[1]])


def _table_states(model: nn.Module) -> list[tuple[str, ShardedTensor]]:
    return [
        (name, tensor)
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, ShardedTensor)
    ]
