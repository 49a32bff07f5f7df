"""Reads the values that a warm start takes into the shards of the new model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.warm_start.match import Match

_ROWS = 2**20  # converted at once


def fill_from(
    reader: TensorReader,
    manifest: CheckpointManifest,
    shards: Sequence[LocalShard],
    matches: Mapping[str, Match],
) -> int:
    """Fill this rank's shards with what is taken; all other values stay. Returns the bytes read.

    Args:
        reader: of the checkpoint.
        manifest: of the checkpoint.
        shards: of the new model; they share its memory.
        matches: by name.

    Raises:
        DamagedError: a block's checksum is wrong, or a file ends early.
        OSError: a file can't be read.
    """
    num_bytes = 0
    direct: list[LocalShard] = []
    mapped: list[tuple[LocalShard, LocalShard, Match]] = []
    for shard in shards:
        match = matches[shard.name]
        if match.source is None:
            continue
        shape = manifest.tensors[match.source].shape
        if match.rows is not None:
            parts = _old_rows(shard, match.rows, match.blocks[1])
            if match.blocks[0] != match.blocks[1]:
                num_bytes += sum(_fill_from_blocks(reader, part, match, shape) for part in parts)
            else:
                direct += [part.as_shard(match.source, shape, match.rows[0]) for part in parts]
        elif match.entries:
            whole = torch.empty(shape, dtype=shard.tensor.dtype)
            zeros = (0,) * len(shape)
            mapped.append((LocalShard(match.source, shape, zeros, whole, True), shard, match))
        else:
            direct.append(replace(shard, name=match.source))
    num_bytes += reader.fill([*direct, *(source for source, _, _ in mapped)])
    for source, target, match in mapped:
        _copy_entries(source.tensor, target.tensor, match)
    return num_bytes


class _Rows(NamedTuple):
    """Consecutive rows of a table, or of a column shard of a row-wise state.

    Attributes:
        block: number of the column shard; 0 for a table.
        row: the first row.
        column: the first column.
        tensor: their values in the model.
    """

    block: int
    row: int
    column: tuple[int, ...]
    tensor: torch.Tensor

    def as_shard(self, source: str, shape: tuple[int, ...], num_rows: int) -> LocalShard:
        """These rows in the checkpoint, whose table has `num_rows`."""
        offsets = (self.block * num_rows + self.row, *self.column)
        return LocalShard(source, shape, offsets, self.tensor, replicated=False)


def _old_rows(shard: LocalShard, rows: tuple[int, int], num_blocks: int) -> Iterator[_Rows]:
    """The parts of a shard whose rows the checkpoint has."""
    before, now = rows
    start, stop = shard.offsets[0], shard.offsets[0] + shard.tensor.shape[0]
    for block in range(num_blocks):
        low, high = max(start, block * now), min(stop, block * now + before)
        if low < high:
            part = shard.tensor[low - start : high - start]
            yield _Rows(block, low - block * now, shard.offsets[1:], part)


def _fill_from_blocks(
    reader: TensorReader, part: _Rows, match: Match, shape: tuple[int, ...]
) -> int:
    """Fill a row-wise state that had other column shards; returns the bytes read.

    The state is a mean over the columns of a shard, so that of other columns is the mean of the
    shards' by their common columns: exact for a merged shard, an estimate for a part of one.
    """
    assert match.source is not None and match.rows is not None
    (old, new), num_bytes = match.blocks, 0
    share = [
        max(
            0.0, min((block + 1) / old, (part.block + 1) / new) - max(block / old, part.block / new)
        )
        for block in range(old)
    ]
    for first in range(0, len(part.tensor), _ROWS):
        target = part.tensor[first : first + _ROWS]
        blocks = torch.empty(old, len(target), dtype=target.dtype)
        num_bytes += reader.fill(
            [
                _Rows(block, part.row + first, (), blocks[block]).as_shard(
                    match.source, shape, match.rows[0]
                )
                for block in range(old)
            ]
        )
        target.copy_((torch.tensor(share).unsqueeze(1) * new * blocks).sum(0))
    return num_bytes


def _copy_entries(source: torch.Tensor, target: torch.Tensor, match: Match) -> None:
    """Copy the entries that checkpoint and model have in common."""
    into: list[torch.Tensor] = [torch.arange(side) for side in target.shape]
    out: list[torch.Tensor] = [torch.arange(side) for side in source.shape]
    for dim, pairs in match.entries:
        into[dim], out[dim] = (torch.tensor(places) for places in zip(*pairs, strict=True))
    grid = torch.meshgrid(*out, indexing="ij")
    place = torch.meshgrid(*(one.to(target.device) for one in into), indexing="ij")
    target[place] = source[grid].to(target.device)
