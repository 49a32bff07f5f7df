"""Chooses one sharding option per table and places its shards: the least time of the busiest rank.

`lower_bound` comes first; then options are chosen for a target time and for prices of memory, and
placed greedily, the largest first; `local_search` improves the best few placements. Of placements
that take nearly the same time, one with less work of all ranks is preferred, and between equal ones
memory decides (`memory_balance`). Everything is deterministic.
"""

from collections.abc import Iterator

import numpy as np

from infnet_dist.planning.search.local_search import ENOUGH, MoveBudget, improve
from infnet_dist.planning.search.lower_bound import lower_bound
from infnet_dist.planning.search.memory_balance import balance_memory
from infnet_dist.planning.search.placement import (
    Cluster,
    FloatArray,
    IntArray,
    OptionArrays,
    Placement,
    RankLoads,
)

_TARGETS = 14  # limits on the time of a unit that are tried, from the lower bound upwards
# Prices of memory: a multiple of the lower bound's price, plus a multiple of all work / all memory.
_PRICES = (
    *((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.2, 0.0), (1.0, 0.01), (1.5, 0.05), (2.0, 0.2)),
    *((3.0, 1.0), (4.0, 5.0), (16.0, 25.0), (64.0, 1e3)),
)
_STARTS = 6  # placements to improve
_NEARLY_EQUAL = 1.02  # times: they are only estimates


def search(options: OptionArrays, cluster: Cluster) -> tuple[Placement | None, float]:
    """The best placement found (None if none fits) and a proven lower bound on its time, ms."""
    bound, prices = lower_bound(options, cluster)
    if not np.isfinite(bound):
        return None, bound
    starts: list[Placement] = []
    longest = max(float(options.time.max()), bound * 4)
    for target in np.unique(np.geomspace(bound, longest, _TARGETS)):
        for choice in _choices(options, cluster, float(target), prices):
            placed = _place(options, cluster, choice, float(target))
            starts += placed
            if placed:
                break
        if starts and min(start.bottleneck for start in starts) <= target:
            break  # a larger limit on units can't help: the busiest rank is within this one
    starts = sorted(starts, key=lambda start: start.bottleneck)[:_STARTS]
    for start in starts:
        all_new = MoveBudget(np.zeros(len(start.option)), 0.0)
        improve(options, cluster, start, bound, all_new)
        if start.bottleneck <= bound * ENOUGH:
            starts = [start]
            break
    if not starts:
        return None, bound
    best = min(starts, key=lambda start: (start.bottleneck, start.fullest(cluster)))
    if best.bottleneck > bound * _NEARLY_EQUAL:  # else it has about the least work
        best = _less_work(options, cluster, best)
    balance_memory(options, cluster, best)
    return best, bound


def _less_work(options: OptionArrays, cluster: Cluster, best: Placement) -> Placement:
    """A placement with less work that takes nearly as long as `best`, if one is found.

    Work that relieves the busiest rank a little may cost all others much, e.g. if a small table is
    spread over a node: bytes of the exchange that the estimated time doesn't show.
    """
    longest = best.bottleneck * _NEARLY_EQUAL
    cost = np.where(options.fits_alone(cluster), options.work(cluster) * options.weight, np.inf)
    choice = _cheapest(options, np.where(options.time <= longest, cost, np.inf))
    for start in _place(options, cluster, choice, longest) if choice is not None else ():
        all_new = MoveBudget(np.zeros(len(start.option)), 0.0)
        improve(options, cluster, start, longest / ENOUGH, all_new)
        if start.bottleneck <= longest and start.time.sum() < best.time.sum():
            best = start
    return best


# ---- choosing options


def _choices(
    options: OptionArrays, cluster: Cluster, longest: float, prices: FloatArray
) -> Iterator[IntArray]:
    """One option per table with units of at most `longest` ms; each choice needs less memory."""
    work = options.work(cluster) * options.weight
    allowed = (options.time <= longest * (1 + 1e-9)) & options.fits_alone(cluster)
    memory = options.total_memory(cluster)
    free = (cluster.capacity - cluster.base_memory).sum(axis=0)
    unit = float(np.minimum.reduceat(work, options.first).sum()) / np.maximum(free, 1.0)
    last: IntArray | None = None
    for dual, more in _PRICES:
        price = dual * prices + more * unit
        cost = np.where(allowed, work + memory @ price, np.inf)
        choice = _cheapest(options, cost)
        if choice is None:
            return
        if last is not None and (choice == last).all():
            continue
        last = choice
        if (memory[choice].sum(axis=0) <= free).all():
            yield choice


def _cheapest(options: OptionArrays, cost: FloatArray) -> IntArray | None:
    """The cheapest option of each table, the first of equals; None if a table has none."""
    order = np.lexsort((np.arange(len(cost)), cost, options.table))
    choice = order[options.first]
    return choice if np.isfinite(cost[choice]).all() else None


# ---- placing


def _place(
    options: OptionArrays, cluster: Cluster, choice: IntArray, longest: float
) -> list[Placement]:
    """Greedy placements, largest units first: on all ranks, then on nodes, then on single ranks.

    Size is the larger share of time and memory, or memory alone; returns those that fit.
    """
    need = (options.memory[choice, 0] / np.maximum(cluster.capacity.max(axis=0), 1.0)).max(axis=1)
    size = np.maximum(options.time[choice] / longest, need)
    placements = []
    for by in (size, need):
        loads = RankLoads(options, cluster)
        units: list[tuple[int, ...]] = [()] * len(choice)
        for table in np.lexsort((np.arange(len(choice)), -by, -options.place[choice])):
            option = int(choice[table])
            found = loads.least_busy(option, longest=longest)
            if found is None:
                break
            units[table] = found
            loads.add_units(option, found)
        else:
            placements.append(Placement(choice.copy(), units, loads.time, loads.memory))
    return placements
