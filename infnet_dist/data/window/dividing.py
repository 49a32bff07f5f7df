"""Divides the rows of train and valid at a time (`data.valid_from`)."""

from pathlib import Path

from infnet_dist.data.manifest import Manifest
from infnet_dist.data.window.cuts import cut_parts
from infnet_dist.data.window.selection import EmptyWindowError, check_times, split_of, time_text
from infnet_dist.errors import DataError


def divide_at(folder: Path, manifest: Manifest, at_ms: int) -> Manifest:
    """The manifest with the rows of train and valid before `at_ms` as train, all others as valid.

    Args:
        folder: the training set.
        manifest: its manifest; with or without valid.
        at_ms: epoch milliseconds.

    Raises:
        EmptyWindowError: one of the splits would have no rows.
        DataError: the times of a part are unknown, or the negative rows of train are a sample.
    """
    if manifest.ingested is not None and (sampled := manifest.ingested.negatives) is not None:
        raise DataError(
            f"data.valid_from: {folder} has {sampled.share:g} of the negative rows of train, and "
            "all of those of valid (ingest.negatives), so they can't be divided anew; remove "
            "data.valid_from, or ingest without negatives"
        )
    train = manifest.split("train")
    there = [train, *([manifest.splits["valid"]] if "valid" in manifest.splits else [])]
    parts = [part for split in there for part in split.parts]
    check_times(folder, parts, "data.valid_from")
    first = min(split.time_range_ms[0] for split in there)
    last = max(split.time_range_ms[1] for split in there)
    splits = dict(manifest.splits)
    for name, times_ms in (("train", (first, at_ms - 1)), ("valid", (at_ms, last))):
        found = cut_parts(folder, parts, times_ms, manifest.schema_.time_column)
        if not found:
            raise EmptyWindowError(
                f"data.valid_from is {time_text(at_ms)}, which leaves no rows for {name}: those of "
                f"{' and '.join(['train', 'valid'][: len(there)])} are from {time_text(first)} to "
                f"{time_text(last)} UTC; choose a time between them"
            )
        splits[name] = split_of(train, found)
    return manifest.model_copy(update={"splits": splits})
