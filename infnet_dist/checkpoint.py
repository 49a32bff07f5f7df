"""Distributed save and load: a checkpoint is complete or it doesn't exist.

    <run folder>/checkpoints/step-00000500/
      .metadata, __0_0.distcp, ...   torch.distributed.checkpoint: model and all optimizer state
      plan.json, config.yaml         what it was trained under
      manifest.json                  step, position, metrics, file sizes; written last

It is written into a hidden sibling and renamed, and loads under any other plan or world size.
The folder must be on storage that all workers share.
"""

import json
import re
import shutil
from pathlib import Path

import torch.distributed.checkpoint as dcp
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.distributed.checkpoint import CheckpointException

from infnet_dist.config import Config, dump_config
from infnet_dist.context import WorkerContext
from infnet_dist.errors import CheckpointError
from infnet_dist.parallel import ShardedModel
from infnet_dist.planning import save_plan

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8})")


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


class CheckpointManifest(BaseModel):
    """What a complete checkpoint says of itself; `files` maps names to bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = 1
    progress: Progress
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
    metrics: dict[str, float],
) -> Path:
    """Save a checkpoint into `folder`; every rank calls it. Old ones beyond keep_last go after.

    Raises:
        CheckpointError: it can't be written (disk full, no rights); on all ranks.
    """
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f".{final.name}.partial"
    if context.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    context.barrier()
    context.together(lambda: _save_state(sharded, partial))
    if context.is_first:
        save_plan(sharded.plan, partial / "plan.json")
        (partial / "config.yaml").write_text(dump_config(config))
        manifest = CheckpointManifest(
            progress=progress,
            world_size=context.world_size,
            metrics={k: v if v == v else None for k, v in metrics.items()},
            files={path.name: path.stat().st_size for path in sorted(partial.iterdir())},
        )
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _prune(folder, config.checkpoint.keep_last)
    context.barrier()
    return final


def load(path: Path, sharded: ShardedModel, context: WorkerContext) -> CheckpointManifest:
    """Load a checkpoint into a model that may have another plan or world size.

    Raises:
        CheckpointError: incomplete, damaged, or of another model; on all ranks.
    """
    manifest = context.together(lambda: read_manifest(path))

    def restore() -> None:
        state = _state(sharded)
        try:
            dcp.load(state, checkpoint_id=path)
        except (Exception, CheckpointException) as error:
            raise CheckpointError(
                f"{path} doesn't fit this run's model: {_reason(error)}; use the config that it "
                f"was trained with ({path / 'config.yaml'})"
            ) from error
        sharded.model.load_state_dict(state["model"])
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


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(p for p in found if _NAME.fullmatch(p.name) and (p / MANIFEST).is_file())


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, if there is one."""
    return next(iter(reversed(complete_checkpoints(folder))), None)


def _state(sharded: ShardedModel) -> dict[str, object]:
    return {"model": sharded.model.state_dict(), "optimizer": sharded.optimizer.state_dict()}


def _save_state(sharded: ShardedModel, folder: Path) -> None:
    try:
        dcp.save(_state(sharded), checkpoint_id=folder)
    except (Exception, CheckpointException) as error:
        raise CheckpointError(
            f"can't save to {folder}: {_reason(error)}; earlier checkpoints are untouched"
        ) from error


def _reason(error: BaseException) -> str:
    """The root error in a line; a CheckpointException (no Exception) holds one per rank."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)


def _prune(folder: Path, keep_last: int) -> None:
    for old in complete_checkpoints(folder)[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)
