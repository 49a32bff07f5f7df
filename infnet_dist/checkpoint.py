"""Distributed save and load: a checkpoint is complete or it doesn't exist.

    <run folder>/checkpoints/step-00000500/
      .metadata, __0_0.distcp, ...   torch.distributed.checkpoint: model and all optimizer state
      plan.json, config.yaml         what it was trained under
      manifest.json                  step, position, metrics, file sizes; written last

It is written into a hidden sibling and renamed. It loads under any world size, and under any plan
(`load` tells the one exception).
The folder must be on storage that all workers share.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from infnet_dist.config import Config, dump_config
from infnet_dist.context import WorkerContext
from infnet_dist.errors import CheckpointError
from infnet_dist.parallel import ShardedModel
from infnet_dist.planning.plan import Plan, load_plan, save_plan, shape

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8})")
_TABLE = re.compile(r"model\..*\.embeddings\.([^.]+)\.weight")
_DATA_TYPES = {torch.float32: "fp32", torch.float16: "fp16"}


class Progress(BaseModel):
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        examples: rows trained on, over all workers.
        epoch: the current epoch.
        consumed: intervals of the epoch's order that are done, over all workers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(0, ge=0)
    examples: int = Field(0, ge=0)
    epoch: int = Field(0, ge=0)
    consumed: tuple[tuple[int, int], ...] = ()


class DataOrder(BaseModel):
    """What fixes the order of rows that `Progress.consumed` speaks of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    content_hash: str
    seed: int
    shuffle_rows: int
    version: int = 1  # of the way in which data/order.py orders rows; checkpoints before 2 lack it


class CheckpointManifest(BaseModel):
    """What a complete checkpoint says of itself; `files` maps names to bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = 1
    progress: Progress
    order: DataOrder
    world_size: int
    metrics: dict[str, float | None]
    files: dict[str, int]


def save(
    folder: Path,
    sharded: ShardedModel,
    config: Config,
    context: WorkerContext,
    *,
    progress: Progress,
    order: DataOrder,
    metrics: dict[str, float],
) -> Path:
    """Save a checkpoint into `folder`; every rank calls it. Old ones beyond keep_last go after.

    Raises:
        CheckpointError: it can't be written (disk full, no rights); on all ranks.
    """
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f".{final.name}.partial"

    def begin() -> None:
        for left_over in folder.glob(".step-*"):
            shutil.rmtree(left_over)
        partial.mkdir(parents=True)

    def finish() -> None:
        save_plan(sharded.plan, partial / "plan.json")
        (partial / "config.yaml").write_text(dump_config(config))
        manifest = CheckpointManifest(
            progress=progress,
            order=order,
            world_size=context.world_size,
            metrics={k: v if v == v else None for k, v in metrics.items()},
            files={path.name: path.stat().st_size for path in sorted(partial.iterdir())},
        )
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
        _put_in_place(partial, final)
        for old in complete_checkpoints(folder)[: -config.checkpoint.keep_last]:
            shutil.rmtree(old, ignore_errors=True)

    with _told_as_checkpoint_error(folder):
        context.together(lambda: begin() if context.is_first else None)
        context.together(lambda: dcp.save(_state(sharded), checkpoint_id=partial))
        context.together(lambda: finish() if context.is_first else None)
    return final


def load(
    path: Path, sharded: ShardedModel, context: WorkerContext, *, with_optimizer: bool = True
) -> CheckpointManifest:
    """Load a checkpoint into a model that may have another plan or world size.

    Row-wise Adagrad's state can't move between plans with another number of column shards (it is
    kept per column shard); `with_optimizer=False` loads the weights alone, under any plan.

    Raises:
        CheckpointError: incomplete, damaged, or of another model; on all ranks.
    """
    manifest = context.together(lambda: read_manifest(path))

    def restore() -> None:
        state = _state(sharded, with_optimizer=with_optimizer)
        _check_names(path, set(state["model"]))
        try:
            dcp.load(state, checkpoint_id=path)
        except (Exception, CheckpointException) as error:
            raise CheckpointError(
                f"{path} doesn't fit this run's model: {_reason(error)}; use the config that it "
                f"was trained with ({path / 'config.yaml'})"
            ) from error
        sharded.model.load_state_dict(state["model"])
        if with_optimizer:
            sharded.optimizer.load_state_dict(state["optimizer"])

    context.together(restore)
    return manifest


def read_manifest(path: Path) -> CheckpointManifest:
    """Read and check a checkpoint's manifest and the sizes of its files.

    Raises:
        CheckpointError: missing, incomplete or damaged.
    """
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint {path}: no such folder")
    if not (path / MANIFEST).is_file():
        raise CheckpointError(
            f"checkpoint {path} is incomplete (no {MANIFEST}); take another one in {path.parent}"
        )
    try:
        manifest = CheckpointManifest.model_validate(json.loads((path / MANIFEST).read_text()))
    except (json.JSONDecodeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"checkpoint {path} has a damaged {MANIFEST}: {first}") from None
    for name, size in manifest.files.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            raise CheckpointError(
                f"checkpoint {path} is damaged: {name} has {found} bytes, expected {size}; "
                f"take another one in {path.parent}"
            )
    return manifest


def differences_from(path: Path, plan: Plan) -> list[str]:
    """What keeps the checkpoint from being loaded under `plan`, by its tensors; one line each.

    Raises:
        CheckpointError: the checkpoint is incomplete or damaged.
    """
    read_manifest(path)
    saved = {
        match[1]: f"{' x '.join(map(str, tensor.size))} {_DATA_TYPES[tensor.properties.dtype]}"
        for key, tensor in FileSystemReader(path).read_metadata().state_dict_metadata.items()
        if (match := _TABLE.fullmatch(key)) and isinstance(tensor, TensorStorageMetadata)
    }
    planned = {table.name: shape(table) for table in plan.made_for.tables.tables}
    then = load_plan(path / "plan.json").tables
    lines = []
    for name in sorted({*saved, *planned}):
        here, there = planned.get(name), saved.get(name)
        if here != there:
            lines.append(
                f"table {name!r} is {there or 'missing'} in the checkpoint, "
                f"{here or 'missing'} in the plan"
            )
            continue
        old, new = then[name], plan.tables[name]
        if old.columns != new.columns:
            lines.append(
                f"table {name!r} is {old.sharding_type} by {old.columns} columns in the "
                f"checkpoint, {new.sharding_type} by {new.columns} in the plan: the optimizer's "
                "state is kept by column shard and can't be loaded, weights alone can"
            )
    return lines


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(p for p in found if _NAME.fullmatch(p.name) and (p / MANIFEST).is_file())


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, if there is one."""
    return next(iter(reversed(complete_checkpoints(folder))), None)


def _state(sharded: ShardedModel, *, with_optimizer: bool = True) -> dict[str, Any]:
    state = {"model": sharded.model.state_dict()}
    return state | ({"optimizer": sharded.optimizer.state_dict()} if with_optimizer else {})


def _put_in_place(partial: Path, final: Path) -> None:
    """Rename; a checkpoint of the same step is moved aside first and deleted last."""
    aside = partial.with_suffix(".replaced")
    if final.exists():
        final.rename(aside)
    partial.rename(final)
    shutil.rmtree(aside, ignore_errors=True)


def _check_names(path: Path, expected: set[str]) -> None:
    """The loader fills what the model asks for; that nothing else was saved is checked here."""
    keys = FileSystemReader(path).read_metadata().state_dict_metadata
    saved = {key.removeprefix("model.") for key in keys if key.startswith("model.")}
    if saved != expected:
        some = sorted(saved ^ expected)[:3]
        raise CheckpointError(
            f"{path} doesn't fit this run's model: it has {len(saved - expected)} tensors more and "
            f"{len(expected - saved)} fewer, e.g. {', '.join(some)}; use the config that it was "
            f"trained with ({path / 'config.yaml'})"
        )


@contextlib.contextmanager
def _told_as_checkpoint_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except (Exception, CheckpointException) as error:
        raise CheckpointError(
            f"can't save to {folder}: {_reason(error)}; earlier checkpoints are untouched"
        ) from error


def _reason(error: BaseException) -> str:
    """The root error in a line; a CheckpointException (no Exception) holds one per rank."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
