"""Tables + topology -> plan; an existing plan + new tables -> an extended plan."""

import numpy as np

from infnet_dist.errors import PlanError
from infnet_dist.planning.checks import check_sharding_types, first_few
from infnet_dist.planning.costs.estimator import Costs, Estimator, empty_cluster
from infnet_dist.planning.costs.sizes import row_bytes
from infnet_dist.planning.diff import diff_plans
from infnet_dist.planning.estimates import placed_loads, placed_plan
from infnet_dist.planning.plan import Plan, described
from infnet_dist.planning.search.exchanges import search_exchanges
from infnet_dist.planning.search.migration import CurrentPlacement, migrate
from infnet_dist.planning.shortage import check_room, explain_shortage, save_hint
from infnet_dist.planning.tables import TableSet
from infnet_dist.planning.topology import Topology

_FULL_SHARE = 0.7  # of all HBM; above it, kernels outside of HBM are tried as well


def make_plan(table_set: TableSet, topology: Topology, *, advise: bool = True) -> Plan:
    """The best plan found: least estimated time of the busiest rank, within every rank's memory.

    Kernels that keep rows outside of HBM are tried if HBM is short.

    Args:
        table_set: the tables.
        topology: the workers.
        advise: if nothing fits, search for changes that make it fit and name them; takes longer.

    Raises:
        PlanError: constraints leave a table no option, or no plan fits; names what is short and
            changes that help, each verified by planning.
    """
    check_room(topology)
    check_sharding_types(table_set)
    plan = _try_plan(table_set, topology)
    if plan is None:
        raise PlanError(explain_shortage(table_set, topology, _try_plan if advise else None))
    return plan


def extend_plan(plan: Plan, table_set: TableSet, *, max_move_bytes: float = 0.0) -> Plan:
    """Plan the tables that `plan` lacks, and keep existing tables in place.

    Args:
        plan: the plan in use.
        table_set: all tables of the new plan; other tables of `plan` are dropped.
        max_move_bytes: bytes of existing tables (rows and optimizer state) that may move to relieve
            the busiest rank.

    Raises:
        PlanError: an existing table has another shape, or the new tables don't fit beside the
            existing ones.
    """
    topology = plan.made_for.topology
    tables = {table.name: table for table in table_set.tables}
    kept = {t.name: t for t in plan.made_for.tables.tables if t.name in tables}
    _check_kept(plan, table_set, list(kept))
    check_sharding_types(table_set)
    also = {name: plan.tables[name].sharding_option for name in kept}
    found: list[Plan] = []
    estimator = Estimator(table_set, topology)
    for offload in (False, True) if topology.device == "cuda" else (False,):
        costs = estimator.costs(offload=offload, also=also)
        current = _current_placement(plan, costs, table_set)
        if not max_move_bytes:
            _check_still_fit(costs, current, table_set, topology)
        placement, bound = migrate(
            costs.arrays, empty_cluster(topology), current, float(max_move_bytes)
        )
        if placement is not None:
            bound += costs.exchanges.least_ms
            found.append(placed_plan(table_set, topology, costs, placement, bound))
            moved_bytes = diff_plans(plan, found[0]).moved_bytes
            assert moved_bytes <= max_move_bytes * (1 + 1e-9), (
                "the search and diff_plans count moved bytes differently"
            )
            break
    fresh = _try_plan(table_set, topology) if max_move_bytes else None
    if fresh is not None and diff_plans(plan, fresh).moved_bytes <= max_move_bytes:
        found.append(fresh)
    if not found:
        names = ", ".join(repr(name) for name in tables if name not in kept)
        more = "more of them to move" if max_move_bytes else "some to move (--max-move)"
        raise PlanError(
            f"no placement found for the new tables ({names}) beside {len(kept)} existing tables; "
            f"allow {more}, or make a new plan"
        )
    return min(found, key=lambda one: (one.bottleneck_ms, one.fullest))


def _check_kept(plan: Plan, table_set: TableSet, kept: list[str]) -> None:
    old = plan.made_for.tables
    pairs = [
        (old.complete(old.table(name)), table_set.complete(table_set.table(name))) for name in kept
    ]
    changed = [
        f"table {two.name!r} is {described(one)} in the plan, {described(two)} now"
        for one, two in pairs
        if described(one) != described(two)
    ]
    if changed:
        raise PlanError(
            f"{first_few(changed)}; extend can't change existing tables: make a new plan, or "
            "rename the changed table"
        )


def _try_plan(table_set: TableSet, topology: Topology) -> Plan | None:
    """The better of two plans: with HBM kernels only and, if HBM is short, with all kernels."""
    cluster, best = empty_cluster(topology), None
    estimator = Estimator(table_set, topology)
    for offload in (False, True) if topology.device == "cuda" else (False,):
        costs = estimator.costs(offload=offload)
        placement, bound = search_exchanges(costs.arrays, costs.exchanges, cluster)
        if placement is None:
            continue
        plan = placed_plan(table_set, topology, costs, placement, bound)
        if best is not None and best.bottleneck_ms <= plan.bottleneck_ms:
            plan = best.model_copy(update={"lower_bound_ms": plan.lower_bound_ms})
        best = plan
        full = placement.memory[:, 0].sum() > _FULL_SHARE * cluster.capacity[:, 0].sum()
        if not full and costs.arrays.fits_alone(cluster).all():
            break  # kernels in HBM are the fastest, and HBM has room for each option
    return best


def _current_placement(plan: Plan, costs: Costs, table_set: TableSet) -> CurrentPlacement:
    """The options and places of the tables of `plan`."""
    places = {}
    for number, table in enumerate(table_set.tables):
        entry = plan.tables.get(table.name)
        if entry is not None:
            mine = np.flatnonzero(costs.arrays.table == number)
            option = next(
                int(i) for i in mine if costs.sharding_options[i] == entry.sharding_option
            )
            places[number] = (option, entry.places)
    sizes = [t.num_embeddings * row_bytes(t, table_set.optimizer_of(t)) for t in table_set.tables]
    return CurrentPlacement(places, np.array(sizes, np.float64))


def _check_still_fit(
    costs: Costs, current: CurrentPlacement, table_set: TableSet, topology: Topology
) -> None:
    memory = placed_loads(costs, list(current.places.values()), topology).memory
    if (memory > topology.capacity).any():
        raise PlanError(
            "the existing tables don't fit with this batch size and these lengths; make a new plan"
            f"{save_hint(table_set)}"
        )
