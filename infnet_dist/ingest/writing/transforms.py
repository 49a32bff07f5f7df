"""Writes the transforms of a training set beside its parts, one folder per ingest."""

from pathlib import Path

from infnet_dist.data.manifest import TransformsFile
from infnet_dist.features.definition import Definition
from infnet_dist.features.ids import sha256
from infnet_dist.features.storage import save_transforms


def transforms_folder(folder: Path, generation: int = 1) -> Path:
    """The folder of the transforms of an ingest, in a training set."""
    return folder / "transforms" / f"g{generation:04d}"


def write_transforms(folder: Path, definition: Definition) -> TransformsFile:
    """Write the definition beside its key maps; returns the manifest's entry.

    Args:
        folder: the training set.
        definition: its transforms.
    """
    path = save_transforms(transforms_folder(folder, definition.generation), definition)
    return TransformsFile(file=str(path.relative_to(folder)), sha256=sha256(path))
