"""Reads the values that a warm start takes into the shards of the new model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.reading import TensorReader
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.warm_start.match import Match


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
    direct: list[LocalShard] = []
    mapped: list[tuple[LocalShard, LocalShard, Match]] = []
    for shard in shards:
        match = matches[shard.name]
        if match.source is None:
            continue
        shape = manifest.tensors[match.source].shape
        if match.rows is not None:
            direct += _old_rows(replace(shard, name=match.source), shape, match.rows)
        elif match.entries:
            whole = torch.empty(shape, dtype=shard.tensor.dtype)
            zeros = (0,) * len(shape)
            mapped.append((LocalShard(match.source, shape, zeros, whole, True), shard, match))
        else:
            direct.append(replace(shard, name=match.source))
    num_bytes = reader.fill([*direct, *(source for source, _, _ in mapped)])
    for source, target, match in mapped:
        _copy_entries(source.tensor, target.tensor, match)
    return num_bytes


def _old_rows(
    shard: LocalShard, saved: tuple[int, ...], rows: tuple[int, int]
) -> Iterator[LocalShard]:
    """The parts of a shard that belong to rows of the checkpoint, at their places there.

    A row-wise state has a block of all rows for each column shard, one after the other.
    """
    before, now = rows
    start, stop = shard.offsets[0], shard.offsets[0] + shard.tensor.shape[0]
    for block in range(saved[0] // before):
        low, high = max(start, block * now), min(stop, block * now + before)
        if low < high:
            part = shard.narrow(low - start, high - start)
            offset = low - block * now + block * before
            yield replace(part, shape=saved, offsets=(offset, *shard.offsets[1:]))


def _copy_entries(source: torch.Tensor, target: torch.Tensor, match: Match) -> None:
    """Copy the entries that checkpoint and model have in common."""
    into: list[torch.Tensor] = [torch.arange(side) for side in target.shape]
    out: list[torch.Tensor] = [torch.arange(side) for side in source.shape]
    for dim, pairs in match.entries:
        into[dim], out[dim] = (torch.tensor(places) for places in zip(*pairs, strict=True))
    grid = torch.meshgrid(*out, indexing="ij")
    place = torch.meshgrid(*(one.to(target.device) for one in into), indexing="ij")
    target[place] = source[grid].to(target.device)
