"""Output of the sub-commands: tables, JSON, a progress bar."""

import datetime
from typing import Any

from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from infnet_dist.io.json_files import dump_json


def bar_of(total: int, name: str) -> Any:
    """A progress bar of bytes with rate and time left, on a terminal's stderr."""
    return tqdm(total=total, desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None)


def table_of(title: str, *columns: str) -> Table:
    """A table with its title at the left."""
    return Table(*columns, title=escape(title), title_justify="left")


def add_right(table: Table, *columns: str) -> None:
    """Add columns of numbers."""
    for column in columns:
        table.add_column(escape(column), justify="right")


def time_of(nanoseconds: int) -> datetime.datetime:
    """A time in UTC."""
    return datetime.datetime.fromtimestamp(nanoseconds // 10**9, datetime.UTC)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(dump_json(value), end="")
