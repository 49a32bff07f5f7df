"""One ingest: what each stage gets from those before it, and what the set will know of it."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import Ingested, Manifest
from infnet_dist.errors import DataError
from infnet_dist.ingest.coverage import warn_of_joins
from infnet_dist.ingest.listing import Listing
from infnet_dist.ingest.logs.context import Workplace
from infnet_dist.ingest.logs.extend import moment
from infnet_dist.ingest.logs.features import make_schema
from infnet_dist.ingest.logs.fit import fit_hashed, fit_schema, fit_vocabularies
from infnet_dist.ingest.logs.make import Encoding, make_parts
from infnet_dist.ingest.logs.plan import check_side_tables, side_tables
from infnet_dist.ingest.logs.quarantine import tally
from infnet_dist.ingest.logs.read import (
    Cleaned,
    Settled,
    clean,
    find_fragments,
    find_rules,
    settle,
)
from infnet_dist.ingest.logs.splits import SPLITS
from infnet_dist.ingest.parts import PartSummary
from infnet_dist.io.urls import without_secrets
from infnet_dist.schema import DenseFeature, Schema

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """What an ingest made, in a folder of its own.

    Attributes:
        staged: the folder.
        parts: by split.
        pending_is_train: whether the rows that the set has so far are train now.
        files_left_out: reason by path of files that weren't read.
    """

    staged: Path
    schema: Schema
    parts: dict[str, list[PartSummary]]
    ingested: Ingested
    source: dict[str, Any]
    earlier: Manifest | None
    pending_is_train: bool
    files_left_out: dict[str, str]


def run_job(place: Workplace, new: Listing) -> Made | None:
    """All stages over these files; None if they add nothing to the set.

    Raises:
        DataError: files can't be read, too many rows are bad, or a split has no rows.
    """
    tables = side_tables(place.config)
    for folder in (place.state, place.quarantine):
        folder.mkdir(parents=True, exist_ok=True)
    found, unreadable = find_fragments(place, new)
    if not found:
        _tell_of_nothing(place, unreadable)
        return None
    rules = find_rules(place, found)
    _check_names(place.config)
    cleaned = clean(place, found, rules, unreadable)
    check_side_tables(place.config, tables)
    if cleaned.is_empty:
        _tell_of_nothing(place, cleaned.unreadable)
        return None
    _warn_of(cleaned.unreadable)
    warn_of_joins(cleaned.unmatched, cleaned.read)
    settled = settle(place, cleaned)
    quarantined, num_bad = tally(
        place.config, place.staged / "quarantine", cleaned.outcomes, settled.outcomes
    )
    rows = _rows_by_split(place, cleaned, settled)
    num_ids, compiled = fit_vocabularies(place, rules, settled)
    schema = fit_schema(place, settled, num_ids)
    last_ms = cleaned.times_ms[1]
    boundary_ms = int(place.calendar.known_until(np.array([last_ms + 1]))[0])
    parts = make_parts(place, settled, Encoding(schema, compiled, boundary_ms), rows)
    before = place.before
    ingested = Ingested(
        generation=place.number,
        last_time_ms=last_ms,
        boundary_ms=boundary_ms,
        files=(
            *(before.files if before else ()),
            *(file for file in new.files if file.path not in cleaned.unreadable),
        ),
        unreadable=cleaned.unreadable,
        quarantined=_added(before.quarantined if before else {}, quarantined),
        bad_rows=num_bad + (before.num_bad if before else 0),
        left_out=_added(
            before.left_out if before else {},
            {name: rows[name] for name in ("early", "left_out")},
        ),
        hashed=fit_hashed(place, settled),
        grew_from=(
            (*(before.grew_from if before else ()), place.earlier.content_hash)
            if place.earlier is not None
            else ()
        ),
    )
    return Made(
        place.staged,
        schema,
        parts,
        ingested,
        place.config.model_dump(mode="json"),
        place.earlier,
        place.pending_is_train,
        new.left_out,
    )


def _tell_of_nothing(place: Workplace, unreadable: Mapping[str, str]) -> None:
    """There are no new rows: an error for a new set, otherwise worth a warning at most."""
    _warn_of(unreadable)
    if place.earlier is None:
        shown = without_secrets(place.config.path)
        raise DataError(f"no file of {shown} has rows; check ingest.path")


def _warn_of(unreadable: Mapping[str, str]) -> None:
    if unreadable:
        log.warning("left out as unreadable: %s", ", ".join(unreadable))


def _check_names(config: LogsIngest) -> None:
    """Find now what would be found at the end otherwise."""
    sizes = dict.fromkeys(config.table_names, 1)
    dense = tuple(DenseFeature(name=n, column=n) for n in config.dense)
    make_schema(config, num_ids=sizes, dense=dense, mean_watch_ms=1.0)


def _rows_by_split(place: Workplace, cleaned: Cleaned, settled: Settled) -> dict[str, int]:
    totals = np.sum([outcome["splits"] for outcome in settled.outcomes], axis=0)
    rows = dict(zip((*SPLITS, "early", "left_out"), map(int, totals), strict=True))
    for split in {"train"} | place.calendar.starts_ms.keys():
        if not rows[split] + _rows_there(place, split):
            covered = " to ".join(map(moment, cleaned.times_ms))
            raise DataError(
                f"split {split} would have no rows: the new logs cover {covered}; change "
                "ingest.train_from, valid_from or test_from"
            )
    return rows


def _rows_there(place: Workplace, split: str) -> int:
    """Rows that the split has so far, and keeps."""
    if place.earlier is None:
        return 0
    kept = {name: part.rows for name, part in place.earlier.splits.items()}
    if place.pending_is_train:
        kept = {"train": sum(kept.values())}
    return kept.get(split, 0)


def _added(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    return dict((Counter(before) + Counter(now)).most_common())
