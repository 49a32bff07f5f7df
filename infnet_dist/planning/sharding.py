"""Plans and models: check a plan against a model's tables, and turn it into TorchRec's plan."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from pydantic import ValidationError
from torch import nn
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
    ShardingType,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from infnet_dist.config.run import Config
from infnet_dist.data.statistics import Usage
from infnet_dist.errors import PlanError
from infnet_dist.io.parsing import first_error
from infnet_dist.planning.plan import Plan, differences, first_few, shards_of
from infnet_dist.planning.popularity import fit_zipf
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.schema import Schema, Table, sequence_key

# Column-wise is left out unless a table asks for it: under row-wise Adagrad each column shard keeps
# its own state, so results differ from an unsharded table's, and it can't be resharded to another
# type.
DEFAULT_SHARDING_TYPES = ("table_wise", "row_wise")
_LEAST_LENGTH = 0.01  # of a sequence that is always empty


class CollectionSharder(EmbeddingCollectionSharder):
    """Offers what trains correctly under an optimizer fused in backward, on CPU and CUDA.

    Left out: data-parallel and the dense kernel (wrong or memory-unsafe for sequences on the CPU).
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Table-, column- and row-wise."""
        return [t.value for t in (ShardingType.TABLE_WISE, ShardingType.COLUMN_WISE)] + [
            ShardingType.ROW_WISE.value
        ]


def find_collection(model: nn.Module) -> tuple[str, EmbeddingCollection]:
    """Path and module of the model's one EmbeddingCollection."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, EmbeddingCollection)]
    assert len(found) == 1, f"expected one EmbeddingCollection, found {len(found)}"
    return found[0]


def tables_of_run(config: Config, schema: Schema, usage: Usage | None = None) -> TableSet:
    """The tables that a run trains.

    Args:
        config: batch size, width and type of the rows, allowed sharding types.
        schema: the selected features.
        usage: what the training set looks up; None: sequences count as full, skew is unknown.

    Raises:
        PlanError: a table or batch is beyond what is planned for; names it.
    """
    lengths = dict.fromkeys((feature.key for feature in schema.fields), 1.0)
    for sequence in schema.sequences:
        keys = [sequence_key(sequence, attribute) for attribute in sequence.attributes]
        lengths |= dict.fromkeys(keys, float(sequence.max_length))
    if usage is not None:
        lengths |= {key: max(usage.mean_lengths[key], _LEAST_LENGTH) for key in lengths}
    try:
        tables = tuple(_tables(config, schema, usage, lengths))
        return TableSet(
            batch_size=config.data.batch_size,
            optimizer="rowwise_adagrad",
            background_save=config.checkpoint.background,
            tables=tables,
        )
    except ValidationError as error:
        raise PlanError(f"these tables can't be planned: {first_error(error)}") from None


def _tables(
    config: Config, schema: Schema, usage: Usage | None, lengths: Mapping[str, float]
) -> Iterator[PlanTable]:
    for table in schema.tables:
        keys = [feature.key for feature in schema.table_features if feature.table == table.name]
        if not keys:
            continue
        override = config.tables.overrides.get(table.name)
        yield PlanTable(
            name=table.name,
            num_embeddings=table.num_embeddings,
            embedding_dim=config.tables.embedding_dim,
            data_type=config.tables.data_type,
            pooling="none",
            zipf=_zipf(table, usage),
            features=tuple(PlanFeature(name=k, mean_length=lengths[k]) for k in keys),
            sharding_types=(override and override.sharding_types) or DEFAULT_SHARDING_TYPES,
            min_column_width=4,
        )


def _zipf(table: Table, usage: Usage | None) -> float | None:
    if usage is None:
        return None
    return fit_zipf(
        num_embeddings=table.num_embeddings,
        lookups=usage.lookups[table.name],
        distinct=usage.distinct[table.name],
    )


def check_plan(
    plan: Plan,
    table_set: TableSet,
    *,
    world_size: int,
    workers_per_node: int | None = None,
    device: str | None = None,
) -> None:
    """Check that `plan` can be loaded for these tables and workers.

    Without `workers_per_node` any division into nodes will do, without `device` any device.

    Raises:
        PlanError: names the first differences, their number, and how to get the right plan.
    """
    tables = {table.name: table for table in table_set.tables}
    found = differences(
        plan, tables, world_size=world_size, workers_per_node=workers_per_node, device=device
    )
    if found:
        raise PlanError(
            "the plan doesn't fit: "
            + first_few(found, "listed by python -m ray_jobs.plan check PLAN --config CONFIG")
            + "; set sharding.plan=auto, or make a plan with: python -m ray_jobs.plan make "
            "--config CONFIG --output PLAN"
        )


def to_sharding_plan(plan: Plan, model: nn.Module, device: torch.device) -> ShardingPlan:
    """TorchRec's plan for the collections of `model`, on workers with devices like `device`.

    Raises:
        PlanError: a table of the model isn't in the plan.
    """
    modules = {}
    for path, tables in _collections(model):
        missing = [name for name in tables if name not in plan.tables]
        if missing:
            raise PlanError(f"tables {', '.join(missing)} of {path} aren't in the plan")
        parameters = EmbeddingModuleShardingPlan()
        for name in tables:
            parameters[name] = _parameter_sharding(plan, name, device)
        modules[path] = parameters
    return ShardingPlan(plan=modules)


def _collections(model: nn.Module) -> Iterator[tuple[str, Sequence[str]]]:
    for path, module in model.named_modules():
        if isinstance(module, EmbeddingCollection):
            yield path, [config.name for config in module.embedding_configs()]
        elif isinstance(module, EmbeddingBagCollection):
            yield path, [config.name for config in module.embedding_bag_configs()]


def _parameter_sharding(plan: Plan, name: str, device: torch.device) -> ParameterSharding:
    topology, entry = plan.made_for.topology, plan.tables[name]
    shards = list(shards_of(plan.made_for.tables.table(name), entry, topology))
    spec = None
    if entry.sharding_type != "data_parallel":  # whose shards are whole tables: DDP's, no spec
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
