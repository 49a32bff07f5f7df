"""A sharding plan: its tables and workers, the place of every shard, and the estimates.

A plan is a reviewed artefact. It contains its whole input (tables and topology), so that it can be
checked, extended and made again; the same input gives the same plan.
"""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torchrec
from pydantic import BaseModel, ConfigDict, Field

from infnet_dist.config.tables import ShardingTypeName
from infnet_dist.io.parsing import Name
from infnet_dist.planning.costs.options import COLUMN_TYPES, ShardingOption
from infnet_dist.planning.costs.sizes import block_rows, home_tier, row_bytes, save_copy_share
from infnet_dist.planning.costs.work import output_bytes
from infnet_dist.planning.tables import (
    ROW_STATE_OPTIMIZERS,
    KernelName,
    PlanTable,
    TableSet,
)
from infnet_dist.planning.topology import TIERS, Topology

FORMAT_VERSION = 2
BY_NODE = ("table_row_wise", "grid_shard")
BY_ALL = ("row_wise", "data_parallel")
Count = Annotated[int, Field(ge=0, lt=2**63)]
Milliseconds = Annotated[float, Field(ge=0, le=1e15)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MadeFor(_Entry):
    """The input of a plan, and the version of the cost model."""

    topology: Topology
    tables: TableSet
    torchrec_version: Name = torchrec.__version__


class Shard(NamedTuple):
    """A rectangle of a table on one rank; it may be empty."""

    rank: int
    row_offset: int
    column_offset: int
    rows: int
    columns: int


class TablePlan(_Entry):
    """How one table is sharded.

    Attributes:
        sharding_type: TorchRec's sharding type.
        compute_kernel: TorchRec's compute kernel.
        columns: width of a shard, in floats.
        cache_share: share of the rows cached in HBM; only for fused_uvm_caching.
        places: the rank of each column shard (table_wise: one), or the node of each
            (table_row_wise, grid_shard); empty for row_wise and data_parallel: all ranks.
        lookup_ms: estimate for one shard: forward, backward and prefetch.
        comms_ms: estimate for one shard: forward and backward.
        memory_bytes: of all shards, by tier: rows, optimizer state, cache and buffers.
    """

    sharding_type: ShardingTypeName
    compute_kernel: KernelName
    columns: int = Field(ge=1, le=2**20)
    cache_share: float | None = Field(None, ge=0, le=1)
    places: tuple[Count, ...] = ()
    lookup_ms: Milliseconds
    comms_ms: Milliseconds
    memory_bytes: dict[Literal["hbm", "ddr", "ssd"], Count]

    @property
    def sharding_option(self) -> ShardingOption:
        """The sharding option, without its places."""
        return ShardingOption(
            self.sharding_type, self.compute_kernel, self.columns, self.cache_share
        )

    @property
    def time_ms(self) -> float:
        """Milliseconds that a shard costs its rank."""
        return self.lookup_ms + self.comms_ms


class RankEstimates(_Entry):
    """Estimates by rank.

    The bytes of a tier include rows, optimizer state, cache and buffers (inputs, outputs).
    `stored_bytes` are the rows and their optimizer state on all tiers.
    """

    lookup_ms: tuple[Milliseconds, ...]
    comms_ms: tuple[Milliseconds, ...]
    hbm_bytes: tuple[Count, ...]
    ddr_bytes: tuple[Count, ...]
    ssd_bytes: tuple[Count, ...]
    stored_bytes: tuple[Count, ...]

    @property
    def time_ms(self) -> np.ndarray:
        """Milliseconds of lookup and communication, float64 [R]."""
        return np.array(self.lookup_ms) + np.array(self.comms_ms)

    @property
    def memory(self) -> np.ndarray:
        """Bytes of the tables by rank and tier, without copies for a save; float64 [R, 3]."""
        return np.array([getattr(self, f"{tier}_bytes") for tier in TIERS], np.float64).T


class TableBytes(NamedTuple):
    """Bytes of a table.

    Attributes:
        stored: rows and optimizer state of all shards.
        tier: the tier that holds them: hbm, ddr or ssd.
        outside_hbm: whether workers have HBM but the rows are on another tier.
        cached: the cache in HBM of all shards, with its bookkeeping.
        buffers_per_rank: inputs and outputs (data-parallel: gradients as well), mean over the ranks
            that have a shard.
    """

    stored: int
    tier: str
    outside_hbm: bool
    cached: int
    buffers_per_rank: int


class Plan(_Entry):
    """A plan file.

    Attributes:
        made_for: the input.
        lower_bound_ms: proven lower bound on a step's time over all plans for this input; in an
            extended plan, over all plans that keep existing tables in place.
        exchange_ms: fixed costs of the exchanges, one for each collection and sharding type in use.
        excluded: options that weren't considered, with reasons.
        tables: table plans by name.
        ranks: estimates by rank.
    """

    format_version: int = FORMAT_VERSION
    made_for: MadeFor
    lower_bound_ms: Milliseconds
    exchange_ms: Milliseconds = 0.0
    excluded: tuple[str, ...] = ()
    tables: dict[str, TablePlan]
    ranks: RankEstimates

    @property
    def bottleneck_ms(self) -> float:
        """Estimated milliseconds of a step: the busiest rank's, and the exchanges' fixed costs."""
        return float(self.ranks.time_ms.max()) + self.exchange_ms

    @property
    def memory(self) -> np.ndarray:
        """Bytes by rank and tier, with the planned copies for a save; float64 [R, 3]."""
        return self.memory_for(background_save=self.made_for.tables.background_save)

    def memory_for(self, *, background_save: bool) -> np.ndarray:
        """Bytes by rank and tier, with or without the copies for a save; float64 [R, 3]."""
        memory = self.ranks.memory
        if background_save:
            memory[:, TIERS.index("ddr")] += self.save_copy_bytes
        return memory

    @property
    def save_copy_bytes(self) -> np.ndarray:
        """Bytes of copies in host memory that a background save holds; float64 [R]."""
        device, ranks = self.made_for.topology.device, self.made_for.topology.world_size
        share = save_copy_share("row_wise", device)
        copied = share * np.array(self.ranks.stored_bytes, np.float64)
        for name, entry in self.tables.items():
            if entry.sharding_type == "data_parallel":  # copied as a whole
                copied += (1 - share) * self.bytes_of(name).stored / ranks
        return copied

    @property
    def fullest(self) -> float:
        """The largest used share of a rank's capacity, over ranks and tiers."""
        return float((self.memory / np.maximum(self.made_for.topology.capacity, 1.0)).max())

    def table(self, name: str) -> PlanTable:
        """The description of a table, with its optimizer."""
        return self.made_for.tables.complete(self.made_for.tables.table(name))

    def bytes_of(self, name: str) -> TableBytes:
        """The bytes of a table: rows, cache and buffers apart."""
        table, entry, topology = self.table(name), self.tables[name], self.made_for.topology
        ranks, copies = topology.world_size, 1
        if entry.sharding_type == "data_parallel":
            copies = topology.world_size
        elif entry.sharding_type in BY_NODE:
            ranks = len(entry.places) * topology.workers_per_node
        elif entry.sharding_type not in BY_ALL:
            ranks = len(entry.places)
        rows = table.num_embeddings * (table.embedding_dim // entry.columns)  # over all shards
        row = row_bytes(table, self.made_for.tables.optimizer_of(table), entry.columns)
        stored = int(rows * row * copies)
        tier = TIERS[home_tier(entry.compute_kernel, topology.device)]
        cached, share = 0, entry.cache_share
        if share is not None:  # fbgemm's cache: 4 bytes per row, and 16 per cached row
            cached = int(stored * share + rows * (4 + 16 * share))
        buffers = max(sum(entry.memory_bytes.values()) - stored - cached, 0)
        outside_hbm = topology.device == "cuda" and tier != "hbm"
        return TableBytes(stored, tier, outside_hbm, cached, buffers // max(ranks, 1))

    def output_bytes(self, name: str) -> float:
        """Bytes of a table's rows and gradients that all ranks exchange in a step."""
        option, tables = self.tables[name].sharding_option, self.made_for.tables
        return output_bytes(self.table(name), option, self.made_for.topology, tables.batch_size)

    @property
    def own_states(self) -> list[str]:
        """Names of tables whose column shards have row-wise optimizer states of their own."""
        return [
            name
            for name, entry in self.tables.items()
            if entry.sharding_type in COLUMN_TYPES
            and self.table(name).optimizer in ROW_STATE_OPTIMIZERS
        ]

    @property
    def tables_hash(self) -> str:
        """Hash of the descriptions of the tables; 16 hexadecimal digits."""
        text = self.made_for.tables.model_dump_json()
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def shards(self, name: str) -> list[Shard]:
        """All shards of a table, in TorchRec's order, including empty ones."""
        return list(shards_of(self.table(name), self.tables[name], self.made_for.topology))


def shards_of(table: PlanTable, plan: TablePlan, topology: Topology) -> Iterator[Shard]:
    """The shards of a table under a plan."""
    if plan.sharding_type == "data_parallel":
        for rank in range(topology.world_size):
            yield Shard(rank, 0, 0, table.num_embeddings, table.embedding_dim)
        return
    block = block_rows(table, plan.sharding_type, topology)
    places = plan.places or (0,)
    for number, place in enumerate(places):
        if plan.sharding_type == "row_wise":
            ranks = range(topology.world_size)
        elif plan.sharding_type in BY_NODE:
            size = topology.workers_per_node
            ranks = range(place * size, (place + 1) * size)
        else:
            ranks = range(place, place + 1)
        for i, rank in enumerate(ranks):
            start = min(i * block, table.num_embeddings)
            rows = min(block, table.num_embeddings - start)
            yield Shard(rank, start, number * plan.columns, rows, plan.columns)


def shape(table: PlanTable) -> str:
    """Rows x width type, e.g. `1000 x 16 fp32`."""
    return f"{table.num_embeddings} x {table.embedding_dim} {table.data_type}"


def described(table: PlanTable) -> str:
    """Shape, kind and, if the table has one of its own, optimizer."""
    optimizer = f", optimizer {table.optimizer}" if table.optimizer else ""
    return f"{shape(table)}, {table.kind}{optimizer}"
