"""A plan as TorchRec's ShardingPlan for the collections of a model."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from infnet_dist.errors import PlanError
from infnet_dist.lookups import Home
from infnet_dist.planning.plan import Plan, shards_of


def to_sharding_plan(plan: Plan, model: nn.Module, device: torch.device) -> ShardingPlan:
    """TorchRec's plan for the collections of `model`, on workers with devices of this type.

    Raises:
        PlanError: a table of the model is missing in the plan, or planned for another collection.
    """
    modules = {}
    for path, home, tables in _collections(model):
        missing = [name for name in tables if name not in plan.tables]
        if missing:
            raise PlanError(f"tables {', '.join(missing)} of {path} are missing in the plan")
        wrong = [name for name in tables if plan.table(name).home != home]
        if wrong:
            kinds = ", ".join(plan.table(name).kind for name in wrong)
            raise PlanError(
                f"tables {', '.join(wrong)} are in the {home} collection {path}, but the plan has "
                f"them as {kinds}; make it again"
            )
        parameters = EmbeddingModuleShardingPlan()
        for name in tables:
            parameters[name] = _parameter_sharding(plan, name, device)
        modules[path] = parameters
    return ShardingPlan(plan=modules)


def _collections(model: nn.Module) -> Iterator[tuple[str, Home, Sequence[str]]]:
    """Path, home and names of the tables of each collection."""
    for path, module in model.named_modules():
        if isinstance(module, EmbeddingCollection):
            yield path, "sequence", [config.name for config in module.embedding_configs()]
        elif isinstance(module, EmbeddingBagCollection):
            home: Home = "weighted" if module.is_weighted() else "bag"
            yield path, home, [config.name for config in module.embedding_bag_configs()]


def _parameter_sharding(plan: Plan, name: str, device: torch.device) -> ParameterSharding:
    topology, entry = plan.made_for.topology, plan.tables[name]
    shards = list(shards_of(plan.table(name), entry, topology))
    spec = None
    if entry.sharding_type != "data_parallel":  # shards are whole tables under DDP, without a spec
        spec = EnumerableShardingSpec(
            [
                ShardMetadata(
                    shard_offsets=[shard.row_offset, shard.column_offset],
                    shard_sizes=[shard.rows, shard.columns],
                    placement=_placement(shard.rank, topology.workers_per_node, device),
                )
                for shard in shards
            ]
        )
    cache = CacheParams(load_factor=entry.cache_share) if entry.cache_share else None
    return ParameterSharding(
        sharding_type=entry.sharding_type,
        compute_kernel=entry.compute_kernel,
        ranks=[shard.rank for shard in shards],
        sharding_spec=spec,
        cache_params=cache,
    )


def _placement(rank: int, workers_per_node: int, device: torch.device) -> str:
    if device.type == "cpu":
        return f"rank:{rank}/cpu"
    return f"rank:{rank}/{device.type}:{rank % workers_per_node}"
