"""Small sharded collections to measure, and their batches."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.config.tables import DataType as DataTypeName
from infnet_dist.config.tables import ShardingTypeName, SparseOptimizerName
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.model.sparse import DATA_TYPES
from infnet_dist.planning.costs.measured import Kind
from infnet_dist.planning.costs.options import ShardingOption
from infnet_dist.planning.costs.torchrec_estimates import OPTIMIZERS
from infnet_dist.planning.costs.work import Work, work_of
from infnet_dist.planning.estimates import estimate_plan
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.planning.topology import Topology
from infnet_dist.planning.torchrec_plan import to_sharding_plan
from infnet_dist.sharding.data_parallel import table_optimizer

_BATCHES = 4
_GPU_SCALE = 16  # times the ids and the rows, so that a GPU has something to do


class Case(NamedTuple):
    """Tables of equal shape in one collection, under one sharding type.

    Attributes:
        tables: tables per worker if table_wise, else in all; each has one feature.
        rows: rows of a table.
        width: floats of a row.
        batch_size: rows per worker and step.
        length: ids per row of a batch.
    """

    kind: Kind
    sharding_type: ShardingTypeName
    tables: int
    rows: int
    width: int
    batch_size: int
    length: int
    data_type: DataTypeName = "fp32"
    optimizer: SparseOptimizerName = "rowwise_adagrad"

    def scaled(self, device: torch.device) -> "Case":
        """The case for a kind of device."""
        if device.type == "cpu":
            return self
        return self._replace(rows=self.rows * _GPU_SCALE, batch_size=self.batch_size * _GPU_SCALE)

    def table(self, number: int) -> PlanTable:
        """One of its tables."""
        return PlanTable(
            name=f"t{number}",
            num_embeddings=self.rows,
            embedding_dim=self.width,
            data_type=self.data_type,
            pooling="none" if self.kind == "sequence" else "sum",
            features=(PlanFeature(name=f"f{number}", mean_length=self.length),),
        )

    @property
    def option(self) -> ShardingOption:
        """How its tables are sharded."""
        kernel = "dense" if self.sharding_type == "data_parallel" else "fused"
        return ShardingOption(self.sharding_type, kernel, self.width)

    def plan(self, topology: Topology) -> Plan:
        """Its plan on these workers; table_wise tables are placed in turn."""
        ranks, whole = topology.world_size, self.sharding_type == "table_wise"
        tables = [self.table(number) for number in range(self.tables * (ranks if whole else 1))]
        return estimate_plan(
            TableSet(
                batch_size=self.batch_size,
                optimizer=self.optimizer,
                background_save=False,
                tables=tuple(tables),
            ),
            topology,
            {
                table.name: (self.option, (number % ranks,) if whole else ())
                for number, table in enumerate(tables)
            },
        )

    def work(self, topology: Topology) -> Work:
        """The work of all its tables on one rank."""
        one = work_of(self.table(0), self.option, topology, self.batch_size)
        return Work(*(self.tables * quantity for quantity in one))


class ShardedCase:
    """A case on this worker.

    Attributes:
        collection: TorchRec's sharded collection.
        batches: KeyedJaggedTensors with uniform ids, in turn.
    """

    def __init__(self, case: Case, topology: Topology, context: WorkerContext) -> None:
        """Build and shard the tables; every rank calls it."""
        plan = case.plan(topology)
        names = [table.name for table in plan.made_for.tables.tables]
        model = nn.Sequential(_collection(case, names))
        for table in model.parameters():
            apply_optimizer_in_backward(OPTIMIZERS[case.optimizer], [table], {"lr": 0.01})
        sharded = DistributedModelParallel(
            module=model,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=context.device,
            plan=to_sharding_plan(plan, model, context.device),
            sharders=[EmbeddingCollectionSharder(), EmbeddingBagCollectionSharder()],
        )
        self.collection = sharded.module[0]
        self.batches = [_batch(case, len(names), context, i) for i in range(_BATCHES)]
        dense = dict(in_backward_optimizer_filter(sharded.named_parameters(), include=False))
        settings = {"kind": case.optimizer, "lr": 0.01, "eps": 1e-8, "weight_decay": 0.0}
        groups = [{"table": name, **settings} for name in dense]
        self._optimizer = table_optimizer(dense, groups) if dense else None

    def update_data_parallel(self) -> None:
        """Update data-parallel tables, which backward doesn't."""
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad()


def _collection(case: Case, names: list[str]) -> nn.Module:
    device = torch.device("meta")

    def shape(name: str) -> dict[str, object]:
        return {
            "name": name,
            "num_embeddings": case.rows,
            "embedding_dim": case.width,
            "feature_names": [f"f{name[1:]}"],
            "data_type": DATA_TYPES[case.data_type],
        }

    if case.kind == "sequence":
        tables = [EmbeddingConfig(**shape(name)) for name in names]
        return EmbeddingCollection(tables=tables, device=device)
    bags = [EmbeddingBagConfig(**shape(name)) for name in names]
    return EmbeddingBagCollection(tables=bags, device=device)


def _batch(case: Case, features: int, context: WorkerContext, number: int) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(context.rank * _BATCHES + number)
    count = features * case.batch_size
    ids = torch.randint(case.rows, (count * case.length,), generator=generator)
    return KeyedJaggedTensor(
        keys=[f"f{i}" for i in range(features)],
        values=ids,
        lengths=torch.full((count,), case.length, dtype=torch.int32),
    ).to(context.device)
