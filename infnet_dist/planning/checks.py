"""Checks of a plan: it is consistent, matches tables and workers, and fits their memory."""

from collections.abc import Sequence

from infnet_dist.errors import PlanError
from infnet_dist.io.filesystem import size_text
from infnet_dist.planning.costs.options import unsupported
from infnet_dist.planning.plan import BY_ALL, BY_NODE, Plan, RankEstimates, shape
from infnet_dist.planning.tables import PlanTable, TableSet
from infnet_dist.planning.topology import TIERS, Topology

_MOST_LINES = 5  # differences listed in an error


def check_sharding_types(table_set: TableSet) -> None:
    """Check that each table can have every sharding type that it asks for, on some workers.

    Raises:
        PlanError: names the tables, the types and the reasons.
    """
    found = [
        f"table {table.name!r} can't be {sharding_type}: {reason}"
        for table in map(table_set.complete, table_set.tables)
        for sharding_type in table.sharding_types or ()
        if (reason := unsupported(table, sharding_type)) is not None
    ]
    if found:
        raise PlanError(f"{first_few(found)}; change sharding_types")


def wrong_places(plan: Plan) -> list[str]:
    """One line per table whose shards don't tile it on existing ranks, or that lacks an entry."""
    topology, lines = plan.made_for.topology, []
    planned = {table.name for table in plan.made_for.tables.tables}
    for field in RankEstimates.model_fields:
        count = len(getattr(plan.ranks, field))
        if count != topology.world_size:
            lines.append(f"ranks.{field} has {count} entries, expected {topology.world_size}")
    lines += [f"table {name!r} has no plan" for name in sorted(planned - set(plan.tables))]
    lines += [
        f"table {name!r} is missing in made_for.tables"
        for name in sorted(set(plan.tables) - planned)
    ]
    for name in sorted(planned & set(plan.tables)):
        table, entry = plan.made_for.tables.table(name), plan.tables[name]
        places = 0 if entry.sharding_type in BY_ALL else len(entry.places)
        limit = topology.num_nodes if entry.sharding_type in BY_NODE else topology.world_size
        whole = entry.sharding_type in ("table_wise", "table_row_wise", *BY_ALL)
        units = 1 if whole else table.embedding_dim // entry.columns
        if (
            entry.columns * units != table.embedding_dim
            or (entry.sharding_type in BY_ALL and entry.places)
            or (entry.sharding_type not in BY_ALL and places != units)
            or len(set(entry.places)) != len(entry.places)
            or not all(0 <= place < limit for place in entry.places)
        ):
            lines.append(
                f"the {entry.sharding_type} shards of table {name!r} don't tile it on "
                f"{'nodes' if entry.sharding_type in BY_NODE else 'ranks'} 0 to {limit - 1}"
            )
    return lines


def differences(
    plan: Plan,
    table_set: TableSet,
    *,
    world_size: int,
    workers_per_node: int | None = None,
    device: str | None = None,
) -> list[str]:
    """One line per reason why the plan can't be loaded for these tables and workers.

    `workers_per_node=None` allows any division into nodes, `device=None` any device.
    """
    lines, topology = [], plan.made_for.topology
    if topology.world_size != world_size:
        lines.append(f"world_size is {topology.world_size} in the plan, {world_size} here")
    if workers_per_node not in (None, topology.workers_per_node):
        lines.append(
            f"workers_per_node is {topology.workers_per_node} in the plan, {workers_per_node} here"
        )
    planned, tables = (
        {table.name: one.complete(table) for table in one.tables}
        for one in (plan.made_for.tables, table_set)
    )
    for name in sorted({*planned, *tables}):
        if name not in tables:
            lines.append(f"table {name!r} of the plan doesn't exist here")
        elif name not in planned:
            lines.append(f"table {name!r} isn't in the plan")
        else:
            lines += _table_differences(planned[name], tables[name], plan, device)
    return lines


def _table_differences(
    planned: PlanTable, table: PlanTable, plan: Plan, device: str | None
) -> list[str]:
    """At most one line."""
    name, entry = table.name, plan.tables[table.name]
    if shape(planned) != shape(table):
        return [f"table {name!r} is {shape(planned)} in the plan, {shape(table)} here"]
    if planned.home != table.home:
        return [f"table {name!r} is a {planned.kind} in the plan, a {table.kind} here"]
    if planned.optimizer != table.optimizer:
        return [
            f"table {name!r} has optimizer {planned.optimizer} in the plan, {table.optimizer} here"
        ]
    if (why := unsupported(table, entry.sharding_type)) is not None:
        return [f"table {name!r} is {entry.sharding_type} in the plan: {why}"]
    if device == "cpu" and entry.compute_kernel not in ("fused", "dense"):
        return [
            f"table {name!r} has kernel {entry.compute_kernel} in the plan, which needs GPUs; "
            "convert the plan with infnet plan to-cpu"
        ]
    return []


def check_plan(
    plan: Plan,
    table_set: TableSet,
    *,
    world_size: int,
    workers_per_node: int | None = None,
    device: str | None = None,
) -> None:
    """Check that `plan` can be loaded for these tables and workers.

    `workers_per_node=None` allows any division into nodes, `device=None` any device.

    Raises:
        PlanError: names the first differences, their number, and how to make a plan that fits.
    """
    found = differences(
        plan, table_set, world_size=world_size, workers_per_node=workers_per_node, device=device
    )
    if found:
        raise PlanError(
            "the plan doesn't fit: "
            + first_few(found, "listed by infnet plan check PLAN --config CONFIG")
            + "; set sharding.plan=auto, or make a plan with: infnet plan make "
            "--config CONFIG --output PLAN"
        )


def overfull(plan: Plan, topology: Topology, *, background_save: bool) -> list[str]:
    """One line per tier on which a rank needs more bytes than it has.

    Args:
        plan: a plan for as many workers as `topology` has.
        topology: the workers.
        background_save: whether checkpoints are written in the background.
    """
    lines, memory, capacity = (
        [],
        plan.memory_for(background_save=background_save),
        topology.capacity,
    )
    for i, tier in enumerate(TIERS):
        rank = int(memory[:, i].argmax())
        if memory[rank, i] <= capacity[i]:
            continue
        copy = plan.save_copy_bytes[rank] if tier == "ddr" and background_save else 0
        copied = (
            f" ({size_text(copy)} of it for the copies that a background save makes; "
            "checkpoint.background=false needs none)"
            if copy
            else ""
        )
        lines.append(
            f"{tier} of rank {rank} needs {size_text(memory[rank, i])}{copied} but has "
            f"{size_text(capacity[i])} after the reserve"
        )
    return lines


def check_budget(plan: Plan, topology: Topology, *, background_save: bool) -> None:
    """Check that the plan fits `topology`, with the reserves of the plan's own topology.

    Raises:
        PlanError: names the tier, the bytes needed and the capacity.
    """
    own = plan.made_for.topology
    reserves = {name: getattr(own, name) for name in ("reserve", "ddr_reserve", "worker_gib")}
    found = overfull(plan, topology.model_copy(update=reserves), background_save=background_save)
    if found:
        raise PlanError(
            f"the plan doesn't fit these workers: {'; '.join(found)}; use more workers, or plan "
            "smaller tables"
        )


def first_few(lines: Sequence[str], where: str = "") -> str:
    """The first lines joined, with the total and a hint where all of them are listed."""
    more = len(lines) - _MOST_LINES
    if more <= 0:
        return "; ".join(lines)
    listed = f", {where}" if where else ""
    return f"{'; '.join(lines[:_MOST_LINES])}; and {more} more ({len(lines)} in all{listed})"
