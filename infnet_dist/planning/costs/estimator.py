"""Costs of every sharding option of every table, by TorchRec's own estimators.

TorchRec's enumerator makes one object per shard and estimates each, which takes minutes for many
tables on many ranks. Here an option is estimated once per *kind* of shard (a whole block of rows,
the rest, nothing), and its time once per shape class of tables: TorchRec's bytes depend on the
number of rows, its times don't (except for data-parallel). The times are equal to TorchRec's.

The bytes are TorchRec's and those that it doesn't count: float32 optimizer state of fp16 rows,
row-wise state of each column shard, gradient and DDP bucket of a data-parallel table, and the copy
of rows and state in host memory from which a checkpoint is written in the background.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
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
from torchrec.optim import SGD, Adagrad, Adam, RowWiseAdagrad

from infnet_dist.errors import PlanError
from infnet_dist.planning.costs.options import ShardingOption, enumerate_options
from infnet_dist.planning.costs.popularity import zipf_statistics
from infnet_dist.planning.costs.sizes import (
    BY_ROWS,
    DTYPES,
    block_rows,
    full_blocks,
    home_tier,
    row_bytes,
    rows_of_kinds,
)
from infnet_dist.planning.search.placement import EVERY, NODE, RANK, Cluster, OptionArrays
from infnet_dist.planning.tables import OptimizerName, PlanTable, TableSet
from infnet_dist.planning.topology import TIERS, Topology

OPTIMIZERS = {"sgd": SGD, "rowwise_adagrad": RowWiseAdagrad, "adagrad": Adagrad, "adam": Adam}
_HBM, _DDR = TIERS.index("hbm"), TIERS.index("ddr")
# What one unit of a sharding type occupies.
_PLACES = {
    "data_parallel": EVERY,
    "row_wise": EVERY,
    "table_row_wise": NODE,
    "grid_shard": NODE,
    "table_wise": RANK,
    "column_wise": RANK,
    "table_column_wise": RANK,
}


@dataclass(frozen=True)
class Costs:
    """Costs of all sharding options of all tables.

    Attributes:
        sharding_options: one per entry of `arrays`.
        arrays: the input of the search, O options.
        lookup_ms: float64 [O], forward, backward and prefetch of a unit on each of its ranks.
        comms_ms: float64 [O], communication of rows and gradients, likewise. Like TorchRec's
            total, it doesn't include the all-to-all of ids. lookup + comms = arrays.time.
        stored: float64 [O, 3, 1], bytes of rows and optimizer state on a rank with a whole block,
            the rest, nothing; part of arrays.memory.
    """

    sharding_options: list[ShardingOption]
    arrays: OptionArrays
    lookup_ms: np.ndarray
    comms_ms: np.ndarray
    stored: np.ndarray


class Estimator:
    """TorchRec's two estimators over the options of all tables; each is estimated once."""

    def __init__(self, table_set: TableSet, topology: Topology) -> None:
        self.table_set = table_set
        self.topology = topology
        self._torchrec_topology = topology.to_torchrec()
        device = torch.device("meta")
        self._modules = {
            True: EmbeddingBagCollection(tables=[], device=device),
            False: EmbeddingCollection(tables=[], device=device),
        }
        sharders = (EmbeddingBagCollectionSharder(), EmbeddingCollectionSharder())
        self._sharders = build_sharder_data_map(
            {sharder_name(sharder.module_type): sharder for sharder in sharders}
        )
        self._tensors = [_meta_rows(table, table_set.optimizer) for table in table_set.tables]
        self._memory: dict[tuple[int, ShardingOption], np.ndarray] = {}
        self._perf: dict[tuple[object, ...], Perf] = {}

    def costs(self, *, offload: bool, also: Mapping[str, ShardingOption] | None = None) -> Costs:
        """Estimate every sharding option of every table.

        Args:
            offload: whether to include kernels that keep rows outside of HBM.
            also: an additional option by table.

        Raises:
            PlanError: a table's constraints allow no option.
        """
        pairs = [
            (number, table, option)
            for number, table in enumerate(self.table_set.tables)
            for option in self._options_of(table, offload, (also or {}).get(table.name))
        ]
        self._estimate_memory(pairs)
        self._estimate_perf(pairs)
        perfs = [self._perf[_perf_class(table, option)] for _, table, option in pairs]
        lookup = np.array([p.fwd_compute + p.bwd_compute + p.prefetch_compute for p in perfs])
        total = np.array([p.total for p in perfs])
        options = [option for _, _, option in pairs]

        def integers(values: Iterable[int]) -> npt.NDArray[np.int64]:
            return np.fromiter(values, np.int64, len(pairs))

        stored = np.array([self._stored(table, option) for _, table, option in pairs])
        memory = np.array([self._memory[number, option] for number, _, option in pairs])
        if self.table_set.background_save:
            memory[:, :, _DDR] += stored
        arrays = OptionArrays(
            table=integers(number for number, _, _ in pairs),
            place=integers(_PLACES[option.sharding_type] for option in options),
            units=integers(table.embedding_dim // option.columns for _, table, option in pairs),
            time=total,
            full=integers(full_blocks(table, option, self.topology) for _, table, option in pairs),
            memory=memory,
            weight=np.array([table.priority for _, table, _ in pairs]),
            copies=integers(
                self.topology.world_size if option.sharding_type == "data_parallel" else 1
                for option in options
            ),
        )
        return Costs(options, arrays, lookup, total - lookup, stored[:, :, None])

    def _estimate_memory(self, pairs: Sequence[tuple[int, PlanTable, ShardingOption]]) -> None:
        new = {
            (number, option): self._torchrec_option(
                number, option, kinds=3 if option.sharding_type in BY_ROWS else 1
            )
            for number, _, option in pairs
            if (number, option) not in self._memory
        }
        self._run(EmbeddingStorageEstimator, new.values())
        for (number, option), estimated in new.items():
            uncounted = self._uncounted(self.table_set.tables[number], option)
            self._memory[number, option] = np.array(_memory(estimated)) + uncounted

    def _estimate_perf(self, pairs: Sequence[tuple[int, PlanTable, ShardingOption]]) -> None:
        new: dict[tuple[object, ...], TorchRecOption] = {}
        for number, table, option in pairs:
            key = _perf_class(table, option)
            if key not in self._perf and key not in new:
                new[key] = self._torchrec_option(number, option, 1)
        self._run(EmbeddingPerfEstimator, new.values())
        for key, estimated in new.items():
            perf = estimated.shards[0].perf
            assert perf is not None
            self._perf[key] = perf

    def _run(
        self,
        estimator: type[EmbeddingStorageEstimator | EmbeddingPerfEstimator],
        options: Iterable[TorchRecOption],
    ) -> None:
        constraints = {
            table.name: ParameterConstraints(pooling_factors=list(table.lengths))
            for table in self.table_set.tables
        }
        estimator(topology=self._torchrec_topology, constraints=constraints).estimate(
            list(options), self._sharders
        )

    def _options_of(
        self, table: PlanTable, offload: bool, also: ShardingOption | None
    ) -> list[ShardingOption]:
        options = list(enumerate_options(table, self.topology, offload=offload))
        if also is not None and also not in options:
            options.append(also)
        if not options:
            types = ", ".join(table.sharding_types or ("any",))
            kernels = ", ".join(table.compute_kernels or ("any",))
            raise PlanError(
                f"table {table.name!r} can't be sharded: sharding_types {types} with "
                f"compute_kernels {kernels} aren't supported for pooling {table.pooling} on "
                f"{self.topology.device} with {self.topology.world_size} workers; allow more "
                "types or kernels"
            )
        return options

    def _torchrec_option(self, number: int, option: ShardingOption, kinds: int) -> TorchRecOption:
        """TorchRec's option with one shard per kind: a whole block, the rest, nothing."""
        table = self.table_set.tables[number]
        pooled = table.pooling != "none"
        block = block_rows(table, option.sharding_type, self.topology)
        rest = table.num_embeddings % block
        return TorchRecOption(
            name=table.name,
            tensor=self._tensors[number],
            module=("", self._modules[pooled]),
            input_lengths=list(table.lengths),
            batch_size=self.table_set.batch_size,
            sharding_type=option.sharding_type,
            partition_by=get_partition_by_type(option.sharding_type),
            compute_kernel=option.compute_kernel,
            shards=[
                Shard(size=[rows, option.columns], offset=[0, 0])
                for rows in (block, rest, 0)[:kinds]
            ],
            cache_params=self._cache_params(table, option),
            is_pooled=pooled,
        )

    def _stored(self, table: PlanTable, option: ShardingOption) -> np.ndarray:
        """Bytes of rows and optimizer state by kind of shard, float64 [3]."""
        rows = rows_of_kinds(table, option, self.topology)
        return rows * row_bytes(table, self.table_set.optimizer, option.columns)

    def _uncounted(self, table: PlanTable, option: ShardingOption) -> np.ndarray:
        """Bytes that TorchRec doesn't count, by kind of shard and tier; float64 [3, 3]."""
        uncounted = np.zeros((3, len(TIERS)))
        rows = rows_of_kinds(table, option, self.topology)
        weights = rows * option.columns * DTYPES[table.data_type].itemsize
        factors = {"sgd": 0, "rowwise_adagrad": 1 / table.embedding_dim, "adagrad": 1, "adam": 2}
        counted = weights * factors[self.table_set.optimizer]
        state = np.ceil(np.maximum(self._stored(table, option) - weights - counted, 0.0))
        uncounted[:, home_tier(option.compute_kernel, self.topology.device)] += state
        if option.cache_share is not None:
            uncounted[:, _HBM] += np.ceil(option.cache_share * state)
        if option.sharding_type == "data_parallel":
            uncounted[:, _HBM if self.topology.device == "cuda" else _DDR] += 2 * weights
        return uncounted

    def _cache_params(self, table: PlanTable, option: ShardingOption) -> CacheParams | None:
        if option.cache_share is None:
            return None
        stats = None
        if table.zipf is not None:
            batch = self.table_set.batch_size * self.topology.world_size
            stats = zipf_statistics(table.zipf, table.num_embeddings, batch * sum(table.lengths))
        return CacheParams(load_factor=option.cache_share, stats=stats)


def empty_cluster(topology: Topology) -> Cluster:
    """The ranks of a topology without tables."""
    capacity = np.repeat(topology.capacity[None], topology.world_size, axis=0)
    return Cluster(
        ranks_per_node=topology.workers_per_node,
        capacity=capacity,
        base_time=np.zeros(topology.world_size),
        base_memory=np.zeros_like(capacity),
    )


def _meta_rows(table: PlanTable, optimizer: OptimizerName) -> torch.Tensor:
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
        table.pooling == "none",
        tuple(sorted(table.lengths)),
    )


def _memory(option: TorchRecOption) -> list[list[float]]:
    kinds = [[float(getattr(shard.storage, tier)) for tier in TIERS] for shard in option.shards]
    return kinds + [[0.0] * len(TIERS)] * (3 - len(kinds))
