"""JSON for values that may be NaN or infinite, which JSON lacks: they become null."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infnet_dist.io.filesystem import Folder


def null_nonfinite(value: Any) -> Any:
    """The value, a number or nested containers of numbers, with None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: null_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [null_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nan_for_null(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """The metrics as they were before `null_nonfinite`: NaN for None."""
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def dump_json(value: Any) -> str:
    """The value as indented JSON text that ends with a newline."""
    return json.dumps(null_nonfinite(value), indent=1) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically.

    Raises:
        OSError: it can't be written.
    """
    Folder(path.parent).put(path.name, dump_json(value).encode())
