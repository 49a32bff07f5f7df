"""The work of one ingest as text: an interrupted ingest is resumed only if its plan is equal."""

import json
from collections.abc import Mapping, Sequence

from infnet_dist import __version__
from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import LogFile, Manifest
from infnet_dist.errors import DataError
from infnet_dist.features.definition import FORMAT_VERSION
from infnet_dist.ingest.logs.reading.fragments import file_at


def side_tables(config: LogsIngest) -> dict[str, LogFile]:
    """The current files of all joins, by the name of the join."""
    return {name: file_at(join.path) for name, join in config.joins.items()}


def work_plan(config: LogsIngest, files: Sequence[LogFile], earlier: Manifest | None) -> str:
    """Settings and inputs of an ingest as text: equal plans give equal results."""
    sides = side_tables(config)
    return json.dumps(
        {
            "config": config.model_dump(mode="json", exclude={"max_bad_share"}),
            "files": [file.model_dump() for file in files],
            "side_tables": {name: file.model_dump() for name, file in sides.items()},
            "earlier": earlier.content_hash if earlier is not None else None,
            "code_version": __version__,
            "transforms": FORMAT_VERSION,
        },
        indent=1,
    )


def check_side_tables(config: LogsIngest, before: Mapping[str, LogFile]) -> None:
    """Raise DataError if a side table has changed during the ingest."""
    for name, file in side_tables(config).items():
        if before[name] != file:
            raise DataError(
                f"{file.path}, of ingest.joins.{name}, changed during the ingest; run the same "
                "command again: it starts from the beginning"
            )
