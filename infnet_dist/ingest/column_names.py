"""The columns of a file: each that is wanted must be there, once. Names are compared exactly."""

from collections.abc import Iterable, Sequence

from infnet_dist.errors import DataError, unknown_name


def check_columns(
    found: Sequence[str], wanted: Iterable[str], path: str, *, advice: str | None = None
) -> None:
    """Raise DataError unless a file has each wanted column, and none of them twice.

    Args:
        found: names in the file's header or schema.
        wanted: names of those that are read.
        path: the file, as messages should name it.
        advice: what can be done about a missing one, where it isn't "rename or repair".
    """
    for name in wanted:
        if name not in found:
            advice = advice or "rename it in the ingest section, or repair the file"
            raise DataError(f"{path}: {unknown_name('column', name, found)}; {advice}")
        if (times := found.count(name)) > 1:
            raise DataError(
                f"{path} has {times} columns {name!r}, so which one is meant is unknown; rename or "
                "remove the others"
            )
