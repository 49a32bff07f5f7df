"""Tensors in files: plain safetensors, which hold no code, with a checksum for each block of rows.

The header names the tensors' offsets in torch's own way (`DCP_SHARDING_INFO`), so that
`torch.distributed.checkpoint`'s HuggingFaceStorageReader can read a checkpoint of ours as well.
"""

import json
import math
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

import torch

from infnet_dist.checkpoint.manifest import (
    DATA_TYPES,
    CheckpointManifest,
    SavedChunk,
    SavedTensor,
    rows_per_block,
)
from infnet_dist.checkpoint.pieces import Piece
from infnet_dist.errors import CheckpointError
from infnet_dist.filesystem import Folder, write_all

BLOCK_BYTES = 16 * 2**20
_THREADS, _BLOCKS_PER_RUN = 4, 8  # of readers
_FILE_BYTES = 4 * 2**30  # a file that a retry writes again; a larger shard has a file of its own
_NAMES = {dtype: name for name, dtype in DATA_TYPES.items()}


class NotFiniteError(CheckpointError):
    """The state to save holds NaN or infinity: such a checkpoint would be of no use."""


class DamagedError(CheckpointError):
    """A checkpoint's files don't hold what its manifest says."""


def pack(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Pieces by file: a file holds each name once, and not much more than `_FILE_BYTES`."""
    files: list[list[Piece]] = []
    for piece in pieces:
        for file in files:
            fits = sum(p.nbytes for p in file) + piece.nbytes <= _FILE_BYTES
            if fits and all(p.name != piece.name for p in file):
                file.append(piece)
                break
        else:
            files.append([piece])
    return files


def write_file(
    folder: Folder,
    name: str,
    pieces: Sequence[Piece],
    moved: Callable[[], None] = lambda: None,
) -> tuple[int, list[tuple[str, SavedTensor]]]:
    """Write pieces, whose names differ, into a safetensors file.

    Args:
        folder: the checkpoint.
        name: of the file.
        pieces: what to write.
        moved: called after each block, to show that it goes on.

    Returns:
        The file's bytes; and by piece its name and itself as a tensor of one chunk.

    Raises:
        NotFiniteError: a piece holds NaN or infinity.
        OSError: the file can't be written.
    """
    header = _header(pieces)
    found: list[tuple[str, SavedTensor]] = []
    end = len(header)

    def write(file: IO[bytes]) -> None:
        nonlocal end
        write_all(file, header)
        for piece in pieces:
            checksums = tuple(_write_blocks(file, piece, moved))
            chunk = SavedChunk(
                file=name,
                begin=end,
                offsets=piece.offsets,
                shape=tuple(piece.tensor.shape),
                crc32=checksums,
            )
            found.append((piece.name, _tensor(piece, chunk)))
            end += piece.nbytes

    folder.create(name, write)
    return end, found


def _tensor(piece: Piece, chunk: SavedChunk) -> SavedTensor:
    """Unchecked: the other chunks are still missing."""
    return SavedTensor.model_construct(
        data_type=_NAMES[piece.tensor.dtype],  # type: ignore[arg-type]
        shape=piece.shape,
        chunks=(chunk,),
    )


def _write_blocks(file: IO[bytes], piece: Piece, moved: Callable[[], None]) -> Iterator[int]:
    for start, stop in _blocks(tuple(piece.tensor.shape), piece.tensor.itemsize, BLOCK_BYTES):
        block = _rows(piece.tensor)[start:stop]
        if block.is_floating_point() and not _is_finite(block):
            raise NotFiniteError(_where_not_finite(piece, block, start))
        content = memoryview(block.contiguous().cpu().view(torch.uint8).numpy())  # type: ignore[arg-type]
        yield zlib.crc32(content)
        write_all(file, content)
        moved()


def _is_finite(block: torch.Tensor) -> bool:
    """In one pass without a mask: NaN and infinity show in the extremes."""
    low, high = block.aminmax()
    return math.isfinite(low) and math.isfinite(high)


def _where_not_finite(piece: Piece, block: torch.Tensor, start: int) -> str:
    place = (~block.isfinite()).nonzero()[0].tolist()
    value = block[tuple(place)].item()
    place[0] += start
    absolute = [offset + p for offset, p in zip(piece.offsets, place, strict=False)]
    return (
        f"{piece.name} holds {value} at {absolute}; the model is spoilt, so it isn't saved: go on "
        f"from the newest checkpoint with a lower learning rate, or look for the batch that did it"
    )


def _header(pieces: Sequence[Piece]) -> bytes:
    entries: dict[str, object] = {}
    begin = 0
    for piece in pieces:
        entries[piece.name] = {
            "dtype": _NAMES[piece.tensor.dtype],
            "shape": list(piece.tensor.shape),
            "data_offsets": [begin, begin + piece.nbytes],
        }
        begin += piece.nbytes
    offsets = {piece.name: {"saved_offsets": list(piece.offsets)} for piece in pieces}
    notes = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    text = json.dumps({"__metadata__": notes} | entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class _Read:
    """Rows [start, stop) of a chunk, a block of it, of which `targets` want a part."""

    name: str
    chunk: SavedChunk
    number: int
    start: int
    stop: int
    targets: list[Piece]


class TensorReader:
    """Reads parts of tensors, checking each block that it reads.

    Args:
        folder: the checkpoint.
        manifest: its manifest.
    """

    def __init__(self, folder: Folder, manifest: CheckpointManifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._kept = threading.local()  # memory is used again: fresh pages cost more

    def fill(self, pieces: Sequence[Piece]) -> int:
        """Fill the pieces from the saved tensors of their names; returns bytes read.

        Raises:
            DamagedError: a block's checksum is wrong, or a file ends early.
            OSError: a file can't be read.
        """
        by_name: dict[str, list[Piece]] = {}
        for piece in pieces:
            by_name.setdefault(piece.name, []).append(piece)
        by_file: dict[str, list[_Read]] = {}
        for name, wanted in by_name.items():
            for read in self._reads(name, wanted):
                by_file.setdefault(read.chunk.file, []).append(read)
        runs = []
        for reads in by_file.values():
            reads.sort(key=lambda read: (read.chunk.begin, read.start))
            runs += [reads[i : i + _BLOCKS_PER_RUN] for i in range(0, len(reads), _BLOCKS_PER_RUN)]
        with ThreadPoolExecutor(_THREADS) as pool:  # one reads while another checks and copies
            return sum(pool.map(self._fill_from, runs))

    def _fill_from(self, reads: Sequence[_Read]) -> int:
        """Read some blocks of a file into their targets; bytes read."""
        num_bytes = 0
        with self._folder.open(reads[0].chunk.file) as file:
            for read in reads:
                block = self._block(file, read)
                num_bytes += block.nbytes
                for target in read.targets:
                    _copy(block, read, target)
        return num_bytes

    def blocks(self, name: str) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
        """All blocks of a tensor with their offsets; a block is valid until the next one.

        Raises:
            DamagedError: a block's checksum is wrong, or a file ends early.
            OSError: a file can't be read.
        """
        for read in self._reads(name, None):
            with self._folder.open(read.chunk.file) as opened:
                block = self._block(opened, read)
            offsets = read.chunk.offsets
            yield ((offsets[0] + read.start, *offsets[1:]) if offsets else ()), block

    def _reads(self, name: str, pieces: Sequence[Piece] | None) -> Iterator[_Read]:
        """The blocks of a tensor that these pieces of it need; all of them for None."""
        saved = self._manifest.tensors[name]
        for chunk in saved.chunks:
            spans = _blocks(chunk.shape, saved.dtype.itemsize, self._manifest.block_bytes)
            for number, (start, stop) in enumerate(spans):
                targets = [piece for piece in pieces or () if _overlap(chunk, start, stop, piece)]
                if targets or pieces is None:
                    yield _Read(name, chunk, number, start, stop, targets)

    def _block(self, file: IO[bytes], read: _Read) -> torch.Tensor:
        """A block, read and checked."""
        dtype, columns = self._manifest.tensors[read.name].dtype, read.chunk.shape[1:]
        row_bytes = math.prod(columns) * dtype.itemsize
        size = (read.stop - read.start) * row_bytes
        content = self._memory(size)
        file.seek(read.chunk.begin + read.start * row_bytes)
        view = memoryview(content.numpy())  # type: ignore[arg-type]
        left = view
        while left:
            count = file.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise DamagedError(f"{self._folder} is damaged: {read.chunk.file} ends early")
            left = left[count:]
        if zlib.crc32(view) != read.chunk.crc32[read.number]:
            raise DamagedError(
                f"{self._folder} is damaged: a checksum is wrong in {read.chunk.file} "
                f"({read.name}, rows {read.start:,} to {read.stop - 1:,} of the chunk at "
                f"{read.chunk.offsets})"
            )
        return content.view(dtype).reshape(read.stop - read.start, *columns)

    def _memory(self, size: int) -> torch.Tensor:
        """Bytes of this thread."""
        kept: torch.Tensor | None = getattr(self._kept, "memory", None)
        if kept is None or kept.numel() < size:
            kept = self._kept.memory = torch.empty(size, dtype=torch.uint8)
        return kept[:size]


def _blocks(shape: tuple[int, ...], item_bytes: int, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) of each block of a chunk; a scalar is one row."""
    if not math.prod(shape):
        return
    rows, step = (shape[0] if shape else 1), rows_per_block(shape, item_bytes, block_bytes)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _overlap(
    chunk: SavedChunk, start: int, stop: int, piece: Piece
) -> list[tuple[int, int]] | None:
    """The rectangle that these rows of a chunk share with a piece: [low, high) by dimension."""
    theirs = _sides(chunk.offsets, chunk.shape)
    first = theirs[0][0]
    theirs[0] = (first + start, first + stop)
    mine = _sides(piece.offsets, tuple(piece.tensor.shape))
    shared = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(theirs, mine, strict=True)]
    return shared if all(low < high for low, high in shared) else None


def _sides(offsets: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """[start, stop) by dimension; a scalar has one of length 1."""
    return [(o, o + length) for o, length in zip(offsets, shape, strict=True)] or [(0, 1)]


def _copy(block: torch.Tensor, read: _Read, target: Piece) -> None:
    shared = _overlap(read.chunk, read.start, read.stop, target)
    assert shared is not None
    starts = [start for start, _ in _sides(read.chunk.offsets, read.chunk.shape)]
    starts[0] += read.start
    into = [start for start, _ in _sides(target.offsets, tuple(target.tensor.shape))]
    source = block[_slices(shared, starts)]
    _rows(target.tensor)[_slices(shared, into)].copy_(source)


def _slices(shared: list[tuple[int, int]], starts: list[int]) -> tuple[slice, ...]:
    return tuple(slice(a - s, b - s) for (a, b), s in zip(shared, starts, strict=True))


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory with rows: a scalar becomes a tensor of one."""
    return tensor if tensor.ndim else tensor.reshape(1)
