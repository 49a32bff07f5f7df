"""A plan for GPUs -> a plan for a few CPU ranks, to smoke-test a production plan on a laptop."""

import math
from collections.abc import Iterator

from infnet_dist.config.tables import GPU_OPTIMIZERS, SparseOptimizerName
from infnet_dist.errors import PlanError
from infnet_dist.planning.checks import first_few
from infnet_dist.planning.costs.options import ShardingOption
from infnet_dist.planning.estimates import estimate_plan
from infnet_dist.planning.plan import BY_ALL, BY_NODE, Plan, TablePlan
from infnet_dist.planning.tables import PlanTable, TableSet
from infnet_dist.planning.topology import Topology


def to_cpu(
    plan: Plan,
    topology: Topology,
    *,
    row_scale: float = 1.0,
    table_set: TableSet | None = None,
) -> tuple[Plan, list[str]]:
    """Keep the sharding where CPU ranks support it; replace the rest and list the substitutions.

    Args:
        plan: a plan for any device.
        topology: the CPU ranks.
        row_scale: factor on the rows of each table; the result is rounded up.
        table_set: tables of the same names in a small training set, to plan for instead.

    Returns:
        The plan, and one line per substitution.

    Raises:
        PlanError: `topology` isn't a CPU topology, `row_scale` isn't in (0, 1], `table_set` has
            other tables or widths, or memory is too small.
    """
    if topology.device != "cpu":
        raise PlanError(f"topology {topology.name} is for {topology.device}; choose a CPU topology")
    if not 0 < row_scale <= 1:
        raise PlanError(f"row scale: got {row_scale:g}, expected 0 < scale <= 1")
    old_set = plan.made_for.tables
    if table_set is not None:
        _check_same_tables(old_set, table_set)
    lines, tables, chosen = [], [], {}
    optimizer = _optimizer_on_cpu((table_set or old_set).optimizer)
    if optimizer != old_set.optimizer:
        lines.append(f"optimizer: {old_set.optimizer} -> {optimizer}")
    for table in old_set.tables:
        entry = plan.tables[table.name]
        small = _small(table, row_scale, table_set)
        option, places = _on_cpu(small, entry, topology.world_size)
        lines += _substitutions(table, small, entry.sharding_option, option)
        tables.append(small)
        chosen[table.name] = (option, places)
    old, new = plan.made_for.topology.world_size, topology.world_size
    if old != new:
        lines.append(
            f"ranks: {old} -> {new}; rank r becomes rank r mod {new}, or the next free one for "
            "column shards of one table"
        )
    batch_size = (table_set or old_set).batch_size
    if batch_size != old_set.batch_size:
        lines.append(f"batch size: {old_set.batch_size} -> {batch_size}")
    new_set = TableSet(
        batch_size=batch_size,
        optimizer=optimizer,
        background_save=(table_set or old_set).background_save,
        tables=tuple(tables),
    )
    return estimate_plan(new_set, topology, chosen), lines


def _optimizer_on_cpu(optimizer: SparseOptimizerName) -> SparseOptimizerName:
    """The same, or row-wise Adagrad in place of optimizers that fbgemm has for GPUs only."""
    return "rowwise_adagrad" if optimizer in GPU_OPTIMIZERS else optimizer


def _small(table: PlanTable, row_scale: float, table_set: TableSet | None) -> PlanTable:
    """The table to plan for, without constraints that are meant for GPUs."""
    rows = math.ceil(table.num_embeddings * row_scale)
    small = table_set.table(table.name) if table_set else table
    return small.model_copy(
        update={
            "num_embeddings": small.num_embeddings if table_set else rows,
            "optimizer": small.optimizer and _optimizer_on_cpu(small.optimizer),
            "sharding_types": None,
            "compute_kernels": None,
            "cache_share": None,
        }
    )


def _substitutions(
    table: PlanTable, small: PlanTable, old: ShardingOption, new: ShardingOption
) -> Iterator[str]:
    for field in ("data_type", "kind", "optimizer", "lengths"):
        one, two = getattr(table, field), getattr(small, field)
        if one != two:
            yield f"{table.name}: {field} {one} -> {two}"
    if small.num_embeddings != table.num_embeddings:
        yield f"{table.name}: {table.num_embeddings} -> {small.num_embeddings} rows"
    if new.compute_kernel != old.compute_kernel:
        yield f"{table.name}: kernel {old.compute_kernel} -> {new.compute_kernel}"
    if (new.sharding_type, new.columns) != (old.sharding_type, old.columns):
        yield (
            f"{table.name}: {old.sharding_type} of {old.columns} columns -> "
            f"{new.sharding_type} of {new.columns} columns"
        )


def _check_same_tables(planned: TableSet, wanted: TableSet) -> None:
    widths = {table.name: table.embedding_dim for table in planned.tables}
    here = {table.name: table.embedding_dim for table in wanted.tables}
    found = [f"table {name!r} is only in one of them" for name in sorted(set(widths) ^ set(here))]
    found += [
        f"table {name!r} has {widths[name]} columns in the plan, {here[name]} here"
        for name in sorted(set(widths) & set(here))
        if widths[name] != here[name]
    ]
    if found:
        raise PlanError(f"the plan and the training set differ: {first_few(found)}")


def _on_cpu(
    table: PlanTable, entry: TablePlan, num_ranks: int
) -> tuple[ShardingOption, tuple[int, ...]]:
    width = table.embedding_dim
    if entry.sharding_type == "data_parallel" and table.pooling != "none":
        return ShardingOption("data_parallel", "dense", width), ()
    if entry.sharding_type in (*BY_ALL, *BY_NODE):
        return ShardingOption("row_wise", "fused", width), ()
    # As many column shards as the ranks allow.
    parts = max(
        n
        for n in range(1, min(len(entry.places), num_ranks) + 1)
        if width % n == 0 and (width // n) % 4 == 0
    )
    places: list[int] = []
    for place in entry.places[:parts]:
        rank = place % num_ranks
        while rank in places:
            rank = (rank + 1) % num_ranks
        places.append(rank)
    sharding_type = "column_wise" if parts > 1 else "table_wise"
    return ShardingOption(sharding_type, "fused", width // parts), tuple(places)
