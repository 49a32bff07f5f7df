"""Choose one option a table and place its shards: the least time of the busiest rank, in memory.

Pure arrays: no table names, no TorchRec. A lower bound comes first and is proven; then options are
chosen for a target time, placed greedily (largest first) and improved by local search. Everything
is deterministic.

Letters: T tables, O options, R ranks, N nodes, M memory tiers (HBM, DDR, SSD).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# What one unit of an option fills.
RANK, NODE, EVERY = 0, 1, 2

_TARGETS = 14  # times tried as the largest of a shard, from the bound up
_PRICE_STEPS = 40
# Prices of memory: this many times the bound's, and so many times "all work over all memory".
_PRICES = (
    *((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.2, 0.0), (1.0, 0.01), (1.5, 0.05), (2.0, 0.2)),
    *((3.0, 1.0), (4.0, 5.0), (16.0, 25.0), (64.0, 1e3)),
)
_IMPROVEMENTS = 4_000
_STARTS = 6  # placements that are improved
_ENOUGH = 1.002  # of the lower bound: stop improving


@dataclass(frozen=True)
class Options:
    """All options of all tables, sorted by table.

    An option places `units`, each on its own rank (RANK), on all ranks of its own node (NODE), or
    one on all ranks (EVERY). Along a node or all ranks the rows are dealt in blocks: the first
    `full` ranks hold a whole block, the next one the rest, the others nothing.

    Attributes:
        table: int64 [O], number of the table.
        place: int64 [O], RANK, NODE or EVERY.
        units: int64 [O].
        time: float64 [O], ms that a unit costs each of its ranks.
        full: int64 [O].
        memory: float64 [O, 3, M], bytes on a rank with a whole block, the rest, nothing.
        weight: float64 [O], how much the table's time counts when options are chosen.
    """

    table: IntArray
    place: IntArray
    units: IntArray
    time: FloatArray
    full: IntArray
    memory: FloatArray
    weight: FloatArray

    @property
    def first(self) -> IntArray:
        """The first option of each table, int64 [T]."""
        return np.flatnonzero(np.diff(self.table, prepend=-1))

    def ranks_per_unit(self, cluster: "Cluster") -> IntArray:
        """int64 [O]."""
        return np.array([1, cluster.ranks_per_node, cluster.num_ranks])[self.place]

    def block_memory(self, option: int, num_ranks: int) -> FloatArray:
        """Bytes of one unit on each of its ranks, float64 [num_ranks, M]."""
        memory = np.repeat(self.memory[option, 2][None], num_ranks, axis=0)
        full = int(self.full[option])
        memory[:full] = self.memory[option, 0]
        memory[full : full + 1] = self.memory[option, 1]
        return memory

    def total_memory(self, cluster: "Cluster") -> FloatArray:
        """Bytes of all units of an option, float64 [O, M]."""
        ranks = self.ranks_per_unit(cluster)
        full = np.minimum(self.full, ranks)
        rest = np.minimum(ranks - full, 1)
        counts = np.stack([full, rest, ranks - full - rest], axis=1)
        total = (self.memory * counts[:, :, None]).sum(axis=1)
        return np.asarray(total * self.units[:, None])


@dataclass(frozen=True)
class Cluster:
    """Ranks and what stands on them already.

    Attributes:
        ranks_per_node: all nodes alike.
        capacity: float64 [R, M], bytes that tables may fill.
        base_time: float64 [R], ms of what is pinned.
        base_memory: float64 [R, M], bytes of what is pinned.
    """

    ranks_per_node: int
    capacity: FloatArray
    base_time: FloatArray
    base_memory: FloatArray

    @property
    def num_ranks(self) -> int:
        """R."""
        return len(self.capacity)

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.num_ranks // self.ranks_per_node


@dataclass
class Placement:
    """The option of each table and the place of each of its units.

    Attributes:
        option: int64 [T].
        units: for each table the ranks (RANK) or nodes (NODE) of its units; empty for EVERY.
        time: float64 [R], ms.
        memory: float64 [R, M], bytes.
    """

    option: IntArray
    units: list[tuple[int, ...]]
    time: FloatArray
    memory: FloatArray

    @property
    def bottleneck(self) -> float:
        """Milliseconds of the busiest rank."""
        return float(self.time.max())


@dataclass
class MoveBudget:
    """What may still be moved.

    Attributes:
        table_bytes: float64 [T], bytes of a table that stands somewhere already; 0: a new one.
        left: bytes.
    """

    table_bytes: FloatArray
    left: float

    def allows(self, *moved: float) -> bool:
        """Whether so many bytes may be moved."""
        return sum(moved) <= self.left


def search(options: Options, cluster: Cluster) -> tuple[Placement | None, float]:
    """The best placement found, None where none fits, and a proven lower bound of any, in ms."""
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
            break  # shards may be longer than this now, but the busiest rank isn't
    starts = sorted(starts, key=lambda start: start.bottleneck)[:_STARTS]
    for start in starts:
        nothing_stands = MoveBudget(np.zeros(len(start.option)), 0.0)
        improve(options, cluster, start, bound, nothing_stands)
        if start.bottleneck <= bound * _ENOUGH:
            return start, bound
    return min(starts, key=lambda start: start.bottleneck, default=None), bound


# ---- the bound


def lower_bound(options: Options, cluster: Cluster) -> tuple[float, FloatArray]:
    """Time (ms) that no plan can beat, inf where none fits, and the price of memory [M] in ms/byte.

    Suppose a plan's busiest rank takes B ms. It uses only options whose units take at most B; the
    times of all ranks add up to at most R B; and its bytes fit. So for any prices p >= 0 of memory
    sum_t min_o (time_o + p . bytes_o) - p . capacity + pinned time <= R B (Lagrangian bound). The
    largest B that violates this is found by bisection, the best prices by coordinate search.
    """
    pinned = float(cluster.base_time.max(initial=0.0))
    low = max(float(np.minimum.reduceat(options.time, options.first).max()), pinned)
    prices = np.zeros(cluster.capacity.shape[1])
    high = float(options.time.max(initial=0.0)) + low
    relaxed, prices = _relaxed_work(options, cluster, np.inf, prices)
    if not np.isfinite(relaxed):
        return np.inf, prices
    high = max(high, relaxed / cluster.num_ranks)
    low = max(low, relaxed / cluster.num_ranks)
    for _ in range(30):
        if high - low <= 1e-4 * high:
            break
        middle = (low + high) / 2
        work, prices = _relaxed_work(options, cluster, middle, prices)
        low, high = (middle, high) if work > middle * cluster.num_ranks else (low, middle)
    return low, prices


def _relaxed_work(
    options: Options, cluster: Cluster, longest: float, prices: FloatArray
) -> tuple[float, FloatArray]:
    """Most over prices of the Lagrangian bound of the summed time; inf where nothing can fit."""
    work = options.time * options.units * options.ranks_per_unit(cluster)
    usable = (options.time <= longest) & _fits_alone(options, cluster)
    work = np.where(usable, work, np.inf)
    memory = options.total_memory(cluster)
    free = (cluster.capacity - cluster.base_memory).sum(axis=0)
    least = np.minimum.reduceat(memory, options.first).sum(axis=0)
    if (least > free).any():
        return np.inf, prices
    if not np.isfinite(np.minimum.reduceat(work, options.first)).all():
        return np.inf, prices
    pinned = float(cluster.base_time.sum())

    def dual(prices_GM: FloatArray) -> FloatArray:
        """The bound for each of G price vectors."""
        cost = work[:, None] + memory @ prices_GM.T
        least_work = np.minimum.reduceat(cost, options.first, axis=0).sum(axis=0)
        return np.asarray(least_work - prices_GM @ free + pinned)

    total = float(np.minimum.reduceat(work, options.first).sum())
    unit = max(total, 1e-9) / np.maximum(free, 1.0)
    best = np.zeros(len(free))
    for tier in [*range(len(free)), 0]:
        best = _best_price(dual, best, tier, unit[tier])
    return float(dual(best[None])[0]), best


def _best_price(
    dual: Callable[[FloatArray], FloatArray], prices: FloatArray, tier: int, unit: float
) -> FloatArray:
    """The peak of the concave `dual` along one price: a logarithmic grid, then finer ones."""
    grid = np.concatenate([[0.0], unit * np.geomspace(1e-4, 1e6, _PRICE_STEPS)])
    for _ in range(3):
        candidates = np.repeat(prices[None], len(grid), axis=0)
        candidates[:, tier] = grid
        peak = int(dual(candidates).argmax())
        low, high = grid[max(peak - 1, 0)], grid[min(peak + 1, len(grid) - 1)]
        best, grid = candidates[peak], np.unique([*np.linspace(low, high, 12), grid[peak]])
    return best


# ---- choosing options


def _choices(
    options: Options, cluster: Cluster, longest: float, prices: FloatArray
) -> Iterator[IntArray]:
    """One option a table with units of at most `longest` ms; each proposal needs less memory."""
    work = options.time * options.units * options.ranks_per_unit(cluster) * options.weight
    allowed = (options.time <= longest * (1 + 1e-9)) & _fits_alone(options, cluster)
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


def _fits_alone(options: Options, cluster: Cluster) -> BoolArray:
    """Options whose blocks fit a rank that holds nothing else, bool [O]."""
    most = cluster.capacity.max(axis=0)
    return np.asarray((options.memory <= most).all(axis=(1, 2)))


def _cheapest(options: Options, cost: FloatArray) -> IntArray | None:
    """The option of least cost of each table, the first of equals; None if one has none."""
    order = np.lexsort((np.arange(len(cost)), cost, options.table))
    choice = order[options.first]
    return choice if np.isfinite(cost[choice]).all() else None


# ---- placing


class _Board:
    """Times and bytes of the ranks while units are placed and moved."""

    def __init__(self, options: Options, cluster: Cluster) -> None:
        self.options = options
        self.cluster = cluster
        self.time = cluster.base_time.copy()
        self.memory = cluster.base_memory.copy()

    def ranks(self, option: int, unit: int) -> slice:
        """The ranks of a unit: its rank, its node's, or all."""
        place = self.options.place[option]
        if place == RANK:
            return slice(unit, unit + 1)
        if place == NODE:
            size = self.cluster.ranks_per_node
            return slice(unit * size, (unit + 1) * size)
        return slice(0, self.cluster.num_ranks)

    def put(self, option: int, unit: int, sign: int = 1) -> None:
        """Add a unit; take it away with sign -1."""
        self._put(option, self.ranks(option, unit), sign)

    def _put(self, option: int, ranks: slice, sign: int) -> None:
        self.time[ranks] += sign * self.options.time[option]
        size = ranks.stop - ranks.start
        self.memory[ranks] += sign * self.options.block_memory(option, size)

    def where(self, option: int, *, longest: float) -> tuple[int, ...] | None:
        """Places for all units of an option: the least busy ones that have room; None: no room."""
        place = self.options.place[option]
        if place == EVERY:
            need = self.options.block_memory(option, self.cluster.num_ranks)
            return () if (self.memory + need <= self.cluster.capacity).all() else None
        size = 1 if place == RANK else self.cluster.ranks_per_node
        need = self.options.block_memory(option, size)
        after = (self.memory.reshape(-1, size, self.memory.shape[1]) + need) / np.maximum(
            self.cluster.capacity.reshape(-1, size, self.memory.shape[1]), 1.0
        )
        share = after.max(axis=(1, 2))
        busy = self.time.reshape(-1, size).max(axis=1) + self.options.time[option]
        # Full ranks are avoided while time allows it, so that large tables still find room.
        within = np.maximum(busy / longest, np.minimum(share, 1.0) ** 4)
        cost = np.where(busy <= longest, within, 1.0 + busy / longest)
        cost[share > 1.0] = np.inf
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

    def put_all(self, option: int, units: tuple[int, ...], sign: int = 1) -> None:
        """Add all units of an option; take them away with sign -1."""
        for ranks in self.all_ranks(option, units):
            self._put(option, ranks, sign)


def _place(options: Options, cluster: Cluster, choice: IntArray, longest: float) -> list[Placement]:
    """Largest first: what fills all ranks, then nodes, then single ranks.

    Two orders: by the larger share of time and memory, and by memory alone; those that fit.
    """
    need = (options.memory[choice, 0] / np.maximum(cluster.capacity.max(axis=0), 1.0)).max(axis=1)
    size = np.maximum(options.time[choice] / longest, need)
    placements = []
    for by in (size, need):
        board = _Board(options, cluster)
        units: list[tuple[int, ...]] = [()] * len(choice)
        for table in np.lexsort((np.arange(len(choice)), -by, -options.place[choice])):
            option = int(choice[table])
            found = board.where(option, longest=longest)
            if found is None:
                break
            units[table] = found
            board.put_all(option, found)
        else:
            placements.append(Placement(choice.copy(), units, board.time, board.memory))
    return placements


# ---- improving


def improve(
    options: Options, cluster: Cluster, placement: Placement, bound: float, budget: MoveBudget
) -> None:
    """Relieve the busiest rank again and again: move a unit, swap two, or change a table's option.

    Changes `placement` and `budget`. Stops close to `bound`, or where nothing helps any more.
    """
    board = _Board(options, cluster)
    board.time, board.memory = placement.time, placement.memory
    stops = np.append(options.first[1:], len(options.table))
    _save_work(board, placement, budget, stops)
    for _ in range(_IMPROVEMENTS):
        busiest = int(board.time.argmax())
        if board.time[busiest] <= bound * _ENOUGH:
            return
        if not (
            _move_or_swap(board, placement, budget, busiest)
            or _change_option(board, placement, budget, busiest, stops)
        ):
            return


def _save_work(board: _Board, placement: Placement, budget: MoveBudget, stops: IntArray) -> None:
    """Give tables options of less work, in shorter units, where there is room.

    Memory prices make the greedy choice keep more out of fast memory than its placement needs.
    """
    options = board.options
    work = options.time * options.units * options.ranks_per_unit(board.cluster) * options.weight
    saved = work[placement.option] - np.minimum.reduceat(work, options.first)
    for table in np.argsort(-saved, kind="stable"):
        if saved[table] <= 0:
            return
        if budget.table_bytes[table] > budget.left:
            continue
        old, old_units = int(placement.option[table]), placement.units[table]
        mine = np.arange(options.first[table], stops[table])
        board.put_all(old, old_units, -1)
        top = float(max(board.time.max(), placement.bottleneck))
        new, new_units = old, old_units
        for option in map(int, mine[np.argsort(work[mine], kind="stable")]):
            if work[option] >= work[old]:
                break
            units = board.where(option, longest=top)
            if units is None or options.time[option] > options.time[old]:
                continue
            board.put_all(option, units)
            fits = board.time.max() <= top
            board.put_all(option, units, -1)
            if fits:
                new, new_units = option, units
                budget.left -= budget.table_bytes[table]
                break
        board.put_all(new, new_units)
        placement.option[table], placement.units[table] = new, new_units


def _units_of(
    options: Options, placement: Placement
) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """Single-rank units: table, number within the table, rank, time."""
    tables, numbers, ranks = [], [], []
    for table in np.flatnonzero(options.place[placement.option] == RANK):
        for number, rank in enumerate(placement.units[table]):
            tables.append(int(table))
            numbers.append(number)
            ranks.append(rank)
    table_array = np.array(tables, np.int64)
    times = options.time[placement.option[table_array]] if tables else np.zeros(0)
    return table_array, np.array(numbers, np.int64), np.array(ranks, np.int64), times


def _move_or_swap(board: _Board, placement: Placement, budget: MoveBudget, busiest: int) -> bool:
    options, capacity = board.options, board.cluster.capacity
    table, number, rank, time = _units_of(options, placement)
    moved = (budget.table_bytes / options.units[placement.option])[table]
    mine = np.flatnonzero((rank == busiest) & (moved <= budget.left))
    top = board.time[busiest]
    for i in mine[np.argsort(-time[mine], kind="stable")]:
        option = int(placement.option[table[i]])
        need = options.memory[option, 0]
        after = board.time + time[i]
        after[(board.memory + need > capacity).any(axis=1)] = np.inf
        after[list(placement.units[table[i]])] = np.inf
        target = int(after.argmin())
        if after[target] < top * (1 - 1e-9):
            board.put(option, busiest, -1)
            board.put(option, target)
            _set_unit(placement, int(table[i]), int(number[i]), target)
            budget.left -= moved[i]
            return True
    if len(mine) == 0:
        return False
    # Swap with a shorter unit elsewhere: [mine, all units].
    others = np.flatnonzero(rank != busiest)
    if len(others) == 0:
        return False
    gain = time[mine][:, None] - time[others][None]
    worst = np.maximum(top - gain, board.time[rank[others]][None] + gain)
    worst[gain <= 0] = np.inf
    for flat in np.argsort(worst, axis=None, kind="stable")[:64]:
        a, b = np.unravel_index(int(flat), worst.shape)
        if not worst[a, b] < top * (1 - 1e-9):
            return False
        i, j = int(mine[a]), int(others[b])
        if budget.allows(moved[i], moved[j]) and _try_swap(
            board, placement, (table[i], number[i]), (table[j], number[j])
        ):
            budget.left -= moved[i] + moved[j]
            return True
    return False


def _try_swap(
    board: _Board, placement: Placement, one: tuple[int, int], two: tuple[int, int]
) -> bool:
    (table_a, number_a), (table_b, number_b) = one, two
    option_a, option_b = int(placement.option[table_a]), int(placement.option[table_b])
    rank_a, rank_b = placement.units[table_a][number_a], placement.units[table_b][number_b]
    if rank_b in placement.units[table_a] or rank_a in placement.units[table_b]:
        return False
    need = board.options.memory[option_a, 0] - board.options.memory[option_b, 0]
    capacity = board.cluster.capacity
    fits_b = (board.memory[rank_b] + need <= capacity[rank_b]).all()
    fits_a = (board.memory[rank_a] - need <= capacity[rank_a]).all()
    if not (fits_a and fits_b):
        return False
    for option, old, new in ((option_a, rank_a, rank_b), (option_b, rank_b, rank_a)):
        board.put(option, old, -1)
        board.put(option, new)
    _set_unit(placement, int(table_a), int(number_a), rank_b)
    _set_unit(placement, int(table_b), int(number_b), rank_a)
    return True


def _set_unit(placement: Placement, table: int, number: int, place: int) -> None:
    units = list(placement.units[table])
    units[number] = place
    placement.units[table] = tuple(units)


def _change_option(
    board: _Board, placement: Placement, budget: MoveBudget, busiest: int, stops: IntArray
) -> bool:
    """Give one table of the busiest rank another option, where that lowers the busiest time."""
    options = board.options
    node = busiest // board.cluster.ranks_per_node
    time = (options.time * options.weight)[placement.option]
    place = options.place[placement.option]
    here = np.array(
        [
            p == EVERY or (busiest if p == RANK else node) in units
            for p, units in zip(place, placement.units, strict=True)
        ]
    )
    candidates = np.flatnonzero(here & (budget.table_bytes <= budget.left))
    top = board.time[busiest]
    for table in candidates[np.argsort(-time[candidates], kind="stable")][:32]:
        old, old_units = int(placement.option[table]), placement.units[table]
        board.put_all(old, old_units, -1)
        best: tuple[float, int, tuple[int, ...]] | None = None
        for option in range(int(options.first[table]), int(stops[table])):
            if option == old or options.time[option] >= top:
                continue
            units = board.where(option, longest=top)
            if units is None:
                continue
            board.put_all(option, units)
            # Other ranks may be as busy; it is enough that this one gets less busy.
            after = max(float(board.time[ranks].max()) for ranks in board.all_ranks(option, units))
            board.put_all(option, units, -1)
            if after < top * (1 - 1e-9) and (best is None or after < best[0]):
                best = (after, option, units)
        _, option, units = best or (0.0, old, old_units)
        board.put_all(option, units)
        placement.option[table], placement.units[table] = option, units
        if best is not None:
            budget.left -= budget.table_bytes[table]
            return True
    return False
