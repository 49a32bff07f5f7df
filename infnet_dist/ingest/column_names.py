"""Names of columns and features: columns must exist once in a file; some names are reserved."""

from collections.abc import Iterable, Sequence

from infnet_dist.errors import DataError, unknown_name


def check_columns(
    found: Sequence[str], wanted: Iterable[str], path: str, *, advice: str | None = None
) -> None:
    """Raise DataError unless a file has each wanted column, and none of them twice.

    Args:
        found: names in the header or schema of the file.
        wanted: names of the columns that are read.
        path: name of the file in messages.
        advice: the next move for a missing column; default: rename or repair it.
    """
    for name in wanted:
        if name not in found:
            advice = advice or "rename it in the ingest section, or repair the file"
            raise DataError(f"{path}: {unknown_name('column', name, found)}; {advice}")
        if (times := found.count(name)) > 1:
            raise DataError(
                f"{path} has {times} columns {name!r}, expected one; rename or remove the others"
            )


def is_free(name: str) -> bool:
    """Whether a name can be a key of modules: no dot, and none of torch's own attributes."""
    from torch import nn  # takes seconds; tasks that only ingest don't need it

    return bool(name) and "." not in name and not hasattr(nn.ModuleDict(), name)
