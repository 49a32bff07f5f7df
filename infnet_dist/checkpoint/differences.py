"""Differences of two checkpoints, which may be of different world sizes and plans."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from infnet_dist.checkpoint.inspection import Advance, as_matrix, parts_of, read_plain
from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.saved_tensors import SavedTensor
from infnet_dist.config.changes import flat
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.parsing import MalformedError, parse_saved_yaml


@dataclass(frozen=True)
class Difference:
    """The difference of a tensor between two checkpoints; a row is changed if any bit is."""

    name: str
    rows: int
    rows_changed: int
    max_abs: float
    mean_abs: float


@dataclass(frozen=True)
class Differences:
    """The differences of two checkpoints.

    Attributes:
        kinds: tensors whose shape or type differs, with both as text.
        config: keys of config.yaml with both values; not part of `equal`.
    """

    only_first: list[str]
    only_second: list[str]
    kinds: dict[str, tuple[str, str]]
    changed: list[Difference]
    num_equal: int
    config: dict[str, tuple[Any, Any]]

    @property
    def equal(self) -> bool:
        """Whether all tensors are equal, bit for bit."""
        return not (self.only_first or self.only_second or self.kinds or self.changed)


def differences(
    first: tuple[Folder, CheckpointManifest],
    second: tuple[Folder, CheckpointManifest],
    advance: Advance,
) -> Differences:
    """Compare two checkpoints, which may be of different world sizes and plans.

    Raises:
        DamagedError: one of them is damaged.
    """
    one, other = first[1].tensors, second[1].tensors
    common = [name for name in one if name in other]
    kinds = {n: (kind(one[n]), kind(other[n])) for n in common if kind(one[n]) != kind(other[n])}
    readers = TensorReader(*first), TensorReader(*second)
    compared = [_difference(readers, one[n], n, advance) for n in common if n not in kinds]
    changed = [found for found in compared if found.rows_changed]
    return Differences(
        only_first=sorted(one.keys() - other.keys()),
        only_second=sorted(other.keys() - one.keys()),
        kinds=kinds,
        changed=changed,
        num_equal=len(compared) - len(changed),
        config=_config_differences(_config(*first), _config(*second)),
    )


def kind(saved: SavedTensor) -> str:
    """Shape and type as text, e.g. `81 x 8 F32`."""
    return f"{' x '.join(map(str, saved.shape)) or 'scalar'} {saved.data_type}"


def _difference(
    readers: tuple[TensorReader, TensorReader], saved: SavedTensor, name: str, advance: Advance
) -> Difference:
    changed, largest, total = 0, torch.zeros((), dtype=torch.float64), 0.0
    for start, stop in readers[0].ranges(name):
        one, other = (as_matrix(reader.rows(name, start, stop)) for reader in readers)
        advance(one.nbytes + other.nbytes)
        for a, b in zip(parts_of(one), parts_of(other), strict=True):
            rows = (a.view(torch.uint8) != b.view(torch.uint8)).any(1)
            if not rows.any():
                continue
            changed += int(rows.sum())
            difference = (a[rows].double() - b[rows].double()).abs()
            largest = torch.maximum(largest, difference.max())
            total += float(difference.sum())
    return Difference(
        name=name,
        rows=saved.shape[0] if saved.shape else 1,
        rows_changed=changed,
        max_abs=float(largest),
        mean_abs=total / max(1, math.prod(saved.shape)),
    )


def _config(folder: Folder, manifest: CheckpointManifest) -> dict[str, Any]:
    """The checkpoint's config by dotted key; empty without one."""
    content = read_plain(folder, manifest, "config.yaml")
    if content is None:
        return {}
    try:
        return dict(flat("", parse_saved_yaml(content.decode()) or {}))
    except (MalformedError, UnicodeDecodeError) as error:
        raise CheckpointError(f"config.yaml in {folder} is not YAML: {error}") from None


def _config_differences(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    return {
        key: (one.get(key), other.get(key))
        for key in sorted({*one, *other})
        if one.get(key) != other.get(key)
    }
