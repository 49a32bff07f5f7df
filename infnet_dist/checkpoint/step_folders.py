"""The folders of checkpoints: their names, and which of them have a manifest."""

import re

from infnet_dist.io.filesystem import Folder

MANIFEST = "manifest.json"
DELTA_MANIFEST = "delta.json"  # of a delta, instead
_STEP = re.compile(r"step-(\d{8,12})")


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder name; None for other names."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def name_of(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def complete_checkpoints(folder: Folder) -> list[Folder]:
    """Checkpoints in `folder` that have a manifest, oldest first.

    Raises:
        OSError: the folder can't be listed.
    """
    steps = sorted(
        (step, name)
        for name, size in folder.entries().items()
        if size is None and (step := step_of(name)) is not None
    )
    return [folder / name for _, name in steps if (folder / name).size(MANIFEST) is not None]


def newest(folder: Folder) -> Folder | None:
    """The newest complete checkpoint in `folder`, if there is one."""
    return next(iter(reversed(complete_checkpoints(folder))), None)
