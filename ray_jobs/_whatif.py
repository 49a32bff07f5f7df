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
from infnet_dist.planning.tables import TableSet
from infnet_dist.planning.throughput import DensePart, assumptions, estimate_step
from infnet_dist.planning.topology import Topology

_COLUMNS = ("ms", "samples/s", "over bound", "fullest rank", "rows + optimizer", "outside HBM")
_STEP_COLUMNS = ("dense ms", "all-reduce ms", "step ms", "samples/s", "per worker")
_SPEED = "samples/s: estimate for lookups and their communication, without the tower"
_STEP_SPEED = (
    "step: lookups, dense part and the all-reduce of its gradients one after the other; "
    "per worker: samples/s over those of the topology's first row"
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
    steps = any("step" in row for row in rows)
    for column in (*_COLUMNS, *(_STEP_COLUMNS if steps else ())):
        table.add_column(column, justify="right")
    first: dict[str, float] = {}  # samples/s of a worker, by topology
    for row in rows:
        size = f"{row['world_size']}{' *' if row['recommended'] else ''}"
        cells = _cells(row) if row["fits"] else ()
        if "step" in row:
            each = row["step"]["samples_per_s"] / row["world_size"]
            cells += _step_cells(row["step"], each / first.setdefault(row["topology"], each))
        table.add_row(row["topology"], size, _fits(row), *cells)
    console.print(table)
    for row in rows:
        if not row["fits"]:
            line = f"{row['topology']} x {row['world_size']}: {row['error']}"
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


def _step_cells(step: dict[str, float], per_worker: float) -> tuple[str, ...]:
    times = (f"{step[name]:.4g}" for name in ("dense_ms", "all_reduce_ms", "ms"))
    return (*times, f"{step['samples_per_s']:,.0f}", f"{per_worker:.0%}")


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
    known = dict.fromkeys(line for row in rows for line in row.get("assumptions", ()))
    return [*found, _SPEED, *([_STEP_SPEED] if any("step" in row for row in rows) else []), *known]
