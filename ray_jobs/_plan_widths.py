"""The subcommand `widths` of `ray_jobs.plan`: suggested widths, and what they save."""

import argparse
import json
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from infnet_dist.errors import PlanError
from infnet_dist.io.console import wide_console
from infnet_dist.io.filesystem import size_text
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.review.facts import facts
from infnet_dist.planning.tables import TableSet
from infnet_dist.planning.topology import Topology
from infnet_dist.planning.widths import suggest_widths, table_bytes, with_widths
from ray_jobs._plan_inputs import read_tables, read_topology

_GIB = 2**30
_FIGURES = ("stored_bytes", "output_bytes", "bottleneck_ms", "samples_per_s")


def print_widths(arguments: argparse.Namespace) -> None:
    """Suggest widths; print them, bytes and times now and then, and lines for the run file.

    Raises:
        PlanError: the budget is too small for any width.
    """
    table_set, topology = read_tables(arguments), read_topology(arguments)
    now = {table.name: table.embedding_dim for table in table_set.tables}
    max_width = arguments.max_width
    if max_width is not None and max_width < 4:
        raise PlanError(f"--max-width: got {max_width}, expected at least 4")
    held = sum(table_bytes(table_set, now).values())
    budget = arguments.budget_gib * _GIB if arguments.budget_gib else held
    widths = suggest_widths(
        table_set, budget_bytes=budget, max_width=max_width, alpha=arguments.alpha
    )
    suggested = with_widths(table_set, widths)
    found = {
        "topology": topology.name,
        "world_size": topology.world_size,
        "budget_bytes": budget,
        "tables": _rows(table_set, widths),
        "now": {"table_bytes": held} | _estimate(table_set, topology),
        "suggested": {"table_bytes": sum(table_bytes(table_set, widths).values())}
        | _estimate(suggested, topology),
        "overrides": {
            name: {"embedding_dim": width} for name, width in widths.items() if width != now[name]
        },
    }
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)


def _rows(table_set: TableSet, widths: dict[str, int]) -> list[dict[str, Any]]:
    """One row per table, the largest first."""
    rows = [
        {
            "table": table.name,
            "kind": table.kind,
            "num_embeddings": table.num_embeddings,
            "lookups": sum(table.lengths),
            "now": table.embedding_dim,
            "suggested": widths[table.name],
        }
        for table in table_set.tables
    ]
    return sorted(rows, key=lambda row: (-row["num_embeddings"], row["table"]))


def _estimate(table_set: TableSet, topology: Topology) -> dict[str, Any]:
    """Figures of the best plan, or why there is none."""
    try:
        known = facts(make_plan(table_set, topology, advise=False))
    except PlanError as error:
        return {"error": str(error)}
    return {"error": None} | {name: known[name] for name in _FIGURES}


def _print(found: dict[str, Any]) -> None:
    table = Table("table", "kind", title="Widths", title_justify="left")
    for column in ("rows", "lookups / sample", "now", "suggested"):
        table.add_column(column, justify="right")
    for row in found["tables"]:
        counts = (f"{row['num_embeddings']:,}", f"{row['lookups']:.4g}")
        table.add_row(
            escape(row["table"]), row["kind"], *counts, str(row["now"]), str(row["suggested"])
        )
    console = wide_console()
    console.print(table)
    now, then = found["now"], found["suggested"]
    lines = [
        f"rows and optimizer state, each table once: {size_text(now['table_bytes'])} -> "
        f"{size_text(then['table_bytes'])} (budget {size_text(found['budget_bytes'])})"
    ]
    where = f"on {found['world_size']} workers of {found['topology']}"
    lines += [f"{which}: {known['error']}" for which, known in _plans(found) if known["error"]]
    if not (now["error"] or then["error"]):
        lines += [
            f"exchange of outputs {where}: {size_text(now['output_bytes'])} -> "
            f"{size_text(then['output_bytes'])} a step, all ranks, forward and backward",
            f"estimated step {where}: {now['bottleneck_ms']:.4g} -> {then['bottleneck_ms']:.4g} ms",
        ]
    console.print("\n".join(lines), markup=False)
    if found["overrides"]:
        print("\nfor the run file:\n")
        overrides = {"tables": {"overrides": found["overrides"]}}
        print(yaml.safe_dump(overrides, default_flow_style=None, sort_keys=False), end="")


def _plans(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [("now", found["now"]), ("suggested", found["suggested"])]
