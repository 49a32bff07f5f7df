"""Whether logs may be added to an existing training set, and which files are new."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infnet_dist.config.logs import LogsIngest, day_text
from infnet_dist.config.renamed import with_current_names
from infnet_dist.data.manifest import MANIFEST, Ingested, LogFile, Manifest, read_manifest
from infnet_dist.errors import DataError
from infnet_dist.ingest.writing.existing import check_unchanged, other_settings

# Settings that may differ when logs are added; all others must be equal.
_FREE = (
    *("path", "format", "csv", "valid_from", "test_from", "max_bad_share", "skip_bad_files"),
    *("memory_mib", "seed", "row_group_rows", "min_age_s"),
)


def earlier_set(config: LogsIngest, folder: Path) -> Manifest | None:
    """Manifest of the training set at `folder`; None if there is none.

    Raises:
        DataError: the folder contains something else, a set made from other settings, or a set
            whose parts have changed.
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
    check_unchanged(folder, earlier)
    return earlier


def _fixed(source: dict[str, Any]) -> dict[str, Any]:
    """Settings that can't change; `find_id_types` compares the types of ids, which may be added."""
    fixed = {key: value for key, value in source.items() if key not in _FREE}
    checks = {
        column: {key: value for key, value in check.items() if key != "type" and value is not None}
        for column, check in source.get("checks", {}).items()
    }
    checks = {column: check for column, check in checks.items() if check}
    first_day = day_text(source.get("train_from"))  # in the current spelling
    return fixed | {"checks": checks, "train_from": first_day}


def _settings(earlier: Manifest) -> LogsIngest:
    """The settings of a training set, with current names and the defaults of newer keys."""
    return LogsIngest.model_validate(with_current_names({"ingest": earlier.source})["ingest"])


def known_files(earlier: Manifest | None) -> tuple[LogFile, ...]:
    """Files whose rows are in the training set."""
    return _ingested(earlier).files if earlier else ()


def new_files(files: Sequence[LogFile], earlier: Manifest | None) -> list[LogFile]:
    """Files that aren't in the training set yet.

    Raises:
        DataError: a file that is in the set has changed.
    """
    known = {file.path: file for file in known_files(earlier)}
    for file in files:
        if known.get(file.path, file) != file:
            raise DataError(
                f"{file.path} changed since it was ingested ({known[file.path].size:,} bytes then, "
                f"{file.size:,} now); write new rows to new files, or make a new training set"
            )
    return [file for file in files if file.path not in known]


def check_extension(config: LogsIngest, earlier: Manifest, folder: Path) -> None:
    """Raise DataError unless logs can be added under this config."""
    if not config.extendable:
        raise DataError(
            f"{folder} can't be extended: it was made with ingest.extendable=false; make a new "
            "training set of all logs"
        )
    last_ms, gap_ms = _ingested(earlier).last_time_ms, round(config.gap_h * 3_600_000)
    before, now = _starts(earlier), config.split_starts_ms
    moved = [split for split in ("valid", "test") if before.get(split) != now.get(split)]
    for split in moved:
        new = now.get(split)
        if new is None or new - gap_ms <= last_ms:
            raise DataError(
                f"ingest.{split}_from: rows up to {time_text(last_ms)} are already in their "
                "splits; keep the earlier value, or choose one later than that by at least "
                f"ingest.gap_h ({config.gap_h:g} h)"
            )
    if "valid" in moved and config.negatives is not None:
        raise DataError(
            "ingest.valid_from: rows of valid have all their negatives and would become rows of "
            "train, of whose negatives ingest.negatives keeps a share; keep the earlier value, or "
            "ingest all logs into another data.path"
        )
    if moved == ["test"] and "test" in before:
        raise DataError(
            "ingest.test_from: existing rows of test would precede new rows of valid; change "
            "ingest.valid_from as well, or keep both"
        )


def pending_is_train(config: LogsIngest, earlier: Manifest) -> bool:
    """Whether all rows of the set are before `valid_from` of the config."""
    valid_ms = config.split_starts_ms.get("valid")
    return valid_ms is not None and valid_ms > _ingested(earlier).last_time_ms


def time_text(time_ms: int) -> str:
    """A time for messages, in whole seconds."""
    return f"{datetime.fromtimestamp(time_ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _starts(earlier: Manifest) -> dict[str, int]:
    return _settings(earlier).split_starts_ms


def _ingested(earlier: Manifest) -> Ingested:
    assert earlier.ingested is not None, "a manifest of logs has this section"
    return earlier.ingested
