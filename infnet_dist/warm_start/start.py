"""A warm start, on all ranks: check that ids mean the same, match all tensors, read the values."""

import hashlib
import logging
import time
from typing import NamedTuple

from tqdm import tqdm

from infnet_dist.checkpoint.loading import (
    fill_faults,
    first_fault,
    read_description,
    with_retries,
)
from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.shards import LocalShard, ModelState
from infnet_dist.checkpoint.step_folders import MANIFEST
from infnet_dist.config.changes import changes
from infnet_dist.config.warm_start import InitFromConfig
from infnet_dist.data.manifest import Manifest
from infnet_dist.data.schema_changes import schema_differences
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.lookups import Lookups
from infnet_dist.sharding.build import ShardedModel
from infnet_dist.warm_start.filling import fill_from
from infnet_dist.warm_start.match import Match, Wanted
from infnet_dist.warm_start.matching import Matching
from infnet_dist.warm_start.report import WarmStart

_KEY = "checkpoint.init_from"
log = logging.getLogger("infnet_dist")


class Origin(NamedTuple):
    """A checkpoint's description: manifest, schema and config, and the manifest's SHA-256."""

    manifest: CheckpointManifest
    lookups: Lookups
    digest: str


def warm_start(
    folder: Folder,
    sharded: ShardedModel,
    data: Manifest,
    context: WorkerContext,
    *,
    options: InitFromConfig,
    dry_run: bool = False,
) -> WarmStart:
    """Give a new model the values of a checkpoint; every rank calls it.

    Args:
        folder: the checkpoint.
        sharded: the model, with its initial values and fresh optimizers.
        data: manifest of the new run's training set.
        context: this worker.
        options: what to take.
        dry_run: only find out what would be taken.

    Raises:
        CheckpointError: the checkpoint is damaged or of another training set, a tensor can't be
            taken, or the models have nothing in common; on all ranks.
        ConfigError: `exclude` matches nothing; on all ranks.
    """
    start = time.perf_counter()
    origin = context.on_first(lambda: read_origin(folder, _KEY))
    if not options.allow_other_data:
        context.together(lambda: check_ids(folder, origin.manifest, data, _KEY))
    now = sharded.lookups
    state = ModelState(sharded)
    shards = state.shards()
    wanted = _wanted(context, shards)
    hashed = data.ingested.hashed if data.ingested else {}
    matching = Matching(origin.manifest, origin.lookups, now, options, hashed)
    matches = context.together(lambda: _matches(folder, matching, wanted))
    if not dry_run:
        num_bytes = _fill(folder, origin.manifest, shards, matches, context)
        context.together(state.load_state_dict)
        if context.is_first:
            size, seconds = tqdm.format_sizeof(num_bytes, "B", 1024), time.perf_counter() - start
            log.info("took %s (%s on rank 0 in %.1f s)", folder, size, seconds)
    return WarmStart(
        requested=options.source,
        checkpoint=str(folder),
        step=origin.manifest.progress.step,
        examples=origin.manifest.progress.examples,
        manifest_sha256=origin.digest,
        training_set=origin.manifest.order.content_hash,
        notes=tuple(_notes(origin.lookups, now)),
        matches=tuple(matches),
    )


def read_origin(folder: Folder, key: str) -> Origin:
    """Read what describes a checkpoint; `key` of the config named it.

    Raises:
        CheckpointError: it is damaged, or has no schema or config.
    """
    fault, found = with_retries(lambda: read_description(folder, with_optimizer=True))
    if found is None:
        raise CheckpointError(f"{key}: {fault}; name another checkpoint")
    if found.schema is None or found.config is None:
        missing = "schema.json" if found.schema is None else "config.yaml"
        raise CheckpointError(
            f"{key}: {folder} has no {missing}, as it is of an earlier version; resume its run "
            "with this version, which saves one"
        )
    digest = hashlib.sha256(folder.read(MANIFEST)).hexdigest()
    return Origin(found.manifest, Lookups(found.schema, found.config), digest)


def check_ids(folder: Folder, saved: CheckpointManifest, data: Manifest, key: str) -> None:
    """Check that the ids of the training set are those that the checkpoint was trained on.

    Raises:
        CheckpointError: it is another set; names the settings at `key`.
    """
    before = saved.order.content_hash
    if before == data.content_hash or data.grew_from(before):
        return
    raise CheckpointError(
        f"{key}: {folder} was trained on another training set (content {before[:12]}, here "
        f"{data.content_hash[:12]}), whose ids may mean something else; train on that set, or on "
        f"it after logs were added, or set {key}.allow_other_data=true if the ids are the same"
    )


def _wanted(context: WorkerContext, shards: list[LocalShard]) -> dict[str, Wanted]:
    """All tensors of the model; a rank knows only those that it has a part of."""
    here = {shard.name: Wanted(shard.shape, shard.tensor.dtype) for shard in shards}
    return {name: want for found in context.gather(here) for name, want in found.items()}


def _matches(folder: Folder, matching: Matching, wanted: dict[str, Wanted]) -> list[Match]:
    try:
        return matching.matches(wanted)
    except CheckpointError as error:
        raise CheckpointError(f"{_KEY}: {folder}: {error}") from None


def _fill(
    folder: Folder,
    manifest: CheckpointManifest,
    shards: list[LocalShard],
    matches: list[Match],
    context: WorkerContext,
) -> int:
    reader = TensorReader(folder, manifest)
    by_name = {match.name: match for match in matches if match.status != "dropped"}
    fault, num_bytes = context.together(
        lambda: with_retries(
            lambda: fill_faults(lambda: fill_from(reader, manifest, shards, by_name))
        )
    )
    if first := first_fault(context.gather(fault)):
        raise CheckpointError(f"{_KEY}: {first}; name another checkpoint")
    return num_bytes


def _notes(before: Lookups, now: Lookups) -> list[str]:
    """Differences that change what the taken values compute."""
    notes = [
        f"{key} is {here}, was {there}"
        for key, (there, here) in changes(before.config, now.config).items()
        if key.startswith("model.") and key != "model.dropout"
    ]
    common = [
        line
        for line in schema_differences(before.schema, now.schema)
        if any(word in line for word in (": mean ", ": std ", ": mean_ms "))
    ]
    return notes + common
