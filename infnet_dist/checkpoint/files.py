"""Tensors in safetensors files, which hold no code, with a checksum for each block of rows.

The header has the tensors' offsets in torch's format (`DCP_SHARDING_INFO`), so that
`torch.distributed.checkpoint`'s HuggingFaceStorageReader can read these checkpoints as well.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, NamedTuple

import torch

from infnet_dist.checkpoint.saved_tensors import DATA_TYPES, SavedChunk, SavedTensor, rows_per_block
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.distributed import heartbeat
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder, write_all

BLOCK_BYTES = 16 * 2**20
_FILE_BYTES = 4 * 2**30  # a retry writes a whole file again; a larger shard has its own file
_NAMES = {dtype: name for name, dtype in DATA_TYPES.items()}


class NotFiniteError(CheckpointError):
    """The state to save holds NaN or infinity: such a checkpoint would be useless."""


class DamagedError(CheckpointError):
    """The content of a checkpoint's files contradicts its manifest."""


def pack(parts: Iterable[Sequence[LocalShard]]) -> list[list[LocalShard]]:
    """The shards of each file: a file holds a name once, and not much more than `_FILE_BYTES`.

    Args:
        parts: shards with different names, which go into the same file.
    """
    files: list[list[LocalShard]] = []
    sizes: list[int] = []
    first: dict[str, int] = {}  # by name, the first file that may hold it
    for part in parts:
        num_bytes = sum(shard.nbytes for shard in part)
        at = max(first.get(shard.name, 0) for shard in part)
        while at < len(files) and sizes[at] + num_bytes > _FILE_BYTES:
            at += 1
        if at == len(files):
            files.append([])
            sizes.append(0)
        files[at] += part
        sizes[at] += num_bytes
        first |= dict.fromkeys((shard.name for shard in part), at + 1)
    return files


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory with rows: a scalar becomes a tensor of one."""
    return tensor if tensor.ndim else tensor.reshape(1)


def rows_of(shard: LocalShard, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop) of a shard; a scalar is one row."""
    return as_rows(shard.tensor)[start:stop]


def write_file(
    folder: Folder,
    name: str,
    shards: Sequence[LocalShard],
    read: Callable[[LocalShard, int, int], torch.Tensor] = rows_of,
) -> tuple[int, list[tuple[str, SavedTensor]]]:
    """Write shards with different names into a safetensors file.

    Args:
        folder: the checkpoint.
        name: of the file.
        shards: the shards to write.
        read: returns rows [start, stop) of a shard.

    Returns:
        The size of the file, and for each shard its name and a tensor with one chunk.

    Raises:
        NotFiniteError: a shard holds NaN or infinity.
        OSError: the file can't be written.
    """
    header = header_of(
        [Entry(p.name, _NAMES[p.tensor.dtype], tuple(p.tensor.shape), p.offsets) for p in shards]
    )
    found: list[tuple[str, SavedTensor]] = []
    end = len(header)

    def write(file: IO[bytes]) -> None:
        nonlocal end
        write_all(file, header)
        for shard in shards:
            checksums = tuple(_write_blocks(file, shard, read))
            chunk = SavedChunk(
                file=name,
                begin=end,
                offsets=shard.offsets,
                shape=tuple(shard.tensor.shape),
                crc32=checksums,
            )
            found.append((shard.name, _tensor(shard, chunk)))
            end += shard.nbytes

    folder.create(name, write)
    return end, found


def _tensor(shard: LocalShard, chunk: SavedChunk) -> SavedTensor:
    """The shard as a tensor of one chunk; unchecked, since the other chunks are missing."""
    return SavedTensor.model_construct(
        data_type=_NAMES[shard.tensor.dtype],  # type: ignore[arg-type]
        shape=shard.shape,
        chunks=(chunk,),
    )


def _write_blocks(
    file: IO[bytes], shard: LocalShard, read: Callable[[LocalShard, int, int], torch.Tensor]
) -> Iterator[int]:
    shape = tuple(shard.tensor.shape)
    step = rows_per_block(shape, shard.tensor.itemsize, BLOCK_BYTES)
    rows = (shape[0] if shape else 1) if shard.nbytes else 0
    for start in range(0, rows, step):
        block = read(shard, start, min(start + step, rows))
        if block.is_floating_point() and not _is_finite(block):
            raise NotFiniteError(_where_not_finite(shard, block, start))
        content = memoryview(block.contiguous().cpu().view(torch.uint8).numpy())  # type: ignore[arg-type]
        yield zlib.crc32(content)
        write_all(file, content)
        heartbeat.beat()


def _is_finite(block: torch.Tensor) -> bool:
    """Whether all values are finite, in one pass without a mask: the extremes show it."""
    low, high = block.aminmax()
    return math.isfinite(low) and math.isfinite(high)


def _where_not_finite(shard: LocalShard, block: torch.Tensor, start: int) -> str:
    place = (~block.isfinite()).nonzero()[0].tolist()
    value = block[tuple(place)].item()
    place[0] += start
    absolute = [offset + p for offset, p in zip(shard.offsets, place, strict=False)]
    return (
        f"{shard.name} holds {value} at {absolute}: model state is not finite, checkpoint not "
        "written; resume from the newest checkpoint with a lower learning rate, or find the batch "
        "that caused it"
    )


class Entry(NamedTuple):
    """The entry of a tensor in a file's header."""

    name: str
    data_type: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its rectangle."""
        return math.prod(self.shape) * DATA_TYPES[self.data_type].itemsize


def header_of(described: Sequence[Entry]) -> bytes:
    """A file's header: its length, then the entries of its tensors."""
    entries: dict[str, object] = {}
    begin = 0
    for entry in described:
        entries[entry.name] = {
            "dtype": entry.data_type,
            "shape": entry.shape,
            "data_offsets": [begin, begin + entry.nbytes],
        }
        begin += entry.nbytes
    offsets = {entry.name: {"saved_offsets": entry.offsets} for entry in described}
    notes = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    text = json.dumps({"__metadata__": notes} | entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
