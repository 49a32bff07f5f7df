"""Checkpoints made by hand, without a model: any tensors, cut in any way."""

import itertools
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import torch

from infnet_dist.checkpoint.files import BLOCK_BYTES, pack, write_file
from infnet_dist.checkpoint.manifest import (
    CheckpointManifest,
    DataOrder,
    SavedProgress,
    dump_manifest,
)
from infnet_dist.checkpoint.saved_tensors import SavedFile, SavedTensor
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.checkpoint.step_folders import MANIFEST, name_of
from infnet_dist.checkpoint.writing import merge_chunks
from infnet_dist.io.filesystem import Folder

TABLE = "model.tables.{0}.weight"
STATE = "optimizer.tables.{0}.momentum1"
OLD_TABLE = "model.model.sparse.embeddings.embeddings.{0}.weight"  # of earlier versions
OLD_STATE = "optimizer.model.sparse.embeddings.embeddings.{0}.weight.{0}.momentum1"


class Part(NamedTuple):
    """A rectangle of a tensor on a rank."""

    rank: int
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


class Cut(NamedTuple):
    """A tensor and the parts that it is saved in."""

    tensor: torch.Tensor
    parts: list[Part]


def whole(tensor: torch.Tensor, rank: int = 0) -> Cut:
    return Cut(tensor, [Part(rank, (0,) * tensor.ndim, tuple(tensor.shape))])


def by_rows(tensor: torch.Tensor, ranks: int) -> Cut:
    step = -(-len(tensor) // ranks)
    parts = []
    for rank in range(ranks):
        first = min(rank * step, len(tensor))
        rows = min(step, len(tensor) - first)
        parts.append(Part(rank, (first, *(0,) * (tensor.ndim - 1)), (rows, *tensor.shape[1:])))
    return Cut(tensor, parts)


def by_columns(tensor: torch.Tensor, ranks: int) -> Cut:
    """The first columns are on the last rank, as no order is promised."""
    width = tensor.shape[1] // ranks
    ends = [*range(0, width * ranks, width), tensor.shape[1]]
    return Cut(
        tensor,
        [
            Part(ranks - 1 - i, (0, left), (len(tensor), right - left))
            for i, (left, right) in enumerate(itertools.pairwise(ends))
        ],
    )


def shards_of(name: str, cut: Cut, rank: int) -> list[LocalShard]:
    shards = []
    for part in cut.parts:
        if part.rank == rank:
            place = tuple(slice(o, o + n) for o, n in zip(part.offsets, part.shape, strict=True))
            shape, tensor = tuple(cut.tensor.shape), cut.tensor[place]
            shards.append(LocalShard(name, shape, part.offsets, tensor, replicated=False))
    return shards


def write_checkpoint(
    checkpoints: Folder,
    tensors: Mapping[str, Cut],
    *,
    step: int = 1,
    files: Mapping[str, str] | None = None,
    metrics: Mapping[str, float | None] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Folder:
    """Write a checkpoint; `block_bytes` must equal `files.BLOCK_BYTES`."""
    folder = checkpoints / name_of(step)
    world_size = 1 + max(part.rank for cut in tensors.values() for part in cut.parts)
    sizes: dict[str, int] = {}
    found: list[tuple[str, SavedTensor]] = []
    for rank in range(world_size):
        shards = [shard for name, cut in tensors.items() for shard in shards_of(name, cut, rank)]
        for number, together in enumerate(pack([shard] for shard in shards)):
            name = f"rank-{rank:05d}-{number:02d}-0123abcd.safetensors"
            sizes[name], written = write_file(folder, name, together)
            found += written
    plain = {}
    for name, text in (files or {}).items():
        folder.put(name, text.encode())
        plain[name] = SavedFile(size=len(text.encode()), crc32=zlib.crc32(text.encode()))
    manifest = CheckpointManifest(
        progress=SavedProgress(step=step, examples=32 * step),
        order=DataOrder(content_hash="ab" * 32, seed=0, shuffle_rows=1_000, version=2),
        world_size=world_size,
        metrics=dict(metrics or {}),
        block_bytes=block_bytes,
        files=plain,
        tensor_files=sizes,
        tensors=merge_chunks(found),
    )
    folder.put(MANIFEST, dump_manifest(manifest))
    return folder
