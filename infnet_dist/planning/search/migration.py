"""Places new tables beside existing ones, which stay in place or move within a budget of bytes.

Large neighbourhood search: free some existing tables, as many as the budget allows, and search
places for these and the new tables beside the rest; keep the better placement and repeat from
there. A table that has moved stays free in the next round.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from infnet_dist.planning.search.local_search import ENOUGH, MoveBudget, improve
from infnet_dist.planning.search.lower_bound import lower_bound
from infnet_dist.planning.search.placement import (
    Cluster,
    FloatArray,
    OptionArrays,
    Placement,
    RankLoads,
)
from infnet_dist.planning.search.search import search

Place = tuple[int, tuple[int, ...]]  # option and units

_ROUNDS = 4
_SHARES = (1.0, 0.3, 0.1)  # shares of the budget that a round tries to spend


@dataclass(frozen=True)
class CurrentPlacement:
    """The tables that are already placed.

    Attributes:
        places: option and units by table.
        table_bytes: float64 [T], bytes of each table's rows and optimizer state.
    """

    places: Mapping[int, Place]
    table_bytes: FloatArray

    def moved_bytes(self, options: OptionArrays, placement: Placement) -> float:
        """Bytes of placed tables that `placement` moves; units of a table are distinct."""
        total = 0.0
        for table, (option, units) in self.places.items():
            now, now_units = int(placement.option[table]), placement.units[table]
            if now != option:
                total += self.table_bytes[table] * options.copies[now]
            elif units:
                moved = sum(a != b for a, b in zip(units, now_units, strict=True))
                total += self.table_bytes[table] * moved / len(units)
        return total

    def keep_in_place(self, placement: Placement) -> None:
        """Permute interchangeable units so that as many as possible keep their rank or node."""
        for table, (option, units) in self.places.items():
            if int(placement.option[table]) == option:
                now = placement.units[table]
                others = iter([unit for unit in now if unit not in units])
                placement.units[table] = tuple(
                    unit if unit in now else next(others) for unit in units
                )


def place_new_tables(
    options: OptionArrays, cluster: Cluster, places: Mapping[int, Place]
) -> tuple[Placement | None, float]:
    """Search options and places for the tables that aren't in `places`, which stay in place.

    Returns:
        The placement of all tables, None if none fits; and a lower bound on its time, ms.
    """
    loads = RankLoads(options, cluster)
    for option, units in places.values():
        loads.add_units(option, units)
    count = len(options.first)
    choice = np.zeros(count, np.int64)
    all_units: list[tuple[int, ...]] = [()] * count
    for table, (option, units) in places.items():
        choice[table], all_units[table] = option, units
    if (loads.memory > cluster.capacity).any():
        return None, np.inf
    new = np.setdiff1d(np.arange(count), np.array(list(places), np.int64))
    if not len(new):
        placement = Placement(choice, all_units, loads.time, loads.memory)
        return placement, placement.bottleneck
    mine = np.flatnonzero(np.isin(options.table, new))
    taken = Cluster(cluster.ranks_per_node, cluster.capacity, loads.time, loads.memory)
    found, bound = search(options.subset(mine), taken)
    if found is None:
        return None, bound
    choice[new] = mine[found.option]
    for table, units in zip(new, found.units, strict=True):
        all_units[table] = units
    return Placement(choice, all_units, found.time, found.memory), bound


def migrate(
    options: OptionArrays, cluster: Cluster, current: CurrentPlacement, budget: float
) -> tuple[Placement | None, float]:
    """The best placement found that moves at most `budget` bytes of placed tables.

    Args:
        options: options of all tables, new and placed.
        cluster: the ranks, without tables.
        current: the placed tables.
        budget: bytes; 0: nothing moves.

    Returns:
        The placement, None if none fits; and a lower bound on its time within the budget, ms.
    """
    best, bound = place_new_tables(options, cluster, current.places)
    if budget <= 0:
        return best, bound
    bound, _ = lower_bound(options, cluster)
    for _ in range(_ROUNDS):
        before = best
        for free in _sets_to_free(options, cluster, current, budget, best):
            found = _with_free(options, cluster, current, budget, bound, free)
            if found is not None and (best is None or found.bottleneck < best.bottleneck):
                best = found
            if best is not None and best.bottleneck <= bound * ENOUGH:
                return best, bound
        if best is before:
            break
    return best, bound


def _with_free(
    options: OptionArrays,
    cluster: Cluster,
    current: CurrentPlacement,
    budget: float,
    bound: float,
    free: frozenset[int],
) -> Placement | None:
    """Place the free tables, then spend the rest of the budget on single moves."""
    kept = {table: place for table, place in current.places.items() if table not in free}
    placement, _ = place_new_tables(options, cluster, kept)
    if placement is None:
        return None
    current.keep_in_place(placement)
    left = budget - current.moved_bytes(options, placement)
    if left < 0:
        return None
    priced = np.zeros(len(options.first))
    priced[list(kept)] = current.table_bytes[list(kept)]
    improve(options, cluster, placement, bound, MoveBudget(priced, left))
    current.keep_in_place(placement)
    return placement if current.moved_bytes(options, placement) <= budget else None


def _sets_to_free(
    options: OptionArrays,
    cluster: Cluster,
    current: CurrentPlacement,
    budget: float,
    best: Placement | None,
) -> Iterator[frozenset[int]]:
    """Distinct sets of placed tables to free, each within the budget."""
    seen: set[frozenset[int]] = set()
    moved = set() if best is None else _moved(current, best)
    for gain in _gains(options, cluster, current, best):
        order = sorted(current.places, key=lambda table: -gain[table])
        for share in _SHARES:
            free, left = set(moved), share * budget
            left -= float(sum(current.table_bytes[table] for table in moved))
            for table in order:
                if table not in free and gain[table] > 0 and current.table_bytes[table] <= left:
                    free.add(table)
                    left -= current.table_bytes[table]
            if frozenset(free) not in seen:
                seen.add(frozenset(free))
                yield frozenset(free)


def _moved(current: CurrentPlacement, placement: Placement) -> set[int]:
    return {
        table
        for table, (option, units) in current.places.items()
        if (int(placement.option[table]), placement.units[table]) != (option, units)
    }


def _gains(
    options: OptionArrays, cluster: Cluster, current: CurrentPlacement, best: Placement | None
) -> Iterator[FloatArray]:
    """Gain per freed byte, float64 [T]: relief of busy ranks, summed time, and memory in turn."""
    work, memory = options.work(cluster), options.total_memory(cluster)[:, 0]
    least_work = np.minimum.reduceat(work, options.first)
    least_memory = np.minimum.reduceat(memory, options.first)
    loads = RankLoads(options, cluster)
    for option, units in current.places.values():
        loads.add_units(option, units)
    time = loads.time if best is None else best.time
    over = np.maximum(time - time.mean(), 0.0)
    busy, saved, freed = (np.zeros(len(options.first)) for _ in range(3))
    for table, (option, units) in current.places.items():
        here = sum(over[ranks].sum() for ranks in loads.all_ranks(option, units))
        busy[table] = here * options.time[option]
        saved[table] = work[option] - least_work[table]
        freed[table] = memory[option] - least_memory[table]
    for gain in (busy, saved, freed):
        yield gain / np.maximum(current.table_bytes, 1.0)
