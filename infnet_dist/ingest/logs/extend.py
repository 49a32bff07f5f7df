"""What a training set knows of its logs, and whether others may be added."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infnet_dist.config.logs import LogsIngest, day_text
from infnet_dist.config.renamed import with_current_names
from infnet_dist.data.manifest import MANIFEST, Ingested, LogFile, Manifest, read_manifest
from infnet_dist.errors import DataError
from infnet_dist.ingest.writer import check_unbroken, other_settings

# What may be otherwise when logs are added; the rest is what the set is.
_FREE = (
    *("path", "format", "csv", "valid_from", "test_from", "max_bad_share", "skip_bad_files"),
    *("memory_mib", "seed", "row_group_rows"),
)


def earlier_set(config: LogsIngest, folder: Path) -> Manifest | None:
    """The training set at `folder`; None if nothing stands there.

    Raises:
        DataError: there is something else, a set made from other settings, or one whose parts
            changed.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    wanted = _fixed(config.model_dump(mode="json"))
    if not (folder / MANIFEST).is_file():
        raise other_settings(folder, None, wanted)
    earlier = read_manifest(folder)
    try:
        made_from = _fixed(_settings(earlier).model_dump(mode="json"))
    except ValidationError:  # made from another source
        made_from = earlier.source
    if made_from != wanted:
        raise other_settings(folder, made_from, wanted)
    check_unbroken(folder, earlier)
    return earlier


def _fixed(source: dict[str, Any]) -> dict[str, Any]:
    """What can't change; types of ids may be declared later, `find_id_types` compares them."""
    fixed = {key: value for key, value in source.items() if key not in _FREE}
    checks = {
        column: {key: value for key, value in check.items() if key != "type" and value is not None}
        for column, check in source.get("checks", {}).items()
    }
    checks = {column: check for column, check in checks.items() if check}
    first_day = day_text(source.get("train_from"))  # in either spelling
    return fixed | {"checks": checks, "train_from": first_day}


def _settings(earlier: Manifest) -> LogsIngest:
    """The settings of a training set, with current names and the defaults of newer keys."""
    return LogsIngest.model_validate(with_current_names({"ingest": earlier.source})["ingest"])


def known_files(earlier: Manifest | None) -> tuple[LogFile, ...]:
    """The files that are in the training set."""
    return _ingested(earlier).files if earlier else ()


def new_files(files: Sequence[LogFile], earlier: Manifest | None) -> list[LogFile]:
    """The files that aren't in the training set.

    Raises:
        DataError: one that is in it has changed.
    """
    known = {file.path: file for file in known_files(earlier)}
    for file in files:
        if known.get(file.path, file) != file:
            raise DataError(
                f"{file.path} changed since it was ingested ({known[file.path].size:,} bytes then, "
                f"{file.size:,} now); put new rows into new files, or make a new training set"
            )
    return [file for file in files if file.path not in known]


def check_extension(config: LogsIngest, earlier: Manifest, folder: Path) -> None:
    """Raise DataError unless logs may be added under this config."""
    if not config.extendable:
        raise DataError(
            f"{folder} can't be added to: it was made with ingest.extendable off; make a new "
            "training set of all logs"
        )
    last_ms, gap_ms = _ingested(earlier).last_time_ms, round(config.gap_h * 3_600_000)
    before, now = _starts(earlier), config.split_starts_ms
    moved = [split for split in ("valid", "test") if before.get(split) != now.get(split)]
    for split in moved:
        new = now.get(split)
        if new is None or new - gap_ms <= last_ms:
            raise DataError(
                f"ingest.{split}_from: rows up to {moment(last_ms)} are in their splits already; "
                f"keep the day as it was, or choose one after them and ingest.gap_h "
                f"({config.gap_h:g} h)"
            )
    if moved == ["test"] and "test" in before:
        raise DataError(
            "ingest.test_from: rows of test would lie before later rows of valid; move valid_from "
            "as well, or keep both"
        )


def pending_is_train(config: LogsIngest, earlier: Manifest) -> bool:
    """Whether all rows that the set has so far lie before the config's valid."""
    return config.split_starts_ms["valid"] > _ingested(earlier).last_time_ms


def moment(time_ms: int) -> str:
    """A time for a message, in whole seconds."""
    return f"{datetime.fromtimestamp(time_ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _starts(earlier: Manifest) -> dict[str, int]:
    return _settings(earlier).split_starts_ms


def _ingested(earlier: Manifest) -> Ingested:
    assert earlier.ingested is not None, "a set of logs says which"
    return earlier.ingested
