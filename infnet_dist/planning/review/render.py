"""Renders a plan: terminal table, picture, and an HTML page with both.

Rows and optimizer state, buffers of inputs and outputs, and the copies for a background save are
shown separately, as are rows outside of GPU memory.
"""

import io
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from infnet_dist.errors import PlanError
from infnet_dist.io.console import Line
from infnet_dist.io.filesystem import size_text
from infnet_dist.io.html import heading, page, picture, png, table
from infnet_dist.planning.plan import BY_NODE, Plan, shape
from infnet_dist.planning.review.facts import byte_facts, facts
from infnet_dist.planning.topology import TIERS

_GIB = 2**30
_NUMBERS = ("ms", "comms", "rows + optimizer", "buffers / rank")
_MAX_BARS = 256  # more ranks are drawn in groups


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
    for column in _NUMBERS:
        tables.add_column(column, justify="right")
    names = _largest_first(plan)
    for name in names[:most_tables]:
        tables.add_row(escape(name), *_row(plan, name))
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
    lines += [f"{what}: {line}" for what, line in _notes(plan)]
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


def _largest_first(plan: Plan) -> list[str]:
    """Names of tables by the bytes of their rows and optimizer state, largest first."""
    return sorted(plan.tables, key=lambda name: (-plan.bytes_of(name).stored, name))


def _notes(plan: Plan) -> list[tuple[str, str]]:
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


def _row(plan: Plan, name: str) -> tuple[str, ...]:
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


def draw(plan: Plan) -> Figure:
    """Bars per rank: time by lookup and comms, and bytes by tier with the capacity."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    time_axes, memory_axes = figure.subplots(2, 1, sharex=True)
    groups = np.array_split(np.arange(plan.made_for.topology.world_size), _MAX_BARS)
    groups = [group for group in groups if len(group)]
    places = [group[0] for group in groups]
    width = 0.9 * len(groups[0])

    def of(values: np.ndarray) -> np.ndarray:
        return np.array([values[group].max() for group in groups])

    lookup, comms = np.array(plan.ranks.lookup_ms), np.array(plan.ranks.comms_ms)
    time_axes.bar(places, of(lookup), width, align="edge", label="lookup")
    time_axes.bar(places, of(comms), width, bottom=of(lookup), align="edge", label="comms")
    time_axes.axhline(plan.lower_bound_ms, color="black", linestyle="--", label="lower bound")
    time_axes.set_ylabel("ms, estimated")
    bottom = np.zeros(len(groups))
    memory, capacity = plan.memory / _GIB, plan.made_for.topology.capacity / _GIB
    for i, tier in enumerate(TIERS):
        if not memory[:, i].any():
            continue
        bars = memory_axes.bar(places, of(memory[:, i]), width, bottom, align="edge", label=tier)
        color = bars.patches[0].get_facecolor()
        memory_axes.axhline(capacity[i], color=color, linestyle="--", label=f"{tier} capacity")
        bottom += of(memory[:, i])
    memory_axes.set_ylabel("GiB")
    memory_axes.set_xlabel("rank")
    for axes in (time_axes, memory_axes):
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def write_png(plan: Plan, path: str | Path) -> None:
    """Write the picture.

    Raises:
        PlanError: the file can't be written.
    """
    _write(path, png(draw(plan)))


def write_html(plan: Plan, path: str | Path) -> None:
    """Write one self-contained page.

    Raises:
        PlanError: the file can't be written.
    """
    known = facts(plan)
    head = ("table", "shape", "kind", "sharding", "kernel", "where", *_NUMBERS)
    rows = [(name, *_row(plan, name)) for name in _largest_first(plan)]
    summary = [
        ("workers", f"{known['world_size']} on {known['num_nodes']} nodes"),
        ("busiest rank", f"{known['bottleneck_ms']:.4g} ms"),
        ("lower bound", f"{known['lower_bound_ms']:.4g} ms"),
        ("time balance (max / mean)", f"{known['time_balance']:.3f}"),
        *byte_facts(known),
        ("bottleneck", known["binds"]),
        *_notes(plan),
    ]
    title = f"Sharding plan for {known['topology']}, {known['world_size']} workers"
    parts = (
        table((), summary),
        heading("Ranks"),
        picture(draw(plan), "time and bytes per rank"),
        heading("Tables"),
        table(head, rows),
    )
    _write(path, page(title, *parts).encode())


def _write(path: str | Path, content: bytes) -> None:
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise PlanError(f"can't write {path}: {error.strerror}; choose another place") from None
