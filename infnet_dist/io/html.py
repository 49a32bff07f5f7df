"""Self-contained HTML pages with tables and figures."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any


def page(title: str, *parts: str) -> str:
    """A page of HTML parts."""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>
body {{ font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em }}
table {{ border-collapse: collapse }}
td, th {{ border: 1px solid #ccc; padding: .2em .6em; text-align: left }}
img {{ max-width: 100% }}
</style>
<h1>{html.escape(title)}</h1>
{"".join(part + chr(10) for part in parts)}</html>
"""


def heading(text: str) -> str:
    """A heading."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; without a head if `head` is empty."""
    lines = ["<table>"]
    if head:
        lines.append("<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in head) + "</tr>")
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{html.escape(x)}</td>" for x in row) + "</tr>")
    return "\n".join([*lines, "</table>"])


def picture(figure: Any, alt: str) -> str:
    """A matplotlib figure, embedded in the page."""
    encoded = base64.b64encode(png(figure)).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{encoded}">'


def png(figure: Any) -> bytes:
    """A matplotlib figure as PNG; deterministic bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
