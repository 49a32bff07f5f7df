"""Writes checkpoints and deltas from others, without a model: tensors are read in parts."""

import secrets
import zlib
from collections.abc import Callable, Mapping, Sequence

import torch

from infnet_dist.checkpoint.files import BLOCK_BYTES, pack, rows_of, write_file
from infnet_dist.checkpoint.inspection import Advance, read_plain
from infnet_dist.checkpoint.manifest import CheckpointManifest, dump_manifest
from infnet_dist.checkpoint.saved_tensors import SavedFile
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.checkpoint.step_folders import DELTA_MANIFEST, name_of, step_of
from infnet_dist.checkpoint.step_folders import MANIFEST as CHECKPOINT_MANIFEST
from infnet_dist.checkpoint.writing import merge_chunks
from infnet_dist.deltas.manifest import DeltaLink, DeltaManifest
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder

Read = Callable[[LocalShard, int, int], torch.Tensor]


def whole_shard(name: str, shape: Sequence[int], dtype: torch.dtype) -> LocalShard:
    """A whole tensor to write, whose values a `Read` returns: it takes no memory."""
    tensor = torch.empty(tuple(shape), dtype=dtype, device="meta")
    return LocalShard(name, tuple(shape), (0,) * len(shape), tensor, replicated=False)


def check_output(out: Folder, step: int) -> None:
    """Check before the work that a folder can take a checkpoint or delta.

    Raises:
        CheckpointError: it isn't empty, or is named after another step.
    """
    if out.entries():
        raise CheckpointError(f"{out} isn't empty; name a new folder")
    if step_of(out.name) not in (None, step):
        raise CheckpointError(f"{out} is named after another step than {step}: {name_of(step)}")


def write_folder(
    out: Folder,
    source: tuple[Folder, CheckpointManifest],
    shards: Sequence[LocalShard],
    read: Read,
    *,
    changes: Mapping[str, object] | None = None,
    link: DeltaLink | None = None,
    advance: Advance = lambda num_bytes: None,
) -> CheckpointManifest:
    """Write a checkpoint, or a delta if there is a `link`; its manifest at last.

    Args:
        out: an empty folder.
        source: whose progress, config, plan and the like it gets.
        shards: its tensors, each whole; those in memory, or on meta and read by `read`.
        read: rows [start, stop) of a shard on meta.
        changes: keys of the manifest that differ from the source's.
        link: of a delta.
        advance: called with the bytes written.
    """
    folder, described = source

    def rows(shard: LocalShard, start: int, stop: int) -> torch.Tensor:
        found = read if shard.tensor.is_meta else rows_of
        values = found(shard, start, stop)
        advance(values.nbytes)
        return values

    attempt, sizes, tensors = secrets.token_hex(4), {}, []
    for number, together in enumerate(pack([shard] for shard in shards)):
        name = f"rank-00000-{number:02d}-{attempt}.safetensors"
        sizes[name], written = write_file(out, name, together, rows)
        tensors += written
    files = {}
    for name in described.files:
        content = read_plain(folder, described, name) or b""
        out.put(name, content)
        files[name] = SavedFile(size=len(content), crc32=zlib.crc32(content))
    keys = {key: getattr(described, key) for key in CheckpointManifest.model_fields}
    keys |= {
        "world_size": 1,
        "block_bytes": BLOCK_BYTES,
        "published": None,
        "applied": None,
        "files": files,
        "tensor_files": sizes,
        "tensors": merge_chunks(tensors),
    }
    keys |= changes or {}
    manifest = CheckpointManifest(**keys) if link is None else DeltaManifest(**keys, delta=link)
    file = CHECKPOINT_MANIFEST if link is None else DELTA_MANIFEST
    out.put(file, dump_manifest(manifest))
    return manifest
