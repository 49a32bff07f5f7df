"""Every sharding type that the planner gives on CPUs trains as unsharded tables do.

One plan for three collections: a sequence's table (a), bags (b) and weighted bags (c).
"""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.optimizers import SGD, in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.distributed.context import WorkerContext
from infnet_dist.planning.costs.options import SEQUENCE_TYPES
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.planning.topology import this_topology
from infnet_dist.planning.torchrec_plan import to_sharding_plan
from tests.ranks import run_ranks

TABLES = {"a": (37, 8), "b": (50, 16), "c": (41, 8)}  # rows and width
LENGTHS = {"a": 2, "b": 1, "c": 3}
BATCH, STEPS = 3, 2
SEVERAL_NODES = ("table_row_wise", "table_column_wise", "grid_shard")


def start_weight(name: str) -> torch.Tensor:
    rows, width = TABLES[name]
    return torch.rand(rows, width, generator=torch.Generator().manual_seed(rows))


def batch(rank: int, step: int) -> tuple[KeyedJaggedTensor, KeyedJaggedTensor]:
    """BATCH rows with ids of a and b, and with weighted ids of c."""
    generator = torch.Generator().manual_seed(10 * rank + step)
    ids = {
        name: torch.randint(rows, (LENGTHS[name] * BATCH,), generator=generator)
        for name, (rows, _) in TABLES.items()
    }
    lengths = {name: torch.full((BATCH,), length) for name, length in LENGTHS.items()}
    plain = KeyedJaggedTensor(
        keys=["fa", "fb"],
        values=torch.cat([ids["a"], ids["b"]]),
        lengths=torch.cat([lengths["a"], lengths["b"]]),
    )
    weights = torch.rand(len(ids["c"]), generator=generator)
    weighted = KeyedJaggedTensor(
        keys=["fc"], values=ids["c"], lengths=lengths["c"], weights=weights
    )
    return plain, weighted


class Lookup(nn.Module):
    """The three collections, and a loss."""

    def __init__(self, device: str) -> None:
        super().__init__()

        def shape(name: str) -> dict[str, object]:
            rows, width = TABLES[name]
            keys = [f"f{name}"]
            return dict(name=name, num_embeddings=rows, embedding_dim=width, feature_names=keys)

        place = torch.device(device)
        self.sequences = EmbeddingCollection(tables=[EmbeddingConfig(**shape("a"))], device=place)
        self.bags = EmbeddingBagCollection(tables=[EmbeddingBagConfig(**shape("b"))], device=place)
        self.weighted_bags = EmbeddingBagCollection(
            tables=[EmbeddingBagConfig(**shape("c"))], is_weighted=True, device=place
        )

    def forward(self, plain: KeyedJaggedTensor, weighted: KeyedJaggedTensor) -> torch.Tensor:
        found = [
            self.sequences(plain)["fa"].values(),
            self.bags(plain)["fb"],
            self.weighted_bags(weighted)["fc"],
        ]
        return sum((values**2).sum() for values in found) / BATCH


def tables_of(sharding_type: str) -> TableSet:
    """Sequences are row_wise where they can't have the type."""
    return TableSet(
        batch_size=BATCH,
        optimizer="sgd",
        tables=tuple(
            PlanTable(
                name=name,
                num_embeddings=rows,
                embedding_dim=width,
                pooling="none" if name == "a" else "sum",
                weighted=name == "c",
                features=(PlanFeature(name=f"f{name}", mean_length=LENGTHS[name]),),
                sharding_types=(
                    ("row_wise",)
                    if name == "a" and sharding_type not in SEQUENCE_TYPES
                    else (sharding_type,)
                ),
                min_column_width=4,
            )
            for name, (rows, width) in TABLES.items()
        ),
    )


def train_sharded(
    context: WorkerContext, *, sharding_type: str, ranks_per_node: int
) -> list[float]:
    os.environ["LOCAL_WORLD_SIZE"] = str(ranks_per_node)
    topology = this_topology("cpu", context.world_size, ranks_per_node)
    plan = make_plan(tables_of(sharding_type), topology)
    assert {plan.tables[name].sharding_type for name in "bc"} == {sharding_type}
    module = Lookup("meta")
    apply_optimizer_in_backward(SGD, module.parameters(), {"lr": 0.1})
    model = DistributedModelParallel(
        module=module,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        plan=to_sharding_plan(plan, module, torch.device("cpu")),
        sharders=[EmbeddingCollectionSharder(), EmbeddingBagCollectionSharder()],
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
    assert len(dense) == (2 if sharding_type == "data_parallel" else 0)
    optimizer = torch.optim.SGD(dense.values(), lr=0.1) if dense else None
    losses = []
    for step in range(STEPS):
        if optimizer:
            optimizer.zero_grad()
        loss = model(*batch(context.rank, step))
        loss.backward()
        if optimizer:
            optimizer.step()
        losses.append(loss.item())
    return losses


def train_unsharded(ranks: int) -> list[list[float]]:
    """Losses by rank and step of one model that sees the batches of all ranks."""
    model = Lookup("cpu")
    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(start_weight(key.split(".")[-2]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses: list[list[float]] = [[] for _ in range(ranks)]
    for step in range(STEPS):
        optimizer.zero_grad()
        parts = [model(*batch(rank, step)) for rank in range(ranks)]
        (sum(parts) / ranks).backward()
        optimizer.step()
        for rank, part in enumerate(parts):
            losses[rank].append(part.item())
    return losses


@pytest.mark.parametrize(
    "sharding_type", ["data_parallel", "table_wise", "column_wise", "row_wise", *SEVERAL_NODES]
)
def test_planned_types_train_as_unsharded_tables_do(sharding_type: str) -> None:
    ranks = 4 if sharding_type in SEVERAL_NODES else 2
    sharded = run_ranks(train_sharded, ranks, sharding_type=sharding_type, ranks_per_node=2)
    for got, expected in zip(sharded, train_unsharded(ranks), strict=True):
        assert got == pytest.approx(expected, rel=1e-5)
