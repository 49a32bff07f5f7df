"""Why no plan fits: the missing memory, and changes that help, each verified by planning."""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from infnet_dist.errors import PlanError
from infnet_dist.io.filesystem import size_text
from infnet_dist.planning.costs.estimator import Estimator, empty_cluster
from infnet_dist.planning.tables import TableSet
from infnet_dist.planning.topology import MAX_WORKERS, TIERS, Topology

TryPlan = Callable[[TableSet, Topology], object]


def check_room(topology: Topology) -> None:
    """Check that the reserve leaves memory for tables.

    Raises:
        PlanError: it leaves none.
    """
    if not topology.capacity[: TIERS.index("ssd")].any():
        raise PlanError(
            f"{topology.workers_per_node} workers on a node of {topology.name} leave no memory for "
            f"tables: {topology.ddr_gib:.3g} GiB of RAM, {topology.worker_gib:.3g} GiB for each "
            "worker's process (worker_gib); use fewer workers per node"
        )


def save_hint(table_set: TableSet) -> str:
    """A hint to save without copies of rows; empty if none are planned."""
    if not table_set.background_save:
        return ""
    return (
        ", or save without copies of rows (checkpoint.background: false; in a tables file "
        "background_save: false)"
    )


def explain_shortage(table_set: TableSet, topology: Topology, try_plan: TryPlan | None) -> str:
    """The missing memory, the costliest tables, and changes that make a plan fit.

    Args:
        table_set: the tables.
        topology: the workers.
        try_plan: returns a plan, or None if none fits; None: suggest no changes.
    """
    costs = Estimator(table_set, topology).costs(offload=True)
    cluster = empty_cluster(topology)
    totals = costs.arrays.total_memory(cluster)
    tiers = [i for i in range(len(TIERS)) if totals[:, i].any()]
    least = np.minimum.reduceat(totals, costs.arrays.first).sum(axis=0)
    # All tiers together: rows that aren't in HBM are in RAM.
    need = np.minimum.reduceat(totals.sum(axis=1), costs.arrays.first)
    free = topology.capacity * topology.world_size
    short = [
        f"{TIERS[i]} lacks {size_text(least[i] - free[i])}" for i in tiers if least[i] > free[i]
    ]
    together = " and ".join(TIERS[i] for i in tiers)
    if not short and need.sum() > free[tiers].sum():
        short = [f"{together} together lack {size_text(need.sum() - free[tiers].sum())}"]
    alone = np.logical_or.reduceat(costs.arrays.fits_alone(cluster), costs.arrays.first)
    short += [
        f"no shard of table {table_set.tables[i].name!r} fits on a worker under any option"
        for i in np.flatnonzero(~alone)
    ]
    if not short:
        short = [
            f"no placement found, although the total fits ({size_text(need.sum())} of "
            f"{size_text(free[tiers].sum())} {together})"
        ]
    order = np.argsort(-need, kind="stable")[:3]
    costly = ", ".join(f"{table_set.tables[i].name!r} {size_text(need[i])}" for i in order)
    message = (
        f"no plan fits {topology.world_size} workers of {topology.name}: {'; '.join(short)}. "
        f"Costliest tables: {costly}"
    )
    if try_plan is None:
        return message
    helps = list(
        islice(_changes_that_fit(table_set, topology, [int(i) for i in order], try_plan), 3)
    )
    advice = "; ".join(helps) or "none of the usual changes suffices; make tables smaller"
    return f"{message}. Changes that fit (planned): {advice}"


def _changes_that_fit(
    table_set: TableSet, topology: Topology, costly: list[int], try_plan: TryPlan
) -> Iterator[str]:
    """Changes after which a plan exists, cheapest first; each is verified by planning."""
    if table_set.background_save:
        waiting = table_set.model_copy(update={"background_save": False})
        if try_plan(waiting, topology) is not None:
            yield "no copies for background saves (checkpoint.background: false)"
    heavy = {table_set.optimizer_of(t) for t in table_set.tables} - {"sgd", "rowwise_adagrad"}
    if heavy:
        tables = tuple(t.model_copy(update={"optimizer": None}) for t in table_set.tables)
        lighter = table_set.model_copy(update={"optimizer": "rowwise_adagrad", "tables": tables})
        if try_plan(lighter, topology) is not None:
            yield f"optimizer rowwise_adagrad in place of {', '.join(sorted(heavy))}"
    names = [table_set.tables[i].name for i in costly]
    for name in names:
        if table_set.table(name).compute_kernels is not None and topology.device == "cuda":
            freed = table_set.replace(name, compute_kernels=None, cache_share=None)
            if try_plan(freed, topology) is not None:
                yield f"all kernels for table {name!r}, with rows outside of HBM"
    wide = [name for name in names if table_set.table(name).data_type == "fp32"]
    halved = table_set
    for count, name in enumerate(wide, start=1):
        halved = halved.replace(name, data_type="fp16")
        if try_plan(halved, topology) is not None:
            yield f"fp16 rows for {', '.join(repr(n) for n in wide[:count])}"
            break
    nodes = _fewest_nodes(table_set, topology, try_plan)
    if nodes is not None:
        yield f"{nodes * topology.workers_per_node} workers on {nodes} nodes"


def _fewest_nodes(table_set: TableSet, topology: Topology, try_plan: TryPlan) -> int | None:
    """The smallest number of nodes that fits, at most 16 times as many; found by bisection."""

    def fits(nodes: int) -> bool:
        larger = topology.model_copy(update={"num_nodes": nodes})
        return try_plan(table_set, larger) is not None

    low, high = topology.num_nodes, topology.num_nodes
    while not fits(high):
        low, high = high, 2 * high
        if high > 16 * topology.num_nodes or high * topology.workers_per_node > MAX_WORKERS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
