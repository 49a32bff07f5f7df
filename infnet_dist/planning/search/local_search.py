"""Local search: repeatedly relieve the busiest rank of a placement."""

from dataclasses import dataclass

import numpy as np

from infnet_dist.planning.search.placement import (
    EVERY,
    RANK,
    Cluster,
    FloatArray,
    IntArray,
    OptionArrays,
    Placement,
    RankLoads,
)

_IMPROVEMENTS = 4_000
ENOUGH = 1.002  # times the lower bound; improving stops there


@dataclass
class MoveBudget:
    """Bytes of placed tables that may still move.

    Attributes:
        table_bytes: float64 [T], bytes of a table that is already placed; 0: a new table.
        left: bytes left.
    """

    table_bytes: FloatArray
    left: float

    def allows(self, *moved: float) -> bool:
        """Whether these bytes may move."""
        return sum(moved) <= self.left


def improve(
    options: OptionArrays, cluster: Cluster, placement: Placement, bound: float, budget: MoveBudget
) -> None:
    """Repeatedly relieve the busiest rank: move a unit, swap two, or change a table's option.

    Changes `placement` and `budget`. Stops close to `bound`, or when no change helps.
    """
    loads = RankLoads(options, cluster)
    loads.time, loads.memory = placement.time, placement.memory
    stops = np.append(options.first[1:], len(options.table))
    _save_work(loads, placement, budget, stops)
    for _ in range(_IMPROVEMENTS):
        busiest = int(loads.time.argmax())
        if loads.time[busiest] <= bound * ENOUGH:
            return
        if not (
            _move_or_swap(loads, placement, budget, busiest)
            or _change_option(loads, placement, budget, busiest, stops)
        ):
            return


def _save_work(loads: RankLoads, placement: Placement, budget: MoveBudget, stops: IntArray) -> None:
    """Give tables options with less work and no longer units, where memory allows.

    Because of its prices of memory the greedy choice uses less fast memory than it could.
    """
    options = loads.options
    work = options.work(loads.cluster) * options.weight
    saved = work[placement.option] - np.minimum.reduceat(work, options.first)
    for table in np.argsort(-saved, kind="stable"):
        if saved[table] <= 0:
            return
        if budget.table_bytes[table]:
            continue  # placed tables move only to relieve the busiest rank
        old, old_units = int(placement.option[table]), placement.units[table]
        mine = np.arange(options.first[table], stops[table])
        top = float(loads.time.max())
        loads.add_units(old, old_units, -1)
        new, new_units = old, old_units
        for option in map(int, mine[np.argsort(work[mine], kind="stable")]):
            if work[option] >= work[old]:
                break
            units = loads.least_busy(option, longest=top)
            if units is None or options.time[option] > options.time[old]:
                continue
            loads.add_units(option, units)
            fits = loads.time.max() <= top
            loads.add_units(option, units, -1)
            if fits:
                new, new_units = option, units
                break
        loads.add_units(new, new_units)
        placement.option[table], placement.units[table] = new, new_units


def _units_of(
    options: OptionArrays, placement: Placement
) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """Units on single ranks: table, index within the table, rank, time."""
    tables, numbers, ranks = [], [], []
    for table in np.flatnonzero(options.place[placement.option] == RANK):
        for number, rank in enumerate(placement.units[table]):
            tables.append(int(table))
            numbers.append(number)
            ranks.append(rank)
    table_array = np.array(tables, np.int64)
    times = options.time[placement.option[table_array]] if tables else np.zeros(0)
    return table_array, np.array(numbers, np.int64), np.array(ranks, np.int64), times


def _move_or_swap(loads: RankLoads, placement: Placement, budget: MoveBudget, busiest: int) -> bool:
    options, capacity = loads.options, loads.cluster.capacity
    table, number, rank, time = _units_of(options, placement)
    moved = (budget.table_bytes / options.units[placement.option])[table]
    mine = np.flatnonzero((rank == busiest) & (moved <= budget.left))
    top = loads.time[busiest]
    for i in mine[np.argsort(-time[mine], kind="stable")]:
        option = int(placement.option[table[i]])
        need = options.memory[option, 0]
        after = loads.time + time[i]
        after[(loads.memory + need > capacity).any(axis=1)] = np.inf
        after[list(placement.units[table[i]])] = np.inf
        target = int(after.argmin())
        if after[target] < top * (1 - 1e-9):
            loads.add_unit(option, busiest, -1)
            loads.add_unit(option, target)
            _set_unit(placement, int(table[i]), int(number[i]), target)
            budget.left -= moved[i]
            return True
    if len(mine) == 0:
        return False
    # Swap with a shorter unit of another rank: [mine, others].
    others = np.flatnonzero(rank != busiest)
    if len(others) == 0:
        return False
    gain = time[mine][:, None] - time[others][None]
    worst = np.maximum(top - gain, loads.time[rank[others]][None] + gain)
    worst[gain <= 0] = np.inf
    for flat in np.argsort(worst, axis=None, kind="stable")[:64]:
        a, b = np.unravel_index(int(flat), worst.shape)
        if not worst[a, b] < top * (1 - 1e-9):
            return False
        i, j = int(mine[a]), int(others[b])
        if budget.allows(moved[i], moved[j]) and _try_swap(
            loads, placement, (table[i], number[i]), (table[j], number[j])
        ):
            budget.left -= moved[i] + moved[j]
            return True
    return False


def _try_swap(
    loads: RankLoads, placement: Placement, one: tuple[int, int], two: tuple[int, int]
) -> bool:
    (table_a, number_a), (table_b, number_b) = one, two
    option_a, option_b = int(placement.option[table_a]), int(placement.option[table_b])
    rank_a, rank_b = placement.units[table_a][number_a], placement.units[table_b][number_b]
    if rank_b in placement.units[table_a] or rank_a in placement.units[table_b]:
        return False
    need = loads.options.memory[option_a, 0] - loads.options.memory[option_b, 0]
    capacity = loads.cluster.capacity
    fits_b = (loads.memory[rank_b] + need <= capacity[rank_b]).all()
    fits_a = (loads.memory[rank_a] - need <= capacity[rank_a]).all()
    if not (fits_a and fits_b):
        return False
    for option, old, new in ((option_a, rank_a, rank_b), (option_b, rank_b, rank_a)):
        loads.add_unit(option, old, -1)
        loads.add_unit(option, new)
    _set_unit(placement, int(table_a), int(number_a), rank_b)
    _set_unit(placement, int(table_b), int(number_b), rank_a)
    return True


def _set_unit(placement: Placement, table: int, number: int, place: int) -> None:
    units = list(placement.units[table])
    units[number] = place
    placement.units[table] = tuple(units)


def _change_option(
    loads: RankLoads, placement: Placement, budget: MoveBudget, busiest: int, stops: IntArray
) -> bool:
    """Give one table of the busiest rank another option, if that lowers the rank's time."""
    options = loads.options
    node = busiest // loads.cluster.ranks_per_node
    time = (options.time * options.weight)[placement.option]
    place = options.place[placement.option]
    here = np.array(
        [
            p == EVERY or (busiest if p == RANK else node) in units
            for p, units in zip(place, placement.units, strict=True)
        ]
    )
    candidates = np.flatnonzero(here & (budget.table_bytes <= budget.left))
    top = loads.time[busiest]
    for table in candidates[np.argsort(-time[candidates], kind="stable")][:32]:
        old, old_units = int(placement.option[table]), placement.units[table]
        loads.add_units(old, old_units, -1)
        best: tuple[float, int, tuple[int, ...]] | None = None
        for option in range(int(options.first[table]), int(stops[table])):
            if option == old or options.time[option] >= top:
                continue
            if not budget.allows(budget.table_bytes[table] * options.copies[option]):
                continue
            units = loads.least_busy(option, longest=top)
            if units is None:
                continue
            loads.add_units(option, units)
            # Other ranks may be as busy: only the ranks of this table must get less busy.
            after = max(float(loads.time[ranks].max()) for ranks in loads.all_ranks(option, units))
            loads.add_units(option, units, -1)
            if after < top * (1 - 1e-9) and (best is None or after < best[0]):
                best = (after, option, units)
        _, option, units = best or (0.0, old, old_units)
        loads.add_units(option, units)
        placement.option[table], placement.units[table] = option, units
        if best is not None:
            budget.left -= budget.table_bytes[table] * options.copies[option]
            return True
    return False
