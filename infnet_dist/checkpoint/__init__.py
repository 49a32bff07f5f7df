"""Distributed save and load: a checkpoint is complete and intact, or it doesn't exist.

It loads under any world size, and under any plan with one exception (see `load`). The folder must
be on storage that all workers share. `infnet checkpoint --help` lists the commands.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infnet_dist.checkpoint.files import DamagedError, NotFiniteError
    from infnet_dist.checkpoint.loading import differences_from, load, load_newest
    from infnet_dist.checkpoint.manifest import (
        MAX_LEFT_OUT,
        CheckpointManifest,
        DataOrder,
        SavedProgress,
        Throughput,
        read_manifest,
    )
    from infnet_dist.checkpoint.saving import SavedCheckpoint, Saver
    from infnet_dist.checkpoint.step_folders import MANIFEST, complete_checkpoints, newest
    from infnet_dist.checkpoint.trained_schema import check_readable, read_schema
    from infnet_dist.checkpoint.writable import check_writable
    from infnet_dist.checkpoint.writing import CheckpointMetadata

__all__ = [
    "MANIFEST",
    "MAX_LEFT_OUT",
    "CheckpointManifest",
    "CheckpointMetadata",
    "DamagedError",
    "DataOrder",
    "NotFiniteError",
    "SavedCheckpoint",
    "SavedProgress",
    "Saver",
    "Throughput",
    "check_readable",
    "check_writable",
    "complete_checkpoints",
    "differences_from",
    "load",
    "load_newest",
    "newest",
    "read_manifest",
    "read_schema",
]

_MODULES = {
    "files": ("DamagedError", "NotFiniteError"),
    "loading": ("differences_from", "load", "load_newest"),
    "saving": ("SavedCheckpoint", "Saver"),
    "step_folders": ("MANIFEST", "complete_checkpoints", "newest"),
    "trained_schema": ("check_readable", "read_schema"),
    "writable": ("check_writable",),
    "writing": ("CheckpointMetadata",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a name on first use: TorchRec takes seconds, and the command doesn't need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PLACES.get(name, 'manifest')}")
    return getattr(module, name)
