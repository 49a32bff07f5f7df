"""`roll.html`: every generation's metrics before it was trained on, and what became of it."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from infnet_dist.io.filesystem import Folder
from infnet_dist.io.html import heading, page, paragraph, picture, table
from infnet_dist.rolling.state import Generation, RollState, metrics_of

REPORT = "roll.html"


def write_report(folder: Path, name: str, state: RollState) -> Path:
    """Write the report beside the state; returns its path."""
    path = folder / REPORT
    parts = [
        paragraph(
            "Progressive validation: each generation is scored by the model of the day before, "
            "which has never seen it, and only then trained on."
        ),
        picture(draw(state), "metrics by generation, before training"),
        heading("Generations"),
        table(*_rows(state)),
    ]
    Folder(folder).put(REPORT, page(f"infnet roll: {name}", *parts).encode())
    return path


def draw(state: RollState) -> Figure:
    """One panel per metric, a line per task, and one for rows and new ids."""
    scored = [one for one in state.generations if one.before]
    kinds = _metrics(scored)
    columns = 2
    rows = math.ceil((len(kinds) + 1) / columns)
    figure = Figure(figsize=(6 * columns, 3 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (kind, tasks) in zip(axes, kinds.items(), strict=False):
        for task in tasks:
            points = [
                (one.number, metrics_of(one.before).get(f"{kind}/{task}", math.nan))
                for one in scored
            ]
            axis.plot(*zip(*points, strict=True), marker=".", label=task)
        axis.set_title(f"{kind}, before training")
        axis.legend(fontsize="small")
    rows_axis = axes[len(kinds)]
    numbers = [one.number for one in state.generations]
    rows_axis.plot(numbers, [one.rows for one in state.generations], marker=".", label="rows")
    new_ids = [sum(one.new_ids.values()) for one in state.generations]
    rows_axis.plot(numbers, new_ids, marker=".", label="new ids")
    rows_axis.set_title("rows and new ids")
    rows_axis.legend(fontsize="small")
    for axis in axes[: len(kinds) + 1]:
        axis.set_xlabel("generation")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[len(kinds) + 1 :]:
        axis.set_visible(False)
    return figure


def _metrics(generations: Iterable[Generation]) -> dict[str, list[str]]:
    """The tasks by metric, in the order in which they were measured."""
    found: dict[str, list[str]] = {}
    for one in generations:
        for name in metrics_of(one.before):
            kind, _, task = name.partition("/")
            if task not in found.setdefault(kind, []):
                found[kind].append(task)
    return found


def _rows(state: RollState) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of generations."""
    kinds = _metrics(state.generations)
    names = [f"{kind}/{task}" for kind in ("auc", "calibration") for task in kinds.get(kind, [])]
    head = ["generation", "until (UTC)", "rows", "new ids", "trained"]
    head += [f"{name} before" for name in names] + ["gate", "published", "seconds"]
    lines = []
    for one in state.generations:
        before = metrics_of(one.before)
        until = datetime.fromtimestamp(one.last_time_ms / 1000, UTC)
        lines.append(
            [
                str(one.number),
                f"{until:%Y-%m-%d %H:%M}",
                f"{one.rows:,}",
                f"{sum(one.new_ids.values()):,}",
                "ids" if one.ids_only else "all",
                *(f"{before[name]:.4f}" if name in before else "" for name in names),
                verdict(one),
                one.published or "",
                f"{sum(one.seconds.values()):.0f}",
            ]
        )
    return head, lines


def verdict(generation: Generation) -> str:
    """What the gate said."""
    if generation.failed is None:
        return "not trained yet"
    return "; ".join(generation.failed) or "passed"
