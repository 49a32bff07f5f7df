"""Distributed save and load: a checkpoint is complete and intact, or it doesn't exist.

It loads under any world size, and under any plan (`load` tells the one exception). The folder must
be on storage that all workers share. `python -m infnet_dist.checkpoint --help` looks after them.
"""

from infnet_dist.checkpoint.files import DamagedError, NotFiniteError
from infnet_dist.checkpoint.loading import differences_from, load, load_newest
from infnet_dist.checkpoint.manifest import (
    MANIFEST,
    CheckpointManifest,
    DataOrder,
    Progress,
    complete_checkpoints,
    newest,
    read_manifest,
)
from infnet_dist.checkpoint.saving import Facts, Saved, Saver

__all__ = [
    "MANIFEST",
    "CheckpointManifest",
    "DamagedError",
    "DataOrder",
    "Facts",
    "NotFiniteError",
    "Progress",
    "Saved",
    "Saver",
    "complete_checkpoints",
    "differences_from",
    "load",
    "load_newest",
    "newest",
    "read_manifest",
]
