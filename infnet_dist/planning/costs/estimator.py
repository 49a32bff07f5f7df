"""Costs of every sharding option of every table: TorchRec's estimates, and what they don't count.

The times are TorchRec's, or made of measured costs if the topology has them; beside them are the
fixed costs of exchanges. The bytes are TorchRec's, those that it doesn't count (`uncounted_bytes`),
and the copies in host memory that a background save holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infnet_dist.errors import PlanError
from infnet_dist.planning.costs.options import (
    ShardingOption,
    enumerate_options,
    unsupported_on,
)
from infnet_dist.planning.costs.sizes import (
    full_blocks,
    save_copy_share,
    stored_bytes,
    uncounted_bytes,
)
from infnet_dist.planning.costs.times import exchanges_of, option_times
from infnet_dist.planning.costs.torchrec_estimates import Candidate, TorchRecEstimates
from infnet_dist.planning.search.exchanges import Exchanges
from infnet_dist.planning.search.placement import EVERY, NODE, RANK, Cluster, OptionArrays
from infnet_dist.planning.tables import PlanTable, TableSet
from infnet_dist.planning.topology import TIERS, Topology

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
        comms_ms: float64 [O], communication of rows and gradients, likewise; measured costs include
            that of ids, TorchRec's don't. lookup + comms = arrays.time.
        exchanges: which options share an exchange, and its fixed cost.
        stored: float64 [O, 3, 1], bytes of rows and optimizer state on a rank with a whole block,
            the rest, nothing; part of arrays.memory.
        copied: float64 [O, 3, 1], bytes of copies that a background save holds, likewise; part of
            arrays.memory if it is planned.
    """

    sharding_options: list[ShardingOption]
    arrays: OptionArrays
    lookup_ms: np.ndarray
    comms_ms: np.ndarray
    exchanges: Exchanges
    stored: np.ndarray
    copied: np.ndarray


class Estimator:
    """Costs of the sharding options of a table set on a topology."""

    def __init__(self, table_set: TableSet, topology: Topology) -> None:
        self.table_set = table_set
        self.topology = topology
        self._torchrec = TorchRecEstimates(table_set, topology)

    def costs(self, *, offload: bool, also: Mapping[str, ShardingOption] | None = None) -> Costs:
        """Estimate every sharding option of every table.

        Args:
            offload: whether to include kernels that keep rows outside of HBM.
            also: an additional option by table.

        Raises:
            PlanError: a table's constraints allow no option.
        """
        candidates = [
            (number, option)
            for number, table in enumerate(self.table_set.tables)
            for option in self._options_of(
                self.table_set.complete(table), offload, (also or {}).get(table.name)
            )
        ]
        memory, stored, copied = self._bytes(candidates)
        times = option_times(candidates, self.table_set, self.topology, self._torchrec)
        lookup, comms = times.T
        pairs = [(self.table_set.tables[number], option) for number, option in candidates]
        return Costs(
            sharding_options=[option for _, option in candidates],
            arrays=self._arrays(candidates, time=lookup + comms, memory=memory),
            lookup_ms=lookup,
            comms_ms=comms,
            exchanges=exchanges_of(pairs, self.topology),
            stored=stored[:, :, None],
            copied=copied[:, :, None],
        )

    def _options_of(
        self, table: PlanTable, offload: bool, also: ShardingOption | None
    ) -> list[ShardingOption]:
        options = list(enumerate_options(table, self.topology, offload=offload))
        if also is not None and also not in options:
            options.append(also)
        if not options:
            asked = table.sharding_types or ()
            why = [w for t in asked if (w := unsupported_on(table, t, self.topology)) is not None]
            kernels = ", ".join(table.compute_kernels or ("any",))
            raise PlanError(
                f"table {table.name!r} can't be sharded: sharding_types "
                f"{', '.join(asked or ('any',))} with compute_kernels {kernels} aren't supported "
                f"for a {table.kind} of {table.embedding_dim} floats on {self.topology.device} "
                f"with {self.topology.world_size} workers{''.join(f'; {w}' for w in why)}; allow "
                "more types or kernels"
            )
        return options

    def _bytes(self, candidates: Sequence[Candidate]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All bytes by kind of shard and tier [O, 3, M]; stored and copied ones [O, 3]."""
        tables, optimizer_of = self.table_set.tables, self.table_set.optimizer_of
        known = [
            (tables[number], option, optimizer_of(tables[number]), self.topology)
            for number, option in candidates
        ]
        stored = np.array([stored_bytes(*one) for one in known])
        memory = self._torchrec.memory(candidates)
        memory += np.array([uncounted_bytes(*one) for one in known])
        device = self.topology.device
        shares = [save_copy_share(option.sharding_type, device) for _, option in candidates]
        copied = stored * np.array(shares)[:, None]
        if self.table_set.background_save:
            memory[:, :, TIERS.index("ddr")] += copied
        return memory, stored, copied

    def _arrays(
        self, candidates: Sequence[Candidate], *, time: np.ndarray, memory: np.ndarray
    ) -> OptionArrays:
        tables = [self.table_set.tables[number] for number, _ in candidates]
        options = [option for _, option in candidates]
        pairs = list(zip(tables, options, strict=True))
        world_size = self.topology.world_size

        def integers(values: Iterable[int]) -> npt.NDArray[np.int64]:
            return np.fromiter(values, np.int64, len(candidates))

        return OptionArrays(
            table=integers(number for number, _ in candidates),
            place=integers(_PLACES[option.sharding_type] for option in options),
            units=integers(table.embedding_dim // option.columns for table, option in pairs),
            time=time,
            full=integers(full_blocks(table, option, self.topology) for table, option in pairs),
            memory=memory,
            weight=np.array([table.priority for table in tables]),
            copies=integers(
                world_size if option.sharding_type == "data_parallel" else 1 for option in options
            ),
        )


def empty_cluster(topology: Topology) -> Cluster:
    """The ranks of a topology without tables."""
    capacity = np.repeat(topology.capacity[None], topology.world_size, axis=0)
    return Cluster(
        ranks_per_node=topology.workers_per_node,
        capacity=capacity,
        base_time=np.zeros(topology.world_size),
        base_memory=np.zeros_like(capacity),
    )
