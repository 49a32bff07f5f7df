"""Among placements of equal step time, prefers the one whose fullest rank is emptier.

Times are only estimates: if a rank is more than half full, times within 0.5 % count as equal, so
that a large table is spread over empty ranks.
"""

import numpy as np

from infnet_dist.planning.search.placement import (
    Cluster,
    IntArray,
    OptionArrays,
    Placement,
    RankLoads,
)

_STEPS = 500
_TRIED = 16  # tables of the fullest rank that are tried
_EQUAL = 1 + 1e-9
_NEARLY_EQUAL = 1.005
_HALF_FULL = 0.5
_GAIN = 1 - 1e-3  # a step must reduce the fullest share to this multiple
_MATTERS = 1e-3  # part of the fullest share that a table must hold to be moved
_SAME_TIER = 1.05  # bytes outside of the first tier may grow by this factor (copies for saves)


def balance_memory(options: OptionArrays, cluster: Cluster, placement: Placement) -> None:
    """Repeatedly relieve the fullest rank without making the busiest rank busier.

    A table of the fullest rank gets other ranks, or another option that keeps no more of it in
    slower memory. Changes `placement`.
    """
    loads = RankLoads(options, cluster)
    loads.time, loads.memory = placement.time, placement.memory
    stops = np.append(options.first[1:], len(options.table))
    fastest = float(loads.time.max())
    for _ in range(_STEPS):
        shares = cluster.shares(loads.memory).max(axis=1)
        rank, fullest = int(shares.argmax()), float(shares.max())
        longest = fastest * (_NEARLY_EQUAL if fullest > _HALF_FULL else _EQUAL)
        if not _relieve(loads, placement, rank, longest, stops):
            return


def _relieve(
    loads: RankLoads, placement: Placement, rank: int, longest: float, stops: IntArray
) -> bool:
    """Move the largest table of the rank that helps; False if none does."""
    options, cluster = loads.options, loads.cluster
    fullest = float(cluster.shares(loads.memory)[rank].max())
    for table in _largest_here(loads, placement, rank):
        old, old_units = int(placement.option[table]), placement.units[table]
        loads.add_units(old, old_units, -1)
        best: tuple[float, float, int, tuple[int, ...]] | None = None
        for option in _options_in_same_tier(options, cluster, old, stops[table]):
            units = loads.emptiest(option, longest=longest)
            if units is None:
                continue
            loads.add_units(option, units)
            after = max(
                float((loads.memory[ranks] / np.maximum(cluster.capacity[ranks], 1.0)).max())
                for ranks in loads.all_ranks(option, units)
            )
            loads.add_units(option, units, -1)
            work = float(options.time[option] * options.units[option])
            if after < fullest * _GAIN and (best is None or (after, work) < best[:2]):
                best = (after, work, option, units)
        _, _, option, units = best or (0.0, 0.0, old, old_units)
        loads.add_units(option, units)
        placement.option[table], placement.units[table] = option, units
        if best is not None:
            return True
    return False


def _largest_here(loads: RankLoads, placement: Placement, rank: int) -> list[int]:
    """Tables with a shard on the rank that matters, by their share of its memory."""
    options, found = loads.options, []
    room = np.maximum(loads.cluster.capacity[rank], 1.0)
    for table, units in enumerate(placement.units):
        option = int(placement.option[table])
        if any(ranks.start <= rank < ranks.stop for ranks in loads.all_ranks(option, units)):
            share = float((options.memory[option, 0] / room).max())
            found.append((-share, table))
    least = _MATTERS * float(loads.cluster.shares(loads.memory)[rank].max())
    return [table for share, table in sorted(found)[:_TRIED] if -share >= least]


def _options_in_same_tier(
    options: OptionArrays, cluster: Cluster, old: int, stop: int
) -> list[int]:
    """Options of the same table that keep as much of it in the fastest tier of the ranks."""
    table = options.table[old]
    mine = np.arange(int(np.searchsorted(options.table, table)), int(stop))
    first = int(np.flatnonzero(cluster.capacity.max(axis=0))[0])
    slower = options.subset(mine).total_memory(cluster)[:, first + 1 :].sum(axis=1)
    return [int(i) for i in mine[slower <= slower[old - mine[0]] * _SAME_TIER]]
