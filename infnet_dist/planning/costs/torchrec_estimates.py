"""TorchRec's own estimates of memory and time, each made once for options that it can't tell apart.

TorchRec's enumerator makes one object per shard and estimates each, which takes minutes for many
tables on many ranks. Here an option is estimated once per *kind* of shard (a whole block of rows,
the rest, nothing), and its time once per shape class of tables: TorchRec's bytes depend on the
number of rows, its times don't (except for data-parallel). The times are equal to TorchRec's.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.planner.types import ParameterConstraints, Perf, Shard
from torchrec.distributed.planner.types import ShardingOption as TorchRecOption
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim import LAMB, SGD, Adagrad, Adam, PartialRowWiseAdam, RowWiseAdagrad

from infnet_dist.config.tables import SparseOptimizerName
from infnet_dist.lookups import Home
from infnet_dist.planning.costs.options import ShardingOption
from infnet_dist.planning.costs.popularity import zipf_statistics
from infnet_dist.planning.costs.sizes import BY_ROWS, DTYPES, block_rows
from infnet_dist.planning.tables import PlanTable, TableSet
from infnet_dist.planning.topology import TIERS, Topology

OPTIMIZERS = {
    "sgd": SGD,
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": Adagrad,
    "adam": Adam,
    "partial_rowwise_adam": PartialRowWiseAdam,
    "lamb": LAMB,
}

Candidate = tuple[int, ShardingOption]  # index of a table, and one of its options


class TorchRecEstimates:
    """TorchRec's storage and performance estimators, with a cache of their results."""

    def __init__(self, table_set: TableSet, topology: Topology) -> None:
        self._table_set = table_set
        self._topology = topology
        self._torchrec_topology = topology.to_torchrec()
        device = torch.device("meta")
        self._modules: Mapping[Home, EmbeddingBagCollection | EmbeddingCollection] = {
            "sequence": EmbeddingCollection(tables=[], device=device),
            "bag": EmbeddingBagCollection(tables=[], device=device),
            "weighted": EmbeddingBagCollection(tables=[], is_weighted=True, device=device),
        }
        sharders = (EmbeddingBagCollectionSharder(), EmbeddingCollectionSharder())
        self._sharders = build_sharder_data_map(
            {sharder_name(sharder.module_type): sharder for sharder in sharders}
        )
        self._tensors = [_meta_rows(t, table_set.optimizer_of(t)) for t in table_set.tables]
        self._memory: dict[Candidate, list[list[float]]] = {}
        self._perf: dict[tuple[object, ...], Perf] = {}

    def memory(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """Bytes by kind of shard and tier, float64 [candidates, 3, tiers]."""
        new = {
            (number, option): self._torchrec_option(
                number, option, kinds=3 if option.sharding_type in BY_ROWS else 1
            )
            for number, option in candidates
            if (number, option) not in self._memory
        }
        self._run(EmbeddingStorageEstimator, new.values())
        self._memory |= {candidate: _bytes(option) for candidate, option in new.items()}
        return np.array([self._memory[candidate] for candidate in candidates])

    def perf(self, candidates: Sequence[Candidate]) -> list[Perf]:
        """Milliseconds of a shard on its rank."""
        tables = self._table_set.tables
        keys = [_perf_class(tables[number], option) for number, option in candidates]
        new: dict[tuple[object, ...], TorchRecOption] = {}
        for key, (number, option) in zip(keys, candidates, strict=True):
            if key not in self._perf and key not in new:
                new[key] = self._torchrec_option(number, option, kinds=1)
        self._run(EmbeddingPerfEstimator, new.values())
        for key, estimated in new.items():
            perf = estimated.shards[0].perf
            assert perf is not None
            self._perf[key] = perf
        return [self._perf[key] for key in keys]

    def _run(
        self,
        estimator: type[EmbeddingStorageEstimator | EmbeddingPerfEstimator],
        options: Iterable[TorchRecOption],
    ) -> None:
        constraints = {
            table.name: ParameterConstraints(pooling_factors=list(table.lengths))
            for table in self._table_set.tables
        }
        estimator(topology=self._torchrec_topology, constraints=constraints).estimate(
            list(options), self._sharders
        )

    def _torchrec_option(self, number: int, option: ShardingOption, kinds: int) -> TorchRecOption:
        """TorchRec's option with one shard per kind: a whole block, the rest, nothing."""
        table = self._table_set.tables[number]
        block = block_rows(table, option.sharding_type, self._topology)
        rest = table.num_embeddings % block
        return TorchRecOption(
            name=table.name,
            tensor=self._tensors[number],
            module=("", self._modules[table.home]),
            input_lengths=list(table.lengths),
            batch_size=self._table_set.batch_size,
            sharding_type=option.sharding_type,
            partition_by=get_partition_by_type(option.sharding_type),
            compute_kernel=option.compute_kernel,
            shards=[
                Shard(size=[rows, option.columns], offset=[0, 0])
                for rows in (block, rest, 0)[:kinds]
            ],
            cache_params=self._cache_params(table, option),
            is_pooled=table.pooling != "none",
        )

    def _cache_params(self, table: PlanTable, option: ShardingOption) -> CacheParams | None:
        if option.cache_share is None:
            return None
        stats = None
        if table.zipf is not None:
            batch = self._table_set.batch_size * self._topology.world_size
            stats = zipf_statistics(table.zipf, table.num_embeddings, batch * sum(table.lengths))
        return CacheParams(load_factor=option.cache_share, stats=stats)


def _meta_rows(table: PlanTable, optimizer: SparseOptimizerName) -> torch.Tensor:
    shape = (table.num_embeddings, table.embedding_dim)
    tensor = torch.empty(shape, device="meta", dtype=DTYPES[table.data_type])
    tensor._optimizer_classes = [OPTIMIZERS[optimizer]]  # type: ignore[attr-defined]
    return tensor


def _perf_class(table: PlanTable, option: ShardingOption) -> tuple[object, ...]:
    """Key of all that TorchRec's time of a shard depends on."""
    by_rows = option.sharding_type == "data_parallel" or (
        option.cache_share and table.zipf is not None
    )
    rows = table.num_embeddings if by_rows else None
    return (
        option,
        rows,
        table.zipf,
        table.data_type,
        table.home,
        tuple(sorted(table.lengths)),
    )


def _bytes(option: TorchRecOption) -> list[list[float]]:
    kinds = [[float(getattr(shard.storage, tier)) for tier in TIERS] for shard in option.shards]
    return kinds + [[0.0] * len(TIERS)] * (3 - len(kinds))
