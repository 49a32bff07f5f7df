"""What an ingest works on, so that only equal work is gone on with."""

import json
from collections.abc import Mapping, Sequence

from infnet_dist import __version__
from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import LogFile, Manifest
from infnet_dist.errors import DataError
from infnet_dist.ingest.logs.source import file_at


def side_tables(config: LogsIngest) -> dict[str, LogFile]:
    """The files of all joins as they are now, by the join's name."""
    return {name: file_at(join.path) for name, join in config.joins.items()}


def plan_of(config: LogsIngest, files: Sequence[LogFile], earlier: Manifest | None) -> str:
    """What an ingest will do, as text: equal plans may go on with each other's work."""
    sides = side_tables(config)
    return json.dumps(
        {
            "config": config.model_dump(mode="json", exclude={"max_bad_share"}),
            "files": [file.model_dump() for file in files],
            "side_tables": {name: file.model_dump() for name, file in sides.items()},
            "earlier": earlier.content_hash if earlier is not None else None,
            "code_version": __version__,
        },
        indent=1,
    )


def check_side_tables(config: LogsIngest, before: Mapping[str, LogFile]) -> None:
    """Raise DataError if a side table isn't what it was."""
    for name, file in side_tables(config).items():
        if before[name] != file:
            raise DataError(
                f"{file.path}, of ingest.joins.{name}, changed meanwhile; run the same command "
                "again: it starts anew"
            )
