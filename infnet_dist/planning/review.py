"""A plan as people read it: a terminal table, JSON, a picture, and one HTML page with all of it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from infnet_dist.errors import PlanError
from infnet_dist.filesystem import size_text
from infnet_dist.pages import heading, page, picture, png, table
from infnet_dist.planning.plan import BY_NODE, Plan, TablePlan, shape
from infnet_dist.planning.topology import TIERS

_GIB = 2**30
_MOST_BARS = 256  # more ranks than this are drawn as groups


def facts(plan: Plan) -> dict[str, Any]:
    """What a reviewer asks of a plan; plain values, bytes and milliseconds."""
    ranks, topology = plan.ranks, plan.made_for.topology
    memory, capacity = ranks.memory, topology.capacity
    used = {
        tier: {
            "max_bytes": int(memory[:, i].max()),
            "mean_bytes": int(memory[:, i].mean()),
            "capacity_bytes": int(capacity[i]),
            "balance": _balance(memory[:, i]),
        }
        for i, tier in enumerate(TIERS)
        if memory[:, i].max() > 0
    }
    return {
        "topology": topology.name,
        "device": topology.device,
        "world_size": topology.world_size,
        "num_nodes": topology.num_nodes,
        "tables": len(plan.tables),
        "stored_bytes": int(sum(ranks.stored_bytes)),
        "stored_bytes_per_rank": list(ranks.stored_bytes),
        "bottleneck_ms": plan.bottleneck_ms,
        "lower_bound_ms": plan.lower_bound_ms,
        "over_lower_bound": plan.bottleneck_ms / plan.lower_bound_ms - 1,
        "time_balance": _balance(ranks.time_ms),
        "memory": used,
        "binds": what_binds(plan),
        "excluded": list(plan.excluded),
    }


def what_binds(plan: Plan) -> str:
    """What keeps the plan from being faster: one line."""
    time = plan.ranks.time_ms
    busiest = int(time.argmax())
    lookup = plan.ranks.lookup_ms[busiest]
    kind = "lookup" if lookup > time[busiest] / 2 else "comms"
    share = max(lookup, time[busiest] - lookup) / max(time[busiest], 1e-12)
    memory = plan.ranks.memory / np.maximum(plan.made_for.topology.capacity, 1.0)
    tier = int(memory.max(axis=0).argmax())
    full = f"{TIERS[tier]} of the fullest rank is {memory.max():.0%} full"
    if plan.bottleneck_ms <= 1.02 * plan.lower_bound_ms:
        return f"the work itself: within 2 % of the lower bound ({kind} {share:.0%}); {full}"
    return f"rank {busiest}, {share:.0%} of it {kind}; {full}"


def render(plan: Plan, *, most_tables: int = 40) -> RenderableType:
    """Tables and ranks for a terminal; the largest tables first."""
    known = facts(plan)
    tables = Table("table", "shape", "sharding", "kernel", "where", title="Tables")
    tables.title_justify = "left"
    for column in ("ms", "of it comms", "size"):
        tables.add_column(column, justify="right")
    entries = sorted(plan.tables.items(), key=_largest_first)
    for name, entry in entries[:most_tables]:
        tables.add_row(escape(name), shape(plan.made_for.tables.table(name)), *_row(entry))
    lines = [f"... and {len(entries) - most_tables} more"] if len(entries) > most_tables else []
    lines += [
        f"{known['tables']} tables, {size_text(known['stored_bytes'])} of rows and optimizer "
        f"state, on {known['world_size']} workers of {known['topology']} "
        f"({known['num_nodes']} nodes)",
        f"busiest rank {known['bottleneck_ms']:.4g} ms; lower bound {known['lower_bound_ms']:.4g} "
        f"ms (+{known['over_lower_bound']:.1%}); balance (max / mean) {known['time_balance']:.3f}",
    ]
    for tier, used in known["memory"].items():
        lines.append(
            f"{tier}: fullest rank {size_text(used['max_bytes'])} of "
            f"{size_text(used['capacity_bytes'])} "
            f"after the reserve; balance {used['balance']:.3f}"
        )
    lines.append(f"binds: {known['binds']}")
    lines += [f"not considered: {line}" for line in plan.excluded]
    return Group(tables, Text("\n".join(lines)))


def describe(plan: Plan, *, most_tables: int = 40) -> str:
    """`render` as plain text, for logs."""
    console = Console(width=120, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(render(plan, most_tables=most_tables))
    return capture.get().rstrip()


def _largest_first(item: tuple[str, TablePlan]) -> tuple[int, str]:
    return -sum(item[1].memory_bytes.values()), item[0]


def _row(entry: TablePlan) -> tuple[str, ...]:
    cache = f" {entry.cache_share:g}" if entry.cache_share else ""
    kind = "nodes" if entry.sharding_type in BY_NODE else "ranks"
    where = f"{kind} {_short(entry.places)}" if entry.places else "all ranks"
    return (
        entry.sharding_type,
        entry.compute_kernel + cache,
        where,
        f"{entry.time_ms:.4g}",
        f"{entry.comms_ms / max(entry.time_ms, 1e-12):.0%}",
        size_text(sum(entry.memory_bytes.values())),
    )


def _short(places: tuple[int, ...]) -> str:
    text = ",".join(map(str, places[:8]))
    return text + (f",... ({len(places)})" if len(places) > 8 else "")


def draw(plan: Plan) -> Figure:
    """Bars per rank: bytes by tier against the capacity, and time by lookup and comms."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    time_axes, memory_axes = figure.subplots(2, 1, sharex=True)
    groups = np.array_split(np.arange(plan.made_for.topology.world_size), _MOST_BARS)
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
    memory, capacity = plan.ranks.memory / _GIB, plan.made_for.topology.capacity / _GIB
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


def write_png(plan: Plan, path: Path) -> None:
    """Write the picture.

    Raises:
        PlanError: it can't be written.
    """
    _write(path, png(draw(plan)))


def write_html(plan: Plan, path: Path) -> None:
    """Write one page that needs no other file.

    Raises:
        PlanError: it can't be written.
    """
    known = facts(plan)
    entries = sorted(plan.tables.items(), key=_largest_first)
    head = ("table", "shape", "sharding", "kernel", "where", "ms", "of it comms", "size")
    rows = [
        (name, shape(plan.made_for.tables.table(name)), *_row(entry)) for name, entry in entries
    ]
    numbers = [
        ("workers", f"{known['world_size']} on {known['num_nodes']} nodes"),
        ("rows and optimizer state", size_text(known["stored_bytes"])),
        ("busiest rank", f"{known['bottleneck_ms']:.4g} ms"),
        ("lower bound", f"{known['lower_bound_ms']:.4g} ms"),
        ("time balance (max / mean)", f"{known['time_balance']:.3f}"),
        *(
            (
                f"{tier}, fullest rank",
                f"{size_text(used['max_bytes'])} of {size_text(used['capacity_bytes'])}",
            )
            for tier, used in known["memory"].items()
        ),
        ("what binds", known["binds"]),
        *(("not considered", line) for line in plan.excluded),
    ]
    title = f"Sharding plan for {known['topology']}, {known['world_size']} workers"
    parts = (
        table((), numbers),
        heading("Ranks"),
        picture(draw(plan), "time and bytes per rank"),
        heading("Tables"),
        table(head, rows),
    )
    _write(path, page(title, *parts).encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise PlanError(f"can't write {path}: {error.strerror}; choose another place") from None


def _balance(values: np.ndarray) -> float:
    return float(values.max() / max(values.mean(), 1e-12))
