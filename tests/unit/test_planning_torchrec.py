"""Our plan as TorchRec's: of each sharding type, beside what TorchRec makes of the same choice."""

import pytest
import torch
from torch import nn
from torchrec.distributed.planner.planners import to_sharding_plan as torchrec_plan
from torchrec.distributed.types import ParameterSharding
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.tables import TableSet
from infnet_dist.planning.torchrec_plan import to_sharding_plan
from tests.unit.test_planning_costs import make_tables, make_topology, torchrec_options

POOLED = (
    "data_parallel",
    "table_wise",
    "column_wise",
    "row_wise",
    "table_row_wise",
    "grid_shard",
    "table_column_wise",
)


def chosen(name: str, sharding_type: str, kind: str) -> TableSet:
    """One table of 1,000,003 rows of 256 floats, of one sharding type."""
    (table,) = [table for table in make_tables(kind) if table.name == name]
    kept = table.model_copy(update={"sharding_types": (sharding_type,), "min_column_width": 64})
    return TableSet(batch_size=96, tables=(kept,))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize(
    ("sharding_type", "kind"),
    [
        *((t, "bag") for t in POOLED),
        *((t, "sequence") for t in ("table_wise", "column_wise", "row_wise")),
    ],
)
def test_each_type_becomes_torchrecs_own_plan(sharding_type: str, kind: str, device: str) -> None:
    topology = make_topology(3)
    table_set = chosen("t2", sharding_type, kind)
    plan = make_plan(table_set, topology)
    entry = plan.tables["t2"]
    assert entry.sharding_type == sharding_type
    (module,) = to_sharding_plan(plan, model(table_set, kind), torch.device(device)).plan.values()
    ours: ParameterSharding = module["t2"]

    option = torchrec_options(table_set, topology, "t2", entry.sharding_option)
    for shard, place in zip(option.shards, plan.shards("t2"), strict=True):
        shard.rank = place.rank
        assert shard.size == [place.rows, place.columns]
    (expected,) = torchrec_plan([option], topology.to_torchrec()).plan.values()
    theirs: ParameterSharding = expected["t2"]
    assert ours.sharding_type == theirs.sharding_type == sharding_type
    assert ours.compute_kernel == theirs.compute_kernel
    assert ours.ranks == theirs.ranks
    if sharding_type == "data_parallel":
        assert ours.sharding_spec is theirs.sharding_spec is None
        return
    for mine, its in zip(ours.sharding_spec.shards, theirs.sharding_spec.shards, strict=True):
        assert (mine.shard_offsets, mine.shard_sizes) == (its.shard_offsets, its.shard_sizes)
        assert mine.placement.rank() == its.placement.rank()
        assert mine.placement.device().type == device
        if device == "cuda":
            assert mine.placement == its.placement


def model(table_set: TableSet, kind: str) -> nn.Module:
    (table,) = table_set.tables
    shape = dict(
        name=table.name,
        num_embeddings=table.num_embeddings,
        embedding_dim=table.embedding_dim,
        feature_names=[feature.name for feature in table.features],
    )
    device = torch.device("meta")
    if kind == "sequence":
        return nn.Sequential(EmbeddingCollection(tables=[EmbeddingConfig(**shape)], device=device))
    return nn.Sequential(
        EmbeddingBagCollection(tables=[EmbeddingBagConfig(**shape)], device=device)
    )
