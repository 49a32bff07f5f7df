"""Plans for several topologies and world sizes: whether tables fit, where, and how fast."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from infnet_dist.errors import PlanError
from infnet_dist.io.filesystem import size_text
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.review.facts import facts
from infnet_dist.planning.review.throughput import DensePart, assumptions, estimate_step
from infnet_dist.planning.tables import TableSet
from infnet_dist.planning.topology import Topology

_COLUMNS = ("ms", "samples/s", "over bound", "fullest rank", "rows + optimizer", "outside HBM")
_STEP_COLUMNS = ("lookups ms", "dense ms", "all-reduce ms", "step ms", "samples/s", "per worker")
_SPEED = "samples/s: estimate for lookups and their communication, without the tower"
_STEP_SPEED = (
    "lookups, dense part and the all-reduce of its gradients, one after the other; per worker: "
    "samples/s over those of the first row"
)


def try_topologies(
    table_set: TableSet,
    topologies: Sequence[Topology],
    sizes: Sequence[int],
    dense: DensePart | None = None,
) -> list[dict[str, Any]]:
    """Plan for each topology and world size.

    Args:
        table_set: the tables.
        topologies: kinds of workers.
        sizes: numbers of workers.
        dense: the rest of the model, to predict whole steps.

    Returns:
        `review.facts` of each plan, and: "fits", whether there is a plan; "error", why not;
        "assumptions", lines; with `dense` "step", its milliseconds and samples/s; "in_hbm",
        whether all rows are in HBM (on CPUs: whether it fits); "recommended", whether the world
        size is the smallest of those in HBM or, if there are none, of those that fit.
    """
    rows = []
    for topology in topologies:
        for size in sizes:
            row: dict[str, Any] = {"topology": topology.name, "world_size": size}
            try:
                plan = make_plan(table_set, topology.with_world_size(size), advise=False)
                known = facts(plan)
                row |= {"fits": True, "error": None, **known}
                row["assumptions"] = assumptions(plan.made_for.topology)
                if dense is not None:
                    row["step"] = _step(plan, dense)
                row["in_hbm"] = known["outside_hbm_bytes"] == 0
            except PlanError as error:
                row |= {"fits": False, "in_hbm": False, "error": str(error)}
            rows.append(row)
    candidates = [row for row in rows if row["in_hbm"]] or [row for row in rows if row["fits"]]
    smallest = min((row["world_size"] for row in candidates), default=None)
    for row in rows:
        row["recommended"] = row in candidates and row["world_size"] == smallest
    return rows


def _step(plan: Plan, dense: DensePart) -> dict[str, float]:
    step = estimate_step(plan, dense)
    rows = plan.made_for.tables.batch_size * plan.made_for.topology.world_size
    return step._asdict() | {"ms": step.ms, "samples_per_s": 1000 * rows / step.ms}


def print_rows(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a table, then the reason for each row that doesn't fit."""
    table = Table("topology", "workers", "fits", title="What if", title_justify="left")
    table.caption, table.caption_justify = "\n".join(_captions(rows)), "left"
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for row in rows:
        size = f"{row['world_size']}{' *' if row['recommended'] else ''}"
        table.add_row(row["topology"], size, _fits(row), *(_cells(row) if row["fits"] else ()))
    console.print(table)
    for row in rows:
        if not row["fits"]:
            line = f"{row['topology']} x {row['world_size']}: {row['error']}"
            console.print(line, markup=False)
    if any("step" in row for row in rows):
        console.print(_step_table([row for row in rows if "step" in row]))
    for line in dict.fromkeys(line for row in rows for line in row.get("assumptions", ())):
        console.print(line, markup=False)


def _fits(row: dict[str, Any]) -> str:
    if not row["fits"]:
        return "no"
    return "yes" if row["in_hbm"] else "outside HBM"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    fullest = [used["max_bytes"] / used["capacity_bytes"] for used in row["memory"].values()]
    outside = f"{size_text(row['outside_hbm_bytes'])} ({row['outside_hbm_share']:.0%})"
    return (
        f"{row['bottleneck_ms']:.4g}",
        f"{row['samples_per_s']:,.0f}",
        f"{row['over_lower_bound']:.1%}",
        f"{max(fullest):.0%}",
        size_text(row["stored_bytes"]),
        "-" if row["in_hbm"] else outside,
    )


def _step_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Parts and throughput of whole steps."""
    table = Table("topology", "workers", title="Whole steps", title_justify="left")
    table.caption, table.caption_justify = _STEP_SPEED, "left"
    for column in _STEP_COLUMNS:
        table.add_column(column, justify="right")
    first: dict[str, float] = {}  # samples/s of a worker, by topology
    for row in rows:
        step, workers = row["step"], row["world_size"]
        each = step["samples_per_s"] / workers
        times = (step[name] for name in ("lookups_ms", "dense_ms", "all_reduce_ms", "ms"))
        table.add_row(
            *(row["topology"], str(workers), *(f"{time:.4g}" for time in times)),
            *(
                f"{step['samples_per_s']:,.0f}",
                f"{each / first.setdefault(row['topology'], each):.0%}",
            ),
        )
    return table


def _captions(rows: Sequence[dict[str, Any]]) -> list[str]:
    if any(row["in_hbm"] for row in rows):
        found = ["* the smallest number of workers that fits"]
        if any(row["fits"] and not row["in_hbm"] for row in rows):
            found[0] += " with all rows in HBM"
    elif any(row["fits"] for row in rows):
        found = ["* the smallest number of workers that fits; none keeps all rows in HBM"]
    else:
        return []
    if any(row["fits"] and not row["in_hbm"] for row in rows):
        found.append("outside HBM: rows in host memory (UVM) or on SSD, far slower than HBM")
    return [*found, _SPEED]
