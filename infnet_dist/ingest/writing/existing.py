"""Training sets that exist already: whether a folder contains the set that settings describe."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from infnet_dist.config.ingest import IngestConfig
from infnet_dist.data.checks.footers import check_parts
from infnet_dist.data.manifest import MANIFEST, Manifest, read_manifest
from infnet_dist.errors import DataError
from infnet_dist.ingest.writing.raw_state import check_same


def training_set_is_current(folder: Path, source: dict[str, Any]) -> bool:
    """Whether `folder` contains the training set that `source` describes.

    Raises:
        DataError: it contains something else, or a set whose parts or raw files have changed; it
            isn't modified.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False
    in_place = source.get("path") == str(folder)  # the manifest is beside the rows
    if in_place and not (folder / MANIFEST).is_file():
        return False
    found = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    if found is None or _with_defaults(found.source) != source:
        remove = f"its {MANIFEST}" if in_place else None
        raise other_settings(folder, found.source if found else None, source, remove=remove)
    check_unchanged(folder, found)
    if found.raw_files:  # empty in sets of earlier versions, and for Petastorm, whose parts are raw
        check_same(folder, found.raw_files, source)
    return True


def _with_defaults(source: dict[str, Any]) -> dict[str, Any]:
    """The settings of a set, with the defaults of keys that are newer than the set."""
    try:
        config: IngestConfig = TypeAdapter(IngestConfig).validate_python(source)
    except ValidationError:
        return source
    return config.model_dump(mode="json")


def check_unchanged(folder: Path, manifest: Manifest) -> None:
    """Check that the parts of a set haven't changed since it was made.

    Raises:
        DataError: a part changed or is missing.
    """
    try:
        check_parts(folder, manifest)
    except DataError as error:
        described = manifest.source.get("source") == "petastorm"  # the data must be kept
        remove = folder / MANIFEST if described else folder
        raise DataError(f"{error}; to make the set again, remove {remove} first") from None


def other_settings(
    folder: Path,
    found: dict[str, Any] | None,
    wanted: dict[str, Any],
    *,
    remove: str | None = None,
) -> DataError:
    """The error for a folder with a set made from other settings, or (None) no training set."""
    difference = _first_difference(found, wanted) if found is not None else ""
    return DataError(
        f"{folder} contains something made from other settings{difference}; it isn't modified: "
        f"choose another data.path or remove {remove or 'the folder'}"
    )


def _first_difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first setting that differs, for messages."""
    for key in dict.fromkeys([*wanted, *found]):
        was, now = found.get(key, "nothing"), wanted.get(key, "nothing")
        if was != now:
            return f" (ingest.{key}: was {was}, is {now} in the run file)"
    return ""
