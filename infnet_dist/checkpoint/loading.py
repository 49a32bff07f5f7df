"""Loads the newest intact checkpoint, under any plan and world size."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from infnet_dist.checkpoint.files import DamagedError
from infnet_dist.checkpoint.inspection import row_state, tables_of
from infnet_dist.checkpoint.manifest import CheckpointManifest, UnreadableError, read_manifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.shards import LocalShard, ModelState
from infnet_dist.checkpoint.step_folders import complete_checkpoints
from infnet_dist.checkpoint.tensor_names import CHANGED
from infnet_dist.checkpoint.trained_optimizers import check_same_optimizers, read_config
from infnet_dist.checkpoint.trained_schema import check_same, read_schema
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.retries import retrying
from infnet_dist.lookups import padded_width
from infnet_dist.planning.plan import Plan, shape
from infnet_dist.schema import Schema
from infnet_dist.sharding.build import ShardedModel

_DATA_TYPES = {"F32": "fp32", "F16": "fp16"}
_RETRY_S = 60.0
T = TypeVar("T")
log = logging.getLogger("infnet_dist")


def load_newest(
    folder: Folder, sharded: ShardedModel, context: WorkerContext
) -> tuple[CheckpointManifest | None, list[str]]:
    """Load the newest checkpoint in `folder` that is complete and intact.

    Returns:
        Its manifest, None if there is no checkpoint at all; and the names of skipped checkpoints.

    A damaged checkpoint is skipped with a warning.

    Raises:
        UnreadableError: the storage failed for a minute, which skips nothing; on all ranks.
        CheckpointError: it is of another model, or all are damaged; on all ranks.
    """
    candidates = context.on_first(lambda: with_retries(lambda: _candidates(folder)))
    faults: dict[str, str] = {}  # by name
    for candidate in reversed(candidates):
        fault, manifest = _try(candidate, sharded, context)
        if manifest is not None:
            return manifest, list(faults)
        faults[candidate.name] = fault
        if context.is_first:
            log.warning("skipped: %s", fault)
    if faults:
        why = "; ".join(faults.values())
        raise CheckpointError(
            f"none of the {len(faults)} checkpoints in {folder} is intact: {why}; "
            "to start from the beginning set another --run-id"
        )
    return None, []


def load(
    folder: Folder, sharded: ShardedModel, context: WorkerContext, *, with_optimizer: bool = True
) -> CheckpointManifest:
    """Load a checkpoint into a model that may have another plan or world size.

    Row-wise Adagrad's state is kept per column shard, so it can't be loaded under a plan with
    another number of column shards; `with_optimizer=False` loads the weights alone, under any plan.

    Raises:
        CheckpointError: incomplete, damaged, or of another model; on all ranks.
    """
    fault, manifest = _try(folder, sharded, context, with_optimizer=with_optimizer)
    if manifest is None:
        raise CheckpointError(f"{fault}; load another one in {folder.parent}")
    return manifest


def _candidates(folder: Folder) -> list[Folder]:
    try:
        return complete_checkpoints(folder)
    except OSError as error:
        raise UnreadableError(f"{folder} can't be listed: {error}") from None


def _try(
    folder: Folder, sharded: ShardedModel, context: WorkerContext, *, with_optimizer: bool = True
) -> tuple[str, CheckpointManifest | None]:
    """Load a checkpoint; returns a fault of its files, on any rank, or the manifest."""
    start = time.perf_counter()
    fault, found = context.on_first(
        lambda: with_retries(lambda: read_description(folder, with_optimizer=with_optimizer))
    )
    if found is None:
        return fault, None
    manifest, trained, config = found
    context.together(lambda: check_same(folder, manifest, trained, sharded.lookups.schema))
    if config is not None:
        context.together(lambda: check_same_optimizers(folder, config, sharded.lookups))
    state = ModelState(sharded, with_optimizer=with_optimizer)
    shards = state.shards()
    _check_fits(folder, manifest, shards, context, with_optimizer=with_optimizer)
    reader = TensorReader(folder, manifest)
    fault, num_bytes = context.together(
        lambda: with_retries(lambda: fill_faults(lambda: reader.fill(shards)))
    )
    if first := first_fault(context.gather(fault)):
        return first, None
    context.together(state.load_state_dict)
    seconds = time.perf_counter() - start
    if context.is_first:
        size = tqdm.format_sizeof(num_bytes, "B", 1024)
        log.info("loaded %s (%s on rank 0 in %.1f s)", folder, size, seconds)
    return "", manifest


class Description(NamedTuple):
    """What describes a checkpoint's tensors; the config only if optimizers are loaded."""

    manifest: CheckpointManifest
    schema: Schema | None
    config: Config | None


def read_description(folder: Folder, *, with_optimizer: bool) -> tuple[str, Description | None]:
    """A fault of a checkpoint's description; without one, the description.

    Raises:
        UnreadableError: the storage failed.
    """
    try:
        manifest = read_manifest(folder)
        config = read_config(folder, manifest) if with_optimizer else None
        return "", Description(manifest, read_schema(folder, manifest), config)
    except UnreadableError:
        raise
    except CheckpointError as error:
        return str(error), None
    except OSError as error:
        raise UnreadableError(f"can't read a checkpoint: {error}") from error


def fill_faults(fill: Callable[[], int]) -> tuple[str, int]:
    """A fault of a checkpoint's files, empty if none, and the bytes that `fill` read.

    Raises:
        UnreadableError: the storage failed.
    """
    try:
        return "", fill()
    except DamagedError as error:
        return str(error), 0
    except OSError as error:
        raise UnreadableError(f"can't read a checkpoint: {error}") from error


def fill_alone(reader: TensorReader, shards: Sequence[LocalShard]) -> None:
    """Fill tensors of this process, without other ranks.

    Raises:
        CheckpointError: the checkpoint is damaged, or the storage failed for a while.
    """
    fault, _ = with_retries(lambda: fill_faults(lambda: reader.fill(shards)))
    if fault:
        raise CheckpointError(fault)


def with_retries(read: Callable[[], T]) -> T:
    """Retry for a while if the storage fails, which is no damage of the checkpoint."""
    return retrying(_RETRY_S, lambda error: isinstance(error, UnreadableError))(read)


def first_fault(faults: list[str]) -> str:
    """The first text that isn't empty; empty if all are."""
    return next((fault for fault in faults if fault), "")


def _check_fits(
    folder: Folder,
    manifest: CheckpointManifest,
    shards: list[LocalShard],
    context: WorkerContext,
    *,
    with_optimizer: bool,
) -> None:
    """Raise on all ranks unless tensors, shapes and types of checkpoint and model are equal."""
    wrong = [_difference(manifest, shard) for shard in shards if shard.name in manifest.tensors]
    known = {name for names in context.gather({p.name for p in shards}) for name in names}
    wanted = "" if with_optimizer else "model."
    saved = {
        name
        for name in manifest.tensors
        if name.startswith(wanted) and not name.startswith(CHANGED)
    }
    if saved != known:
        some = sorted(saved ^ known)[:3]
        wrong.append(
            f"it has {len(saved - known)} tensors more and {len(known - saved)} fewer, "
            f"e.g. {', '.join(some)}"
        )
    found = [fault for fault in wrong if fault]
    if first := first_fault(context.gather(found[0] if found else "")):
        raise CheckpointError(
            f"{folder} doesn't fit this run's model: {first}; use the config of its "
            f"training ({folder / 'config.yaml'})"
        )


def _difference(manifest: CheckpointManifest, shard: LocalShard) -> str:
    saved = manifest.tensors[shard.name]
    if saved.shape != shard.shape:
        return f"{shard.name} is {list(saved.shape)} there, {list(shard.shape)} here"
    if saved.dtype != shard.tensor.dtype:
        return f"{shard.name} is {saved.dtype} there, {shard.tensor.dtype} here"
    return ""


def differences_from(folder: Folder, plan: Plan) -> list[str]:
    """Reasons, one line each, why the checkpoint's tensors can't be loaded under `plan`.

    Raises:
        CheckpointError: the checkpoint is incomplete or damaged.
    """
    manifest = read_manifest(folder)
    tensors = tables_of(manifest)
    saved = {name: manifest.tensors[tensor] for name, tensor in tensors.items()}
    tables = plan.made_for.tables
    planned = {table.name: tables.complete(table) for table in tables.tables}
    config = read_config(folder, manifest)
    lines = []
    for name in sorted({*saved, *planned}):
        there = "missing"
        if name in saved:
            rows, columns = saved[name].shape
            data_type = _DATA_TYPES.get(saved[name].data_type, saved[name].data_type)
            there = f"{rows} x {padded_width(columns)} {data_type}"
        here = shape(planned[name]) if name in planned else "missing"
        if here != there:
            lines.append(f"table {name!r} is {there} in the checkpoint, {here} in the plan")
            continue
        if config is not None:
            settings = config.table(name)
            optimizer = settings.optimizer if settings.trainable else "sgd"
            if optimizer != planned[name].optimizer:
                lines.append(
                    f"table {name!r} was trained by {optimizer} in the checkpoint, "
                    f"{planned[name].optimizer} in the plan: its state can't be loaded, weights "
                    "alone can"
                )
                continue
        state = row_state(manifest, tensors[name])
        old = state.column_shards if state else None
        new = planned[name].embedding_dim // plan.tables[name].columns
        if old not in (None, new):
            lines.append(
                f"the optimizer's state of table {name!r} is of {old} column shards in the "
                f"checkpoint, {new} in the plan: it can't be loaded, weights alone can"
            )
    return lines
