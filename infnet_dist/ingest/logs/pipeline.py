"""Logs -> a training set, or an extension of one: all stages in order, then publication.

stage        one task per        result
types        CSV file            how its ids are written
partition    fragment of a file  rows, cleaned and joined, by user; bad ones to quarantine/
deduplicate  partition           rows sorted by user and time without duplicates; value counts
fit          vocabulary          ids of values; then the schema
count        bucket of keys      events before each row, for the counters
assemble     partition           rows with ids, histories, counters and labels, by part
shuffle      part                rows permuted and written as Parquet

my_set/
manifest.json              written last
train/ valid/ test/        parts; those of later ingests lie beside the first ones
vocabulary/<table>/        one version per ingest
transforms/<ingest>/       how raw rows become those of the set, for serving
quarantine/                bad rows with their reasons, by ingest
state/                     for adding later logs
report.html                the data report, with plots
"""

import logging
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs

from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import Ingested, Manifest, SampledNegatives
from infnet_dist.errors import DataError
from infnet_dist.ingest.coverage import warn_of_joins, warn_of_unknown
from infnet_dist.ingest.listing import Listing, log_left_out
from infnet_dist.ingest.lock import exclusive
from infnet_dist.ingest.logs.context import IngestContext
from infnet_dist.ingest.logs.encoding.definition import make_definition
from infnet_dist.ingest.logs.encoding.features import make_schema
from infnet_dist.ingest.logs.extend import (
    check_extension,
    earlier_set,
    known_files,
    new_files,
    time_text,
)
from infnet_dist.ingest.logs.publish import (
    StagedSet,
    is_staged,
    publish,
    remove_unnamed,
    write_staged_manifest,
)
from infnet_dist.ingest.logs.quarantine import count_bad_rows
from infnet_dist.ingest.logs.reading.files import find_fragments, list_files
from infnet_dist.ingest.logs.reading.id_types import find_id_types
from infnet_dist.ingest.logs.reading.rules import make_rules
from infnet_dist.ingest.logs.splits import OTHERS, SPLITS
from infnet_dist.ingest.logs.stages.assemble import assemble
from infnet_dist.ingest.logs.stages.count import count_events
from infnet_dist.ingest.logs.stages.deduplicate import Deduplicated, deduplicate
from infnet_dist.ingest.logs.stages.fit import fit_hashed_tables, fit_schema, fit_vocabularies
from infnet_dist.ingest.logs.stages.partition import Partitioned, partition
from infnet_dist.ingest.logs.stages.runner import Execute, Progress, StageRunner, as_data_error
from infnet_dist.ingest.logs.stages.shuffle import write_parts
from infnet_dist.ingest.logs.task_sizes import num_tasks
from infnet_dist.ingest.logs.work_plan import check_side_tables, side_tables, work_plan
from infnet_dist.ingest.writing.target import resolve_target
from infnet_dist.ingest.writing.transforms import write_transforms
from infnet_dist.io.filesystem import open_filesystem, published
from infnet_dist.io.urls import without_secrets
from infnet_dist.schema import DenseFeature

log = logging.getLogger(__name__)


def ingest_logs(
    config: LogsIngest, folder: Path, execute: Execute, progress: Progress
) -> Manifest | None:
    """Bring the training set at `folder` up to date with the logs at `config.path`.

    Makes a training set if there is none, adds the rows of new files otherwise, and does nothing
    if there are no new files. A killed run leaves the set unchanged; the next run resumes it.

    Args:
        config: the `ingest` section.
        folder: the training set, on storage that all workers share.
        execute: runs tasks.
        progress: called at the start of a stage and after each of its tasks.

    Returns:
        The manifest; None if there was nothing to do.

    Raises:
        DataError: logs are missing, unreadable, or too many of their rows are bad; the set was
            made from other settings; another ingest works on it; or `folder` can't be replaced by
            a rename.
        ConfigError: the roles of a column conflict.
    """
    folder = resolve_target(folder)
    work = folder.with_name(f".{folder.name}.work")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            return _ingest(config, folder, work, StageRunner(work / "done", execute, progress))
    except OSError as error:
        raise as_data_error(error, work) from None


def _ingest(config: LogsIngest, folder: Path, work: Path, runner: StageRunner) -> Manifest | None:
    earlier = earlier_set(config, folder)
    found = list_files(config, known_files(earlier))
    if isinstance(open_filesystem(config.path)[0], pa.fs.LocalFileSystem):
        found = found.without(folder, "it is part of the training set itself")
    since_ns = time.time_ns() - round(config.min_age_s * 1e9)
    if config.min_age_s:
        found = found.without_recent(since_ns, known_files(earlier))
    log_left_out(found.left_out)
    if earlier is None and found.recent and not found.files:
        raise DataError(
            f"all {len(found.recent):,} files of {without_secrets(config.path)} changed less than "
            f"{config.min_age_s:g} s ago; run the same command later, or lower ingest.min_age_s"
        )
    new = replace(found, files=new_files(found.files, earlier))
    if not new.files:
        shutil.rmtree(work, ignore_errors=True)  # of a job that was killed after its last rename
        return None
    if earlier is not None:
        check_extension(config, earlier, folder)
    _prepare(work, folder, work_plan(config, new.files, earlier), earlier)
    if not is_staged(work):
        staged = _run_stages(IngestContext(config, runner, work, folder, earlier), new)
        if staged is None:
            shutil.rmtree(work)
            return None
        write_staged_manifest(staged, work)
    manifest = publish(work, folder)
    warn_of_unknown(manifest)
    return manifest


def _prepare(work: Path, folder: Path, plan: str, earlier: Manifest | None) -> None:
    """Keep the finished work of an interrupted run with the same plan; start over otherwise."""
    file = work / "plan.json"
    if file.is_file() and file.read_text() == plan:
        return
    if work.exists():
        shutil.rmtree(work)
    if earlier is not None:
        remove_unnamed(folder, earlier)
    work.mkdir(parents=True)
    with published(file) as path:
        path.write_text(plan)


def _run_stages(context: IngestContext, new: Listing) -> StagedSet | None:
    """Run all stages over the new files; None if they add nothing to the set.

    Raises:
        DataError: files can't be read, too many rows are bad, or a split has no rows.
    """
    config, before = context.config, context.ingested
    tables = side_tables(config)
    for folder in (context.state, context.quarantine):
        folder.mkdir(parents=True, exist_ok=True)
    fragments, unreadable = find_fragments(config, new, context.state_files("rows"))
    if not fragments:
        _report_no_rows(context, unreadable)
        return None
    id_types = find_id_types(context, fragments)
    rules = make_rules(config, id_types, before.last_time_ms if before else None)
    _check_names(config)

    partitioned = partition(context, fragments, rules, unreadable)
    check_side_tables(config, tables)
    if partitioned.is_empty:
        _report_no_rows(context, partitioned.unreadable)
        return None
    _warn_of_unreadable(partitioned.unreadable)
    warn_of_joins(partitioned.unmatched, partitioned.read)

    deduplicated = deduplicate(context, partitioned)
    quarantined, num_bad = count_bad_rows(
        config, context.staged / "quarantine", partitioned.outcomes, deduplicated.outcomes
    )
    rows = _rows_by_split(context, partitioned, deduplicated)

    num_ids, key_maps = fit_vocabularies(context, rules, deduplicated)
    schema = fit_schema(context, deduplicated, num_ids)
    definition = make_definition(
        config, schema, kinds=rules.kinds, key_maps=key_maps, generation=context.generation
    )
    last_ms = partitioned.times_ms[1]
    boundary_ms = int(context.calendar.known_until(np.array([last_ms + 1]))[0])

    counts = count_events(context, deduplicated, boundary_ms)
    num_parts = {s: num_tasks(rows[s], context.sizes.part) for s in SPLITS if rows[s]}
    assembled = assemble(
        context,
        deduplicated,
        schema=schema,
        counts=counts,
        definition=definition,
        num_parts=num_parts,
        boundary_ms=boundary_ms,
        num_rows=sum(rows.values()),
    )
    parts = write_parts(context, assembled, schema=schema, rows=rows, num_parts=num_parts)

    ingested = Ingested(
        generation=context.generation,
        last_time_ms=last_ms,
        boundary_ms=boundary_ms,
        files=tuple(file for file in new.files if file.path not in partitioned.unreadable),
        unreadable=partitioned.unreadable,
        quarantined=quarantined,
        bad_rows=num_bad,
        left_out={name: rows[name] for name in OTHERS},
        negatives=_sampled_negatives(config, deduplicated),
        hashed=fit_hashed_tables(context, deduplicated),
    )
    return StagedSet(
        folder=context.staged,
        schema=schema,
        parts=parts,
        ingested=_with_earlier(ingested, context.earlier),
        source=config.model_dump(mode="json"),
        earlier=context.earlier,
        pending_is_train=context.pending_is_train,
        files_left_out=new.left_out,
        transforms=write_transforms(context.staged, definition),
    )


def _report_no_rows(context: IngestContext, unreadable: Mapping[str, str]) -> None:
    """Raise DataError if a new set would have no rows; an existing set stays as it is."""
    _warn_of_unreadable(unreadable)
    if context.earlier is None:
        shown = without_secrets(context.config.path)
        raise DataError(f"no file of {shown} has rows; check ingest.path")


def _warn_of_unreadable(unreadable: Mapping[str, str]) -> None:
    if unreadable:
        log.warning("unreadable files, skipped: %s", ", ".join(unreadable))


def _check_names(config: LogsIngest) -> None:
    """Check the names in the schema before the long stages, not after them."""
    sizes = dict.fromkeys(config.table_names, 1)
    dense = tuple(DenseFeature(name=n, column=n) for n in config.dense)
    make_schema(config, num_ids=sizes, dense=dense, mean_watch_ms=1.0)


def _rows_by_split(
    context: IngestContext, partitioned: Partitioned, deduplicated: Deduplicated
) -> dict[str, int]:
    totals = np.sum([outcome["splits"] for outcome in deduplicated.outcomes], axis=0)
    rows = dict(zip((*SPLITS, *OTHERS), map(int, totals), strict=True))
    for split in {"train"} | context.calendar.starts_ms.keys():
        if not rows[split] + _existing_rows(context, split):
            covered = " to ".join(map(time_text, partitioned.times_ms))
            raise DataError(
                f"split {split} has no rows: the new logs cover {covered}; change "
                "ingest.train_from, ingest.valid_from or ingest.test_from"
            )
    return rows


def _sampled_negatives(config: LogsIngest, deduplicated: Deduplicated) -> SampledNegatives | None:
    if config.negatives is None:
        return None
    task, share = config.negatives.task, config.negatives.share
    number = sum(outcome["contradicting"] for outcome in deduplicated.outcomes)
    if number:
        log.warning(
            "%s rows of train have another label although that of %s is 0; all are kept, so the "
            "correction of predictions for ingest.negatives is only approximate",
            f"{number:,}",
            task,
        )
    return SampledNegatives(task=task, share=share, contradicting=number)


def _existing_rows(context: IngestContext, split: str) -> int:
    """Rows of the existing set that belong to the split now."""
    if context.earlier is None:
        return 0
    kept = {name: part.rows for name, part in context.earlier.splits.items()}
    if context.pending_is_train:
        kept = {"train": sum(kept.values())}
    return kept.get(split, 0)


def _with_earlier(ingested: Ingested, earlier: Manifest | None) -> Ingested:
    """The record of this ingest, combined with that of the existing set."""
    before = earlier.ingested if earlier is not None else None
    update: dict[str, object] = {
        "quarantined": _added(before.quarantined if before else {}, ingested.quarantined),
        "left_out": _added(before.left_out if before else {}, ingested.left_out),
    }
    if earlier is not None and before is not None:
        update["files"] = (*before.files, *ingested.files)
        update["bad_rows"] = before.num_bad + ingested.num_bad
        update["negatives"] = before.negatives  # no row of train is added to a set that has them
        update["grew_from"] = (*before.grew_from, earlier.content_hash)
    return ingested.model_copy(update=update)


def _added(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    return dict((Counter(before) + Counter(now)).most_common())
