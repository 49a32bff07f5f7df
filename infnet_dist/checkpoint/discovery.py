"""Discovery of the checkpoints in a folder and of their state, judged by file sizes alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from infnet_dist.checkpoint.manifest import (
    CheckpointManifest,
    RenamedError,
    UnreadableError,
    read_manifest,
)
from infnet_dist.checkpoint.step_folders import MANIFEST, step_of
from infnet_dist.errors import CheckpointError, UserError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.parsing import MAX_YAML_CHARACTERS, parse_yaml

State = Literal["complete", "incomplete", "damaged", "renamed", "unreadable"]


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint's folder.

    Attributes:
        step: from the folder's name.
        state: complete: all files exist with their sizes; their content wasn't read. incomplete: no
            manifest. renamed: the name and the manifest have different steps. unreadable: the
            storage failed.
        num_bytes: of all files in the folder.
        written_ns: modification time of the newest file; 0 if the storage has none.
        fault: the fault, if there is one.
        manifest: of a complete checkpoint.
    """

    folder: Folder
    step: int
    state: State
    num_bytes: int
    written_ns: int
    fault: str = ""
    manifest: CheckpointManifest | None = None


def discover(folder: Folder) -> list[FoundCheckpoint]:
    """All checkpoints in a folder, oldest first.

    Raises:
        CheckpointError: the folder can't be listed.
    """
    names = [name for name, size in _entries(folder).items() if size is None]
    steps = sorted((step, name) for name in names if (step := step_of(name)) is not None)
    return [examine(folder / name) for _, name in steps]


def examine(folder: Folder) -> FoundCheckpoint:
    """The state of one checkpoint."""
    step = step_of(folder.name) or 0
    try:
        entries = folder.entries()
        sizes = {name: size for name, size in entries.items() if size is not None}
        newest = [MANIFEST] if MANIFEST in sizes else sizes
        written_ns = max((folder.modified_ns(name) for name in newest), default=0)
    except OSError as error:
        return FoundCheckpoint(folder, step, "unreadable", 0, 0, f"{folder} can't be read: {error}")
    num_bytes = sum(sizes.values())
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        state: State = "damaged" if MANIFEST in entries else "incomplete"
        if isinstance(error, UnreadableError | RenamedError):
            state = "unreadable" if isinstance(error, UnreadableError) else "renamed"
        return FoundCheckpoint(folder, step, state, num_bytes, written_ns, str(error))
    return FoundCheckpoint(folder, step, "complete", num_bytes, written_ns, manifest=manifest)


def is_checkpoint(folder: Folder) -> bool:
    """Whether this is one checkpoint, or the rest of one, rather than a folder of several."""
    if step_of(folder.name) is not None:
        return True
    entries = _entries(folder)
    return MANIFEST in entries and not any(step_of(name) is not None for name in entries)


def checkpoints_folder(url: str) -> Folder:
    """The folder of a run's checkpoints: this folder, or checkpoints/ in it.

    Raises:
        CheckpointError: it holds no checkpoint, not even an incomplete one.
    """
    folder = Folder(url)
    if is_checkpoint(folder):
        raise CheckpointError(
            f"{folder} is one checkpoint; pass the folder that holds it: {folder.parent}"
        )
    entries = _entries(folder)
    for place, names in ((folder, entries), (folder / "checkpoints", None)):
        if names is None and "checkpoints" not in entries:
            continue
        if any(step_of(name) is not None for name in (_entries(place) if names is None else names)):
            return place
    if not entries:
        raise CheckpointError(f"no folder {folder}, or an empty one; pass the folder of a run")
    raise CheckpointError(
        f"no checkpoints (step-00000500 and the like) in {folder}{_elsewhere(folder, entries)}; "
        "pass the folder of a run, or of its checkpoints"
    )


def open_checkpoint(url: str) -> tuple[Folder, CheckpointManifest]:
    """One checkpoint and its manifest.

    Raises:
        CheckpointError: it is incomplete or damaged, or a folder of several.
    """
    folder = Folder(url)
    if not is_checkpoint(folder):
        names = sorted(name for name in _entries(folder) if step_of(name) is not None)
        if not names and "checkpoints" in _entries(folder):
            folder /= "checkpoints"
            names = sorted(name for name in _entries(folder) if step_of(name) is not None)
        if names:
            raise CheckpointError(f"{folder} holds {_some(names)}; pass one of them")
    return folder, read_manifest(folder)


def _entries(folder: Folder) -> dict[str, int | None]:
    try:
        return folder.entries()
    except OSError as error:
        raise CheckpointError(f"{folder} can't be listed: {error}") from None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]}"


def _elsewhere(folder: Folder, entries: dict[str, int | None]) -> str:
    """The place of a run's checkpoints if its config.yaml names another one."""
    if not 0 < (entries.get("config.yaml") or 0) <= MAX_YAML_CHARACTERS:
        return ""
    try:
        config = parse_yaml(folder.read("config.yaml").decode())
        place, name = config["checkpoint"]["folder"], config["run"]["name"]
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return ""
    return f" (config.yaml names {Folder(place) / name / folder.name})" if place else ""
