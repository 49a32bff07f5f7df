"""What becomes of one tensor of the new model, or of the checkpoint."""

from dataclasses import dataclass
from typing import Literal

import torch

from infnet_dist.checkpoint.saved_tensors import SavedTensor

Status = Literal["taken", "grown", "converted", "new", "dropped", "refused"]
Entries = tuple[tuple[int, tuple[tuple[int, int], ...]], ...]


@dataclass(frozen=True)
class Wanted:
    """A whole tensor of the new model."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Match:
    """What becomes of a tensor.

    Attributes:
        name: in the new model; for `dropped` in the checkpoint.
        shape: of the whole tensor.
        status: taken: all values, bit for bit. grown: old entries or rows bit for bit, new ones
            have their initial values. converted: taken or grown in another data type, or a row-wise
            state of another number of column shards. new: initial values. dropped: the model has no
            tensor of this name. refused: an error.
        detail: the reason, or what changed; may be empty.
        source: name in the checkpoint of the tensor whose values are taken; None for none.
        rows: of a table or a state of its rows: number of its rows in the checkpoint and now.
        blocks: of a row-wise state, its number of column shards in the checkpoint and now: it has a
            value for each row and shard, one shard after the other.
        entries: by dimension that isn't taken as it is, pairs of a place now and in the checkpoint.
    """

    name: str
    shape: tuple[int, ...]
    status: Status
    detail: str = ""
    source: str | None = None
    rows: tuple[int, int] | None = None
    blocks: tuple[int, int] = (1, 1)
    entries: Entries = ()


def new(name: str, wanted: Wanted, detail: str = "") -> Match:
    """A tensor that keeps its initial values."""
    return Match(name, wanted.shape, "new", detail)


def refused(name: str, wanted: Wanted, detail: str) -> Match:
    """A tensor that can't be taken, which is an error; `detail` ends with the next move."""
    return Match(name, wanted.shape, "refused", detail)


def status_of(wanted: Wanted, saved: SavedTensor, *, grown: bool) -> tuple[Status, str]:
    """Status and detail of a tensor whose values are taken."""
    if wanted.dtype != saved.dtype:
        here = str(wanted.dtype).removeprefix("torch.")
        return "converted", f"{here}, was {str(saved.dtype).removeprefix('torch.')}"
    return ("grown" if grown else "taken"), ""
