"""Warnings about missing values: ids that don't occur in train, and joins without a match."""

import logging
from collections.abc import Mapping

from infnet_dist.data.manifest import Manifest
from infnet_dist.ingest.listing import some

_SHARE = 0.1  # minimum share for a warning; for unknown ids, above the share in train

log = logging.getLogger(__name__)


def warn_of_unknown(manifest: Manifest) -> None:
    """Warn of features whose ids are unknown in valid or test far more often than in train.

    Likewise of vectors that are null.

    Id 0 means null, and values that are rare or missing in train. If train has few of
    them, only dropped ids train its row. The shares are those of the samples in the manifest. In
    hashed tables, values that are missing in train share trained rows with others.
    """
    hashed = manifest.ingested.hashed if manifest.ingested is not None else {}
    unseen = [f"{n} ({t.unseen:.0%})" for n, t in hashed.items() if t.unseen >= _SHARE]
    if unseen:
        log.warning(
            "valid and test: values of hashed tables that don't occur in train: %s", some(unseen)
        )
    if manifest.statistics is None:
        return
    splits = manifest.statistics.splits
    tables = {feature.key: feature.table for feature in manifest.schema_.table_features}
    for split in splits.keys() - {"train"}:
        _warn_of_null_vectors(split, splits[split].vectors, splits["train"].vectors)
        found = []
        for key, feature in splits[split].features.items():
            train = splits["train"].features[key]
            unknown, in_train = 1 - feature.coverage, 1 - train.coverage
            if train.mean_length and unknown - in_train >= _SHARE:
                shares = f"{unknown:.0%}, in train {in_train:.0%}"
                found.append(f"{key} of table {tables[key]} ({shares})")
        if found:
            log.warning(
                "%s: ids that are null or don't occur in train: %s; all of them share row 0, which "
                "is trained by dropping ids (tables.unknown_id_rate)",
                split,
                some(found),
            )


def _warn_of_null_vectors(
    split: str, shares: Mapping[str, float], in_train: Mapping[str, float]
) -> None:
    """Warn of vectors that rows of a split have less often than those of train."""
    found = [
        f"{name} ({1 - share:.0%}, in train {1 - in_train[name]:.0%})"
        for name, share in shares.items()
        if in_train.get(name, 0.0) - share >= _SHARE
    ]
    if found:
        log.warning("%s: vectors that are null, which get a default: %s", split, some(found))


def warn_of_joins(unmatched: Mapping[str, int], rows: int) -> None:
    """Warn of side tables that lack many keys of the logs.

    Args:
        unmatched: by join, number of rows whose key is null or missing in the side table.
        rows: number of rows of the logs.
    """
    for name, number in unmatched.items():
        if number >= _SHARE * max(rows, 1):
            log.warning(
                "joins.%s: no match for %s of %s rows (%.0f %%), so their joined columns are null; "
                "check that its keys are those of the logs",
                name,
                f"{number:,}",
                f"{rows:,}",
                100 * number / rows,
            )
