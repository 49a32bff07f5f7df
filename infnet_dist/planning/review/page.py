"""Writes a plan's picture, and an HTML page with the picture and all tables."""

from pathlib import Path

from infnet_dist.errors import PlanError
from infnet_dist.io.html import heading, page, picture, png, table
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.review.facts import byte_facts, facts
from infnet_dist.planning.review.picture import draw
from infnet_dist.planning.review.render import NUMBERS, largest_first, notes_of, row_of


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
    head = ("table", "shape", "kind", "sharding", "kernel", "where", *NUMBERS)
    rows = [(name, *row_of(plan, name)) for name in largest_first(plan)]
    summary = [
        ("workers", f"{known['world_size']} on {known['num_nodes']} nodes"),
        ("busiest rank", f"{known['bottleneck_ms']:.4g} ms"),
        ("lower bound", f"{known['lower_bound_ms']:.4g} ms"),
        ("time balance (max / mean)", f"{known['time_balance']:.3f}"),
        *byte_facts(known),
        ("bottleneck", known["binds"]),
        *notes_of(plan),
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
