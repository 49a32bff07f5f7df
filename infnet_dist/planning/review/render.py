"""Renders a plan for a terminal.

Rows and optimizer state, buffers of inputs and outputs, and the copies for a background save are
shown separately, as are rows outside of GPU memory.
"""

import io
from collections import Counter

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from infnet_dist.io.console import Line
from infnet_dist.io.filesystem import size_text
from infnet_dist.planning.plan import BY_NODE, Plan, shape
from infnet_dist.planning.review.facts import byte_facts, facts

_GIB = 2**30
NUMBERS = ("ms", "comms", "rows + optimizer", "buffers / rank")


def render(plan: Plan, *, most_tables: int = 40) -> RenderableType:
    """Tables (largest first) and figures for a terminal."""
    known = facts(plan)
    tables = Table(
        "table",
        Column("shape", no_wrap=True),
        Column("kind", overflow="fold"),
        Column("sharding", no_wrap=True),
        Column("kernel", overflow="fold"),
        "where",
        title="Tables",
    )
    tables.title_justify = "left"
    for column in NUMBERS:
        tables.add_column(column, justify="right")
    names = largest_first(plan)
    for name in names[:most_tables]:
        tables.add_row(escape(name), *row_of(plan, name))
    lines = [f"... and {len(names) - most_tables} more"] if len(names) > most_tables else []
    lines += [
        f"{known['tables']} tables on {known['world_size']} workers of {known['topology']} "
        f"({known['num_nodes']} nodes)",
        f"busiest rank {known['bottleneck_ms']:.4g} ms; lower bound {known['lower_bound_ms']:.4g} "
        f"ms (+{known['over_lower_bound']:.1%}); balance (max / mean) {known['time_balance']:.3f}",
    ]
    if plan.exchange_ms:
        lines.append(
            f"fixed cost of exchanges: {plan.exchange_ms:.4g} ms of them, one for each collection "
            "and sharding type"
        )
    lines += [f"{name}: {text}" for name, text in byte_facts(known)]
    lines.append(f"bottleneck: {known['binds']}")
    lines += [f"{what}: {line}" for what, line in notes_of(plan)]
    return Group(tables, Text("\n".join(lines)))


def summary_lines(plan: Plan) -> tuple[Line, Line]:
    """Two lines: tables and their sharding types; the time and memory of the busiest ranks."""
    known = facts(plan)
    types = Counter(entry.sharding_type for entry in plan.tables.values())
    tier, used = max(
        known["memory"].items(), key=lambda item: item[1]["max_bytes"] / item[1]["capacity_bytes"]
    )
    return (
        Line(
            f"plan: {known['tables']} tables on {known['world_size']} workers of "
            f"{known['topology']}",
            *(f"{count} {name}" for name, count in types.most_common()),
        ),
        Line(
            f"plan: busiest rank {known['bottleneck_ms']:.3g} ms",
            f"lower bound {known['lower_bound_ms']:.3g} ms",
            f"{tier} {size_text(used['max_bytes'])} of {size_text(used['capacity_bytes'])}",
        ),
    )


def describe(plan: Plan, *, most_tables: int = 40) -> str:
    """`render` as plain text, for logs."""
    console = Console(width=140, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(render(plan, most_tables=most_tables))
    return capture.get().rstrip()


def largest_first(plan: Plan) -> list[str]:
    """Names of tables by the bytes of their rows and optimizer state, largest first."""
    return sorted(plan.tables, key=lambda name: (-plan.bytes_of(name).stored, name))


def notes_of(plan: Plan) -> list[tuple[str, str]]:
    """Remarks on a plan: what they are about, and the text."""
    tables = plan.made_for.tables
    names: dict[str, list[str]] = {}
    for one in tables.tables:
        if one.optimizer not in (None, tables.optimizer):
            names.setdefault(str(one.optimizer), []).append(one.name)
    notes = [(f"optimizer {optimizer}", ", ".join(of)) for optimizer, of in names.items()]
    notes += [("not considered", line) for line in plan.excluded]
    if plan.own_states:
        split = ", ".join(plan.own_states)
        notes.append(
            (
                "an optimizer state for each column shard",
                f"{split}: results differ from an unsharded table's, and the state can't be "
                "resharded",
            )
        )
    return notes


def row_of(plan: Plan, name: str) -> tuple[str, ...]:
    """The row of a table in the list of tables, without its name."""
    entry, found, table = plan.tables[name], plan.bytes_of(name), plan.table(name)
    cache = f" {entry.cache_share:g}" if entry.cache_share else ""
    kind = "nodes" if entry.sharding_type in BY_NODE else "ranks"
    where = f"{kind} {_short(entry.places)}" if entry.places else "all ranks"
    return (
        shape(table),
        table.kind,
        entry.sharding_type,
        entry.compute_kernel + cache,
        where,
        f"{entry.time_ms:.3g}",
        f"{entry.comms_ms / max(entry.time_ms, 1e-12):.0%}",
        f"{size_text(found.stored)}{f' {found.tier}' if found.outside_hbm else ''}",
        size_text(found.buffers_per_rank),
    )


def _short(places: tuple[int, ...]) -> str:
    text = ",".join(map(str, places[:8]))
    return text + (f",... ({len(places)})" if len(places) > 8 else "")
