"""Reads parts of saved tensors by blocks of rows, and checks the blocks' checksums."""

import bisect
import json
import math
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import IO

import torch

from infnet_dist.checkpoint.files import DamagedError, Entry, as_rows, header_of
from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.saved_tensors import SavedChunk, rows_per_block
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.checkpoint.tensor_names import current_name
from infnet_dist.io.filesystem import Folder

RANGE_BYTES = 64 * 2**20
_THREADS, _BLOCKS_PER_RUN = 4, 8  # of readers


@dataclass(frozen=True)
class _Read:
    """Rows [start, stop) of a chunk, a block of it, with the shards that need a part of it."""

    name: str
    chunk: SavedChunk
    number: int
    start: int
    stop: int
    targets: list[LocalShard]


class TensorReader:
    """Reads parts of tensors, checking each block that it reads.

    Args:
        folder: the checkpoint.
        manifest: its manifest.
    """

    def __init__(self, folder: Folder, manifest: CheckpointManifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._kept = threading.local()  # reused memory: fresh pages cost more

    def fill(self, shards: Sequence[LocalShard]) -> int:
        """Fill the shards from the saved tensors of their names; returns the bytes read.

        Raises:
            DamagedError: a block's checksum is wrong, or a file ends early.
            OSError: a file can't be read.
        """
        by_name: dict[str, list[LocalShard]] = {}
        for shard in shards:
            by_name.setdefault(shard.name, []).append(shard)
        by_file: dict[str, list[_Read]] = {}
        for name, wanted in by_name.items():
            for read in self._reads(name, wanted):
                by_file.setdefault(read.chunk.file, []).append(read)
        runs = []
        for reads in by_file.values():
            reads.sort(key=lambda read: (read.chunk.begin, read.start))
            runs += [reads[i : i + _BLOCKS_PER_RUN] for i in range(0, len(reads), _BLOCKS_PER_RUN)]
        if len(runs) <= 1:
            return sum(map(self._fill_from, runs))
        with ThreadPoolExecutor(_THREADS) as pool:  # a thread reads while another checks and copies
            return sum(pool.map(self._fill_from, runs))

    def _fill_from(self, reads: Sequence[_Read]) -> int:
        """Read some blocks of a file into their targets; returns the bytes read."""
        num_bytes = 0
        with self._folder.open(reads[0].chunk.file) as file:
            for read in reads:
                block = self._block(file, read)
                num_bytes += block.nbytes
                for target in read.targets:
                    _copy(block, read, target)
        return num_bytes

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor, whatever its chunks; a scalar is one row.

        Raises:
            DamagedError: a block's checksum is wrong, or a file ends early.
            OSError: a file can't be read.
        """
        saved = self._manifest.tensors[name]
        shape = (stop - start, *saved.shape[1:]) if saved.shape else ()
        offsets = (start, *(0 for _ in saved.shape[1:])) if saved.shape else ()
        wanted = torch.empty(shape, dtype=saved.dtype)
        self.fill([LocalShard(name, saved.shape, offsets, wanted, replicated=False)])
        return as_rows(wanted)

    def ranges(
        self, name: str, first: int = 0, end: int | None = None, *, most_bytes: int = RANGE_BYTES
    ) -> Iterator[tuple[int, int]]:
        """Consecutive ranges of a tensor's rows for `rows` that make up [first, end).

        They end at the ends of blocks where possible, so that few blocks are read twice. A tensor
        without elements has no range.
        """
        saved = self._manifest.tensors[name]
        if not math.prod(saved.shape):
            return
        end = (saved.shape[0] if saved.shape else 1) if end is None else end
        most = max(1, most_bytes // (math.prod(saved.shape[1:]) * saved.dtype.itemsize))
        ends = sorted({_first_row(read.chunk) + read.stop for read in self._reads(name, None)})
        while first < end:
            stop = min(first + most, end)
            place = bisect.bisect_right(ends, stop)
            if stop < end and place and ends[place - 1] > first:
                stop = ends[place - 1]
            yield first, stop
            first = stop

    def check(self, file: str) -> Iterator[tuple[int, str]]:
        """Read a whole file of tensors: for each part its bytes and its fault, if there is one.

        Raises:
            OSError: it can't be read.
        """
        chunks = self._chunks_by_file.get(file, [])
        reads = [read for name, chunk in chunks for read in self._reads_of(name, chunk, None)]
        with self._folder.open(file) as opened:
            yield self._check_header(opened, file)
            for read in reads:
                try:
                    yield self._block(opened, read).nbytes, ""
                except DamagedError as error:
                    yield self._num_bytes(read), str(error)

    def _check_header(self, opened: IO[bytes], file: str) -> tuple[int, str]:
        """Check the header, which other readers rely on, against the manifest."""
        chunks = dict(self._chunks_by_file.get(file, []))
        entries = {
            name: Entry(name, self._manifest.tensors[name].data_type, chunk.shape, chunk.offsets)
            for name, chunk in chunks.items()
        }
        size = self._manifest.tensor_files[file] - sum(entry.nbytes for entry in entries.values())
        fault = f"{self._folder} is damaged: the header of {file} differs from the manifest"
        # In another order offsets may have more digits, and names of earlier versions are longer.
        most = len(header_of(list(entries.values()))) + 512 * (1 + len(entries))
        if size > most:
            return size, fault
        content = opened.read(max(0, size))
        try:
            names = [name for name in json.loads(content[8:]) if name != "__metadata__"]
            found = [entries[current_name(name)]._replace(name=name) for name in names]
            intact = content == header_of(found)
            begin = size
            for entry in found:
                intact &= chunks.pop(current_name(entry.name)).begin == begin
                begin += entry.nbytes
            intact &= not chunks
        except (ValueError, KeyError, TypeError, RecursionError):
            intact = False
        return size, "" if intact else fault

    @cached_property
    def _chunks_by_file(self) -> dict[str, list[tuple[str, SavedChunk]]]:
        """Names and chunks, in the order of a file."""
        found: dict[str, list[tuple[str, SavedChunk]]] = {}
        for name, tensor in self._manifest.tensors.items():
            for chunk in tensor.chunks:
                found.setdefault(chunk.file, []).append((name, chunk))
        for chunks in found.values():
            chunks.sort(key=lambda named: named[1].begin)
        return found

    def _reads(self, name: str, shards: Sequence[LocalShard] | None) -> Iterator[_Read]:
        """The blocks of a tensor that these shards need; all blocks for None."""
        for chunk in self._manifest.tensors[name].chunks:
            yield from self._reads_of(name, chunk, shards)

    def _reads_of(
        self, name: str, chunk: SavedChunk, shards: Sequence[LocalShard] | None
    ) -> Iterator[_Read]:
        """As `_reads`, for one chunk."""
        if not math.prod(chunk.shape):
            return
        rows = chunk.shape[0] if chunk.shape else 1
        low, high, near = 0, rows, []
        if shards is not None:
            near = [shard for shard in shards if _overlap(chunk, 0, rows, shard)]
            wanted = [_overlap(chunk, 0, rows, shard) for shard in near]
            low = min((sides[0][0] for sides in wanted if sides), default=0) - _first_row(chunk)
            high = max((sides[0][1] for sides in wanted if sides), default=0) - _first_row(chunk)
        item = self._manifest.tensors[name].dtype.itemsize
        step = rows_per_block(chunk.shape, item, self._manifest.block_bytes)
        for number in range(low // step, -(-high // step)):
            start, stop = number * step, min((number + 1) * step, rows)
            targets = [shard for shard in near if _overlap(chunk, start, stop, shard)]
            if targets or shards is None:
                yield _Read(name, chunk, number, start, stop, targets)

    def _num_bytes(self, read: _Read) -> int:
        item = self._manifest.tensors[read.name].dtype.itemsize
        return (read.stop - read.start) * math.prod(read.chunk.shape[1:]) * item

    def _block(self, file: IO[bytes], read: _Read) -> torch.Tensor:
        """A block, read and checked; valid until this thread reads the next one."""
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
                raise self._damaged(read, f"{read.chunk.file} ends early")
            left = left[count:]
        if zlib.crc32(view) != read.chunk.crc32[read.number]:
            raise self._damaged(read, f"a checksum is wrong in {read.chunk.file}")
        return content.view(dtype).reshape(read.stop - read.start, *columns)

    def _memory(self, size: int) -> torch.Tensor:
        """Memory of this thread."""
        kept: torch.Tensor | None = getattr(self._kept, "memory", None)
        if kept is None or kept.numel() < size:
            kept = self._kept.memory = torch.empty(size, dtype=torch.uint8)
        return kept[:size]

    def _damaged(self, read: _Read, what: str) -> DamagedError:
        first = _first_row(read.chunk)
        place = f"{read.name}, rows {first + read.start:,} to {first + read.stop - 1:,}"
        if read.chunk.shape[1:] != self._manifest.tensors[read.name].shape[1:]:
            left, columns = read.chunk.offsets[1], read.chunk.shape[1]
            place += f", columns {left:,} to {left + columns - 1:,}"
        return DamagedError(f"{self._folder} is damaged: {what} ({place})")


def _first_row(chunk: SavedChunk) -> int:
    return chunk.offsets[0] if chunk.offsets else 0


def _overlap(
    chunk: SavedChunk, start: int, stop: int, shard: LocalShard
) -> list[tuple[int, int]] | None:
    """The rectangle that these rows of a chunk share with a shard: [low, high) by dimension."""
    theirs = _sides(chunk.offsets, chunk.shape)
    first = theirs[0][0]
    theirs[0] = (first + start, first + stop)
    mine = _sides(shard.offsets, tuple(shard.tensor.shape))
    shared = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(theirs, mine, strict=True)]
    return shared if all(low < high for low, high in shared) else None


def _sides(offsets: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """[start, stop) by dimension; a scalar has one of length 1."""
    return [(o, o + length) for o, length in zip(offsets, shape, strict=True)] or [(0, 1)]


def _copy(block: torch.Tensor, read: _Read, target: LocalShard) -> None:
    shared = _overlap(read.chunk, read.start, read.stop, target)
    assert shared is not None
    starts = [start for start, _ in _sides(read.chunk.offsets, read.chunk.shape)]
    starts[0] += read.start
    into = [start for start, _ in _sides(target.offsets, tuple(target.tensor.shape))]
    source = block[_slices(shared, starts)]
    as_rows(target.tensor)[_slices(shared, into)].copy_(source)


def _slices(shared: list[tuple[int, int]], starts: list[int]) -> tuple[slice, ...]:
    return tuple(slice(a - s, b - s) for (a, b), s in zip(shared, starts, strict=True))
