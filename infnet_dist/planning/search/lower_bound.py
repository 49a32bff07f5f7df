"""A proven lower bound on the time of the busiest rank, by Lagrangian relaxation of memory."""

from collections.abc import Callable

import numpy as np

from infnet_dist.planning.search.placement import Cluster, FloatArray, OptionArrays

_PRICE_STEPS = 40


def lower_bound(options: OptionArrays, cluster: Cluster) -> tuple[float, FloatArray]:
    """Time (ms) that no placement beats, inf if none fits; and the price of memory [M], ms/byte.

    Suppose the busiest rank takes B ms. Then all units take at most B, the times of all ranks sum
    to at most R B, and the bytes fit. So for any prices p >= 0 of memory sum_t min_o (time_o + p .
    bytes_o) - p . capacity + pinned time <= R B (Lagrangian bound). Bisection finds the largest B
    that violates this, coordinate search the best prices.
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
    options: OptionArrays, cluster: Cluster, longest: float, prices: FloatArray
) -> tuple[float, FloatArray]:
    """The Lagrangian bound on the summed time, maximised over prices; inf if nothing fits."""
    work = options.work(cluster)
    usable = (options.time <= longest) & options.fits_alone(cluster)
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
    """The maximum of the concave `dual` along one price, on a logarithmic and two finer grids."""
    grid = np.concatenate([[0.0], unit * np.geomspace(1e-4, 1e6, _PRICE_STEPS)])
    for _ in range(3):
        candidates = np.repeat(prices[None], len(grid), axis=0)
        candidates[:, tier] = grid
        peak = int(dual(candidates).argmax())
        low, high = grid[max(peak - 1, 0)], grid[min(peak + 1, len(grid) - 1)]
        best, grid = candidates[peak], np.unique([*np.linspace(low, high, 12), grid[peak]])
    return best
