"""Data of the search: options, cluster, placement, and the loads of ranks under a placement.

These are arrays, without table names and TorchRec.

Letters: T tables, O options, R ranks, N nodes, M memory tiers (HBM, DDR, SSD).
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# What one unit of an option occupies: one rank, all ranks of a node, or all ranks.
RANK, NODE, EVERY = 0, 1, 2


@dataclass(frozen=True)
class OptionArrays:
    """All options of all tables, sorted by table.

    An option has `units`, each on a rank (RANK) or on all ranks of a node (NODE) of its own, or one
    unit on all ranks (EVERY). Over the ranks of a node, or all ranks, rows are split into blocks:
    the first `full` ranks hold a whole block, the next one the rest, the others nothing.

    Attributes:
        table: int64 [O], index of the table.
        place: int64 [O], RANK, NODE or EVERY.
        units: int64 [O], number of units.
        time: float64 [O], ms of a unit on each of its ranks.
        full: int64 [O], number of ranks with a whole block.
        memory: float64 [O, 3, M], bytes on a rank with a whole block, the rest, nothing: rows,
            optimizer state, buffers, and the copies for a background save.
        weight: float64 [O], weight of the table's time when options are chosen.
        copies: int64 [O], copies of the rows: one per rank if data-parallel, else 1.
    """

    table: IntArray
    place: IntArray
    units: IntArray
    time: FloatArray
    full: IntArray
    memory: FloatArray
    weight: FloatArray
    copies: IntArray

    @property
    def first(self) -> IntArray:
        """The first option of each table, int64 [T]."""
        return np.flatnonzero(np.diff(self.table, prepend=-1))

    def subset(self, options: IntArray) -> "OptionArrays":
        """Only these options, with their tables renumbered."""
        arrays = {field.name: getattr(self, field.name)[options] for field in fields(self)}
        arrays["table"] = np.unique(arrays["table"], return_inverse=True)[1].astype(np.int64)
        return OptionArrays(**arrays)

    def ranks_per_unit(self, cluster: "Cluster") -> IntArray:
        """Number of ranks that a unit occupies, int64 [O]."""
        return np.array([1, cluster.ranks_per_node, cluster.num_ranks])[self.place]

    def work(self, cluster: "Cluster") -> FloatArray:
        """Time of all units summed over ranks, float64 [O], ms."""
        return np.asarray(self.time * self.units * self.ranks_per_unit(cluster))

    def fits_alone(self, cluster: "Cluster") -> BoolArray:
        """Options whose blocks fit a rank that holds nothing else, bool [O]."""
        most = cluster.capacity.max(axis=0)
        return np.asarray((self.memory <= most).all(axis=(1, 2)))

    def block_memory(self, option: int, num_ranks: int) -> FloatArray:
        """Bytes of one unit on each of its ranks, float64 [num_ranks, M]."""
        return self.along_ranks(option, self.memory[option], num_ranks)

    def along_ranks(self, option: int, kinds: FloatArray, num_ranks: int) -> FloatArray:
        """Values [3, ...] by kind of shard -> by rank of one unit, float64 [num_ranks, ...]."""
        values = np.repeat(kinds[2][None], num_ranks, axis=0)
        full = int(self.full[option])
        values[:full] = kinds[0]
        values[full : full + 1] = kinds[1]
        return values

    def total_memory(self, cluster: "Cluster") -> FloatArray:
        """Bytes of all units of an option, float64 [O, M]."""
        return self.total(cluster, self.memory)

    def total(self, cluster: "Cluster", kinds: FloatArray) -> FloatArray:
        """Values [O, 3, M] by kind of shard -> sum over all ranks and units, float64 [O, M]."""
        ranks = self.ranks_per_unit(cluster)
        full = np.minimum(self.full, ranks)
        rest = np.minimum(ranks - full, 1)
        counts = np.stack([full, rest, ranks - full - rest], axis=1)
        return np.asarray((kinds * counts[:, :, None]).sum(axis=1) * self.units[:, None])


@dataclass(frozen=True)
class Cluster:
    """Ranks, and the loads of tables that are pinned to them.

    Attributes:
        ranks_per_node: the same for all nodes.
        capacity: float64 [R, M], bytes for tables.
        base_time: float64 [R], ms of pinned tables.
        base_memory: float64 [R, M], bytes of pinned tables.
    """

    ranks_per_node: int
    capacity: FloatArray
    base_time: FloatArray
    base_memory: FloatArray

    @property
    def num_ranks(self) -> int:
        """Number of ranks, R."""
        return len(self.capacity)

    def shares(self, memory: FloatArray) -> FloatArray:
        """Bytes [R, M] as shares of the capacity."""
        return memory / np.maximum(self.capacity, 1.0)


@dataclass
class Placement:
    """The option of each table and the places of its units.

    Attributes:
        option: int64 [T], index of the option.
        units: for each table the rank (RANK) or node (NODE) of each unit; empty for EVERY.
        time: float64 [R], ms of each rank.
        memory: float64 [R, M], bytes of each rank.
    """

    option: IntArray
    units: list[tuple[int, ...]]
    time: FloatArray
    memory: FloatArray

    @property
    def bottleneck(self) -> float:
        """Time of the busiest rank, ms."""
        return float(self.time.max())

    def fullest(self, cluster: "Cluster") -> float:
        """The largest used share of a rank's capacity, over ranks and tiers."""
        return float(cluster.shares(self.memory).max(initial=0.0))


class RankLoads:
    """Time and memory of each rank, updated as units are placed and moved."""

    def __init__(self, options: OptionArrays, cluster: Cluster) -> None:
        self.options = options
        self.cluster = cluster
        self.time = cluster.base_time.copy()
        self.memory = cluster.base_memory.copy()

    def ranks(self, option: int, unit: int) -> slice:
        """The ranks of a unit: one, those of a node, or all."""
        place = self.options.place[option]
        if place == RANK:
            return slice(unit, unit + 1)
        if place == NODE:
            size = self.cluster.ranks_per_node
            return slice(unit * size, (unit + 1) * size)
        return slice(0, self.cluster.num_ranks)

    def add_unit(self, option: int, unit: int, sign: int = 1) -> None:
        """Add a unit; `sign=-1` removes it."""
        self._add(option, self.ranks(option, unit), sign)

    def _add(self, option: int, ranks: slice, sign: int) -> None:
        self.time[ranks] += sign * self.options.time[option]
        size = ranks.stop - ranks.start
        self.memory[ranks] += sign * self.options.block_memory(option, size)

    def least_busy(self, option: int, *, longest: float) -> tuple[int, ...] | None:
        """Places for all units of an option: the least busy that have room; None: no room."""
        place = self.options.place[option]
        if place == EVERY:
            need = self.options.block_memory(option, self.cluster.num_ranks)
            return () if (self.memory + need <= self.cluster.capacity).all() else None
        share, busy = self._loads_after(option)
        # Full ranks are avoided while time allows, so that large tables still fit later.
        within = np.maximum(busy / longest, np.minimum(share, 1.0) ** 4)
        cost = np.where(busy <= longest, within, 1.0 + busy / longest)
        cost[share > 1.0] = np.inf
        return self._cheapest(option, cost)

    def emptiest(self, option: int, *, longest: float) -> tuple[int, ...] | None:
        """Places for all units: the emptiest ones within `longest` ms; None: there are none."""
        if self.options.place[option] == EVERY:
            busy = self.time.max() + self.options.time[option]
            return () if busy <= longest else None
        share, busy = self._loads_after(option)
        return self._cheapest(option, np.where((busy <= longest) & (share <= 1.0), share, np.inf))

    def _loads_after(self, option: int) -> tuple[FloatArray, FloatArray]:
        """Largest share and largest time of each rank or node with one more unit."""
        size = 1 if self.options.place[option] == RANK else self.cluster.ranks_per_node
        need = self.options.block_memory(option, size)
        after = (self.memory.reshape(-1, size, self.memory.shape[1]) + need) / np.maximum(
            self.cluster.capacity.reshape(-1, size, self.memory.shape[1]), 1.0
        )
        busy = self.time.reshape(-1, size).max(axis=1) + self.options.time[option]
        return after.max(axis=(1, 2)), busy

    def _cheapest(self, option: int, cost: FloatArray) -> tuple[int, ...] | None:
        units = int(self.options.units[option])
        if units > len(cost):
            return None
        found = np.argsort(cost, kind="stable")[:units] if units > 1 else [int(cost.argmin())]
        if not np.isfinite(cost[found[-1]]):
            return None
        return tuple(int(unit) for unit in found)

    def all_ranks(self, option: int, units: tuple[int, ...]) -> list[slice]:
        """The ranks of each unit of an option."""
        everywhere = self.options.place[option] == EVERY
        return [self.ranks(option, unit) for unit in ((0,) if everywhere else units)]

    def add_units(self, option: int, units: tuple[int, ...], sign: int = 1) -> None:
        """Add all units of an option; `sign=-1` removes them."""
        for ranks in self.all_ranks(option, units):
            self._add(option, ranks, sign)
