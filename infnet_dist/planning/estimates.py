"""Placed sharding options -> a plan with the estimated time and bytes of every table and rank."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from infnet_dist.errors import PlanError
from infnet_dist.io.filesystem import size_text
from infnet_dist.planning.costs.estimator import Costs, Estimator, empty_cluster
from infnet_dist.planning.costs.options import ShardingOption, excluded_options
from infnet_dist.planning.plan import MadeFor, Plan, RankEstimates, TablePlan
from infnet_dist.planning.search.lower_bound import lower_bound
from infnet_dist.planning.search.placement import EVERY, Placement
from infnet_dist.planning.shortage import save_hint
from infnet_dist.planning.tables import TableSet
from infnet_dist.planning.topology import TIERS, Topology

_ROUND_MS = 9


def estimate_plan(
    table_set: TableSet,
    topology: Topology,
    chosen: Mapping[str, tuple[ShardingOption, tuple[int, ...]]],
) -> Plan:
    """The plan with the given option and places of each table; no search.

    Raises:
        PlanError: a rank's memory is too small.
    """
    also = {name: option for name, (option, _) in chosen.items()}
    costs = Estimator(table_set, topology).costs(offload=False, also=also)
    numbers = [
        next(
            int(i)
            for i in np.flatnonzero(costs.arrays.table == number)
            if costs.sharding_options[i] == chosen[table.name][0]
        )
        for number, table in enumerate(table_set.tables)
    ]
    units = [chosen[table.name][1] for table in table_set.tables]
    memory = placed_loads(costs, list(zip(numbers, units, strict=True)), topology).memory
    over = memory / np.maximum(topology.capacity, 1.0)
    if over.max() > 1:
        tier = int(over.max(axis=0).argmax())
        raise PlanError(
            f"{TIERS[tier]} of rank {int(over[:, tier].argmax())} needs "
            f"{size_text(memory[:, tier].max())} but has {size_text(topology.capacity[tier])}; "
            f"scale rows by {1 / over.max():.2g} or add ranks{save_hint(table_set)}"
        )
    empty = np.zeros(0)
    placement = Placement(np.array(numbers, np.int64), units, empty, empty)
    bound, _ = lower_bound(costs.arrays, empty_cluster(topology))
    bound += costs.exchanges.least_ms
    return placed_plan(table_set, topology, costs, placement, bound)


def placed_plan(
    table_set: TableSet, topology: Topology, costs: Costs, placement: Placement, bound: float
) -> Plan:
    """The plan of a placement, with the estimates of its tables and ranks."""
    cluster = empty_cluster(topology)
    copies = costs.arrays.total(cluster, costs.copied) if table_set.background_save else 0.0
    totals = costs.arrays.total_memory(cluster) - _in_ddr(copies)
    tables = {}
    for number, table in enumerate(table_set.tables):
        index = int(placement.option[number])
        option = costs.sharding_options[index]
        tables[table.name] = TablePlan(
            sharding_type=option.sharding_type,
            compute_kernel=option.compute_kernel,
            columns=option.columns,
            cache_share=option.cache_share,
            places=placement.units[number],
            lookup_ms=round(float(costs.lookup_ms[index]), _ROUND_MS),
            comms_ms=round(float(costs.comms_ms[index]), _ROUND_MS),
            memory_bytes=dict(zip(TIERS, (int(b) for b in totals[index]), strict=True)),
        )
    placed = list(zip(map(int, placement.option), placement.units, strict=True))
    loads = placed_loads(costs, placed, topology)
    copies = loads.copied if table_set.background_save else 0.0
    memory = loads.memory - _in_ddr(copies)
    return Plan(
        made_for=MadeFor(topology=topology, tables=table_set),
        lower_bound_ms=round(bound, _ROUND_MS),
        exchange_ms=round(costs.exchanges.total_ms(placement.option), _ROUND_MS),
        excluded=tuple(excluded_options(table_set.tables, topology)),
        tables=dict(sorted(tables.items())),
        ranks=RankEstimates(
            lookup_ms=tuple(round(float(x), _ROUND_MS) for x in loads.lookup),
            comms_ms=tuple(round(float(x), _ROUND_MS) for x in loads.comms),
            **{f"{tier}_bytes": tuple(map(int, memory[:, i])) for i, tier in enumerate(TIERS)},
            stored_bytes=tuple(map(int, loads.stored[:, 0])),
        ),
    )


def _in_ddr(copies: np.ndarray | float) -> np.ndarray:
    """Bytes [..., 1] of the copies for a save as bytes by tier [..., 3]: all are in DDR."""
    return np.asarray(copies * (np.array(TIERS) == "ddr"))


class PlacedLoads(NamedTuple):
    """Times and bytes of the ranks under the placed options.

    Attributes:
        lookup: float64 [R], ms.
        comms: float64 [R], ms.
        memory: float64 [R, 3], bytes by tier, with the copies for a background save.
        stored: float64 [R, 1], bytes of rows and optimizer state.
        copied: float64 [R, 1], bytes of copies that a background save holds.
    """

    lookup: np.ndarray
    comms: np.ndarray
    memory: np.ndarray
    stored: np.ndarray
    copied: np.ndarray


def placed_loads(
    costs: Costs, placed: list[tuple[int, tuple[int, ...]]], topology: Topology
) -> PlacedLoads:
    """Sum the times and bytes of placed options, given as (option, units), over the ranks."""
    count = topology.world_size
    loads = PlacedLoads(
        lookup=np.zeros(count),
        comms=np.zeros(count),
        memory=np.zeros((count, len(TIERS))),
        stored=np.zeros((count, 1)),
        copied=np.zeros((count, 1)),
    )
    sizes = (1, topology.workers_per_node, count)
    for option, units in placed:
        place = int(costs.arrays.place[option])
        size = sizes[place]
        memory = costs.arrays.block_memory(option, size)
        stored = costs.arrays.along_ranks(option, costs.stored[option], size)
        copied = costs.arrays.along_ranks(option, costs.copied[option], size)
        for unit in (0,) if place == EVERY else units:
            ranks = slice(unit * size, (unit + 1) * size)
            loads.lookup[ranks] += costs.lookup_ms[option]
            loads.comms[ranks] += costs.comms_ms[option]
            loads.memory[ranks] += memory
            loads.stored[ranks] += stored
            loads.copied[ranks] += copied
    return loads
