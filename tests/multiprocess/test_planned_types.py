"""Every sharding type that the planner gives on CPUs trains as unsharded tables do."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.optimizers import SGD, in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.distributed.context import WorkerContext
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.planning.topology import this_topology
from infnet_dist.planning.torchrec_plan import CollectionSharder, to_sharding_plan
from tests.ranks import run_ranks

ROWS = {"a": 37, "b": 50}
WIDTH, BATCH, RANKS, STEPS = 8, 3, 2, 2


def start_weight(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(ROWS[name])
    return torch.rand(ROWS[name], WIDTH, generator=generator)


def batch(rank: int, step: int) -> KeyedJaggedTensor:
    """BATCH rows of two ids (a) and of one (b)."""
    generator = torch.Generator().manual_seed(10 * rank + step)
    a = torch.randint(ROWS["a"], (2 * BATCH,), generator=generator)
    b = torch.randint(ROWS["b"], (BATCH,), generator=generator)
    lengths = torch.tensor([2] * BATCH + [1] * BATCH)
    return KeyedJaggedTensor(keys=["fa", "fb"], values=torch.cat([a, b]), lengths=lengths)


class Lookup(nn.Module):
    """The collection under a name, and its loss."""

    def __init__(self, tables: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.tables, self.pooled = tables, pooled

    def forward(self, ids: KeyedJaggedTensor) -> torch.Tensor:
        found = self.tables(ids)
        values = [found[k] if self.pooled else found[k].values() for k in ("fa", "fb")]
        return sum((value**2).sum() for value in values) / BATCH


def collection(pooled: bool, device: str) -> Lookup:
    make, kind = (
        (EmbeddingBagConfig, EmbeddingBagCollection)
        if pooled
        else (EmbeddingConfig, EmbeddingCollection)
    )
    tables = [
        make(name=n, num_embeddings=r, embedding_dim=WIDTH, feature_names=[f"f{n}"])
        for n, r in ROWS.items()
    ]
    return Lookup(kind(tables=tables, device=torch.device(device)), pooled)


def train_sharded(context: WorkerContext, *, sharding_type: str, pooled: bool) -> list[float]:
    tables = tuple(
        PlanTable(
            name=name,
            num_embeddings=rows,
            embedding_dim=WIDTH,
            pooling="sum" if pooled else "none",
            features=(PlanFeature(name=f"f{name}"),),
            sharding_types=(sharding_type,),
            min_column_width=4,
        )
        for name, rows in ROWS.items()
    )
    table_set = TableSet(batch_size=BATCH, optimizer="sgd", tables=tables)
    plan = make_plan(table_set, this_topology("cpu", RANKS, RANKS))
    assert {entry.sharding_type for entry in plan.tables.values()} == {sharding_type}
    module = collection(pooled, "meta")
    apply_optimizer_in_backward(SGD, module.parameters(), {"lr": 0.1})
    model = DistributedModelParallel(
        module=module,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        plan=to_sharding_plan(plan, module, torch.device("cpu")),
        sharders=[EmbeddingBagCollectionSharder() if pooled else CollectionSharder()],
    )
    with torch.no_grad():
        for key, value in model.state_dict().items():
            full = start_weight(key.split(".")[-2])
            for shard in value.local_shards() if isinstance(value, ShardedTensor) else ():
                (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.tensor.shape
                shard.tensor.copy_(full[row : row + rows, column : column + columns])
            if not isinstance(value, ShardedTensor):
                value.copy_(full)
    dense = dict(in_backward_optimizer_filter(model.named_parameters()))
    assert bool(dense) == (sharding_type == "data_parallel")
    optimizer = torch.optim.SGD(dense.values(), lr=0.1) if dense else None
    losses = []
    for step in range(STEPS):
        if optimizer:
            optimizer.zero_grad()
        loss = model(batch(context.rank, step))
        loss.backward()
        if optimizer:
            optimizer.step()
        losses.append(loss.item())
    return losses


def train_unsharded(pooled: bool) -> list[list[float]]:
    """Losses by rank and step of one model that sees the batches of all ranks."""
    model = collection(pooled, "cpu")
    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(start_weight(key.split(".")[-2]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses: list[list[float]] = [[] for _ in range(RANKS)]
    for step in range(STEPS):
        optimizer.zero_grad()
        parts = [model(batch(rank, step)) for rank in range(RANKS)]
        (sum(parts) / RANKS).backward()
        optimizer.step()
        for rank, part in enumerate(parts):
            losses[rank].append(part.item())
    return losses


@pytest.mark.parametrize(
    ("sharding_type", "pooled"),
    [
        *((kind, True) for kind in ("data_parallel", "table_wise", "column_wise", "row_wise")),
        *((kind, False) for kind in ("table_wise", "column_wise", "row_wise")),
    ],
)
def test_planned_types_train_as_unsharded_tables_do(sharding_type: str, pooled: bool) -> None:
    sharded = run_ranks(train_sharded, RANKS, sharding_type=sharding_type, pooled=pooled)
    for got, expected in zip(sharded, train_unsharded(pooled), strict=True):
        assert got == pytest.approx(expected, rel=1e-5)
