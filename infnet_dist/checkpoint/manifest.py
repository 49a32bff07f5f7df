"""What a complete checkpoint says of itself. Written last: a folder without it doesn't exist.

A manifest may come from elsewhere, so it is data that is checked: names can't leave the folder, and
every place that it speaks of must lie within a file of the size that is really there.
"""

import bisect
import math
import re
import zlib
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.parsing import first_error, parse_json

MANIFEST = "manifest.json"
# Of a million chunks. Whoever makes a manifest can make its checksum as well, and what is parsed
# may take 25 times as much memory.
MAX_MANIFEST_BYTES = 2**27
_MOST_BLOCK_BYTES = 2**26  # of rows that are read together, so also of one row
DATA_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_LEFT_OUT = 10_000  # row groups per rank that a manifest names
_STEP = re.compile(r"step-(\d{8,12})")
_OWN_CHECKSUM = re.compile(rb'\{"crc32":(\d{1,10}),')
_OF_BRACE = zlib.crc32(b"{")
_FORMAT_1 = re.compile(rb'\s*\{\s*("crc32":\d+,)?"format_version"\s*:\s*1\s*[,}]')

Count = Annotated[int, Field(ge=0, lt=2**63)]
Checksum = Annotated[int, Field(ge=0, lt=2**32)]
Digest = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:+=-]{0,200}$")]
Rate = Annotated[float, Field(ge=0, lt=1)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,200}$")]
Shape = Annotated[tuple[Count, ...], Field(max_length=8)]
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,1000}$")]  # safe on a terminal
PartName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,4000}$")]  # as of data
LeftOut = Annotated[tuple[tuple[PartName, Count, Count], ...], Field(max_length=MAX_LEFT_OUT)]


class UnreadableError(CheckpointError):
    """The storage fails, which says nothing of the checkpoint."""


class RenamedError(CheckpointError):
    """A checkpoint's folder is named after another step than its manifest says."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SavedProgress(_Frozen):
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        examples: rows trained on, over all workers.
        epoch: the current epoch.
        consumed: intervals of the epoch's order that are done, over all workers.
        skipped: steps among them that were left out, their loss not being finite.
        left_out: by rank, row groups that couldn't be read: file, number and rows of each.
    """

    step: Count = 0
    skipped: Count = 0
    examples: Count = 0
    epoch: Count = 0
    consumed: tuple[tuple[Count, Count], ...] = ()
    left_out: tuple[LeftOut, ...] = Field((), max_length=2**16)

    @model_validator(mode="after")
    def _check_intervals(self) -> "SavedProgress":
        last = -1
        for start, stop in self.consumed:
            if not last < start < stop:
                raise ValueError(f"consumed: [{start}, {stop}) is empty or out of order")
            last = stop
        return self


class Throughput(_Frozen):
    """Rows and steps trained over all attempts of a run, up to its last log line, and the seconds.

    Steps that were lost with an attempt don't count, nor do their seconds.
    """

    rows: Count = 0
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    steps: Count = 0

    @property
    def samples_per_s(self) -> float:
        """Mean rate; 0 without rows."""
        return self.rows / max(self.seconds, 1e-9)

    def plus(self, rows: int, seconds: float, steps: int) -> "Throughput":
        """The throughput with another interval."""
        return Throughput(
            rows=self.rows + rows, seconds=self.seconds + seconds, steps=self.steps + steps
        )


class DataOrder(_Frozen):
    """What fixes the order of rows that `SavedProgress.consumed` speaks of.

    Attributes:
        content_hash: the training set's.
        identity: hash of the schema that is used and the parts' fingerprints; empty in checkpoints
            that were made before parts had fingerprints.
    """

    content_hash: Digest
    identity: Digest = ""
    seed: int
    shuffle_rows: int
    version: int = (
        1  # of the way in which data/epoch_order.py orders rows; checkpoints before 2 lack it
    )


class SavedFile(_Frozen):
    """A file that holds no tensors: its bytes and CRC-32."""

    size: Count
    crc32: Checksum


class SavedChunk(_Frozen):
    """A rectangle of a tensor, one after the other in row-major order.

    Attributes:
        file: the safetensors file that it stands in.
        begin: its first byte there.
        offsets: where it lies in the tensor.
        shape: rows, columns, ...
        crc32: of each block of `rows_per_block` rows.
    """

    file: FileName
    begin: Count
    offsets: Shape
    shape: Shape
    crc32: tuple[Checksum, ...]


class SavedTensor(_Frozen):
    """A tensor, cut into the chunks that the ranks held."""

    data_type: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL"]
    shape: Shape
    chunks: tuple[SavedChunk, ...] = Field(min_length=1)

    @property
    def dtype(self) -> torch.dtype:
        """Its type in torch."""
        return DATA_TYPES[self.data_type]

    @model_validator(mode="after")
    def _check_chunks(self) -> "SavedTensor":
        for chunk in self.chunks:
            if not len(chunk.offsets) == len(chunk.shape) == len(self.shape):
                raise ValueError("a chunk has another number of dimensions than its tensor")
            sides = zip(chunk.offsets, chunk.shape, self.shape, strict=True)
            if any(offset + length > side for offset, length, side in sides):
                raise ValueError(f"a chunk at {chunk.offsets} lies outside of its tensor")
        if sum(math.prod(chunk.shape) for chunk in self.chunks) != math.prod(self.shape):
            raise ValueError("its chunks don't make up the whole tensor")
        if len(self.chunks) > 1:
            self._check_tiling()
        return self

    def _check_tiling(self) -> None:
        """No two chunks overlap: as they fill the tensor's volume, they tile it.

        They are rectangles of rows and columns, whole in further dimensions. A sweep over the rows
        holds the columns that chunks take at a row, in order; a new one may overlap its neighbours
        alone. So thousands of chunks cost milliseconds.
        """
        events: list[tuple[int, bool, int, int]] = []
        for chunk in self.chunks:
            if chunk.shape[2:] != self.shape[2:]:
                raise ValueError("a chunk is cut in another dimension than rows and columns")
            if not math.prod(chunk.shape):
                continue
            (top, left), (rows, columns) = (*chunk.offsets, 0)[:2], (*chunk.shape, 1)[:2]
            events.append((top, True, left, left + columns))
            events.append((top + rows, False, left, left + columns))
        taken: list[tuple[int, int]] = []
        for _, starts, left, right in sorted(events):
            place = bisect.bisect_left(taken, (left, right))
            if not starts:
                del taken[place]
                continue
            before, after = taken[place - 1 : place], taken[place : place + 1]
            if any(end > left for _, end in before) or any(start < right for start, _ in after):
                raise ValueError(f"its chunks overlap in columns {left} to {right - 1}")
            taken.insert(place, (left, right))


class CheckpointManifest(_Frozen):
    """What a complete checkpoint says of itself.

    Attributes:
        world_size: workers that saved it.
        metrics: of the evaluation at this very step, if there was one; None for NaN.
        unknown_id_rates: shares of the ids that training drops to 0, by table; None in checkpoints
            of versions that didn't keep them.
        interval: the train meter by rank (see `TrainMeter.restore`) in checkpoints of versions that
            didn't log at each save; empty since.
        totals: throughput up to the checkpoint; 0 in checkpoints of earlier versions.
        block_bytes: rows are taken together in blocks of about so many bytes for checksums.
        files: those that hold no tensors, by name.
        tensor_files: bytes by name.
        tensors: by name, `model.<name>` or `optimizer.<parameter>.<state>`.
    """

    format_version: Literal[2] = 2
    progress: SavedProgress
    order: DataOrder
    world_size: int = Field(ge=1, lt=2**31)
    metrics: dict[Name, float | None]
    unknown_id_rates: dict[Name, Rate] | None = None
    interval: tuple[tuple[float, ...], ...] = ()
    totals: Throughput = Throughput()
    block_bytes: int = Field(ge=1, le=_MOST_BLOCK_BYTES)
    files: dict[FileName, SavedFile]
    tensor_files: dict[FileName, Count]
    tensors: dict[Name, SavedTensor]

    @property
    def num_bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(f.size for f in self.files.values()) + sum(self.tensor_files.values())

    @model_validator(mode="after")
    def _check_places(self) -> "CheckpointManifest":
        for name, tensor in self.tensors.items():
            row_bytes = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
            if row_bytes > _MOST_BLOCK_BYTES and 0 not in tensor.shape:
                raise ValueError(
                    f"{name}: rows of {row_bytes} bytes, at most {_MOST_BLOCK_BYTES} are read"
                )
            for chunk in tensor.chunks:
                size = math.prod(chunk.shape) * tensor.dtype.itemsize
                if chunk.begin + size > self.tensor_files.get(chunk.file, 0):
                    raise ValueError(f"{name}: a chunk lies outside of {chunk.file}")
                rows = chunk.shape[0] if chunk.shape else 1
                step = rows_per_block(chunk.shape, tensor.dtype.itemsize, self.block_bytes)
                if len(chunk.crc32) != (-(-rows // step) if size else 0):
                    raise ValueError(f"{name}: a chunk lacks checksums")
        return self


def rows_per_block(shape: Sequence[int], item_bytes: int, block_bytes: int) -> int:
    """Rows of a chunk of this shape that share a checksum; a scalar is a row."""
    return max(1, block_bytes // max(1, math.prod(shape[1:]) * item_bytes))


def dump_manifest(manifest: CheckpointManifest) -> bytes:
    """The manifest as it is written: JSON whose first key is the checksum of all the others.

    Raises:
        CheckpointError: it would be too large to be read again.
    """
    text = manifest.model_dump_json().encode() + b"\n"
    if len(text) > MAX_MANIFEST_BYTES - 100:
        raise CheckpointError(
            f"the checkpoint's {MANIFEST} would have {len(text)} bytes, at most "
            f"{MAX_MANIFEST_BYTES} are read; cut the tables into fewer shards"
        )
    return b'{"crc32":%d,%s' % (zlib.crc32(text), text[1:])


def read_manifest(folder: Folder) -> CheckpointManifest:
    """Read and check a checkpoint's manifest and the sizes of its files.

    Raises:
        CheckpointError: missing, incomplete, damaged, or named after another step.
    """
    try:
        size = folder.size(MANIFEST)
        if size is None:
            raise CheckpointError(_without_manifest(folder, folder.entries()))
        if size > MAX_MANIFEST_BYTES:
            raise CheckpointError(
                f"checkpoint {folder} has a {MANIFEST} of {size} bytes, at most "
                f"{MAX_MANIFEST_BYTES} are read"
            )
        text = folder.read(MANIFEST)
        there = folder.entries()
    except OSError as error:
        raise UnreadableError(f"checkpoint {folder} can't be read: {error}") from None
    manifest = _parse(folder, text)
    step = manifest.progress.step
    if step_of(folder.name) not in (None, step):
        raise RenamedError(
            f"checkpoint {folder} is of step {step}, as its {MANIFEST} says: it was renamed; "
            f"rename it back to {name_of(step)}, or move it elsewhere"
        )
    expected = manifest.tensor_files | {name: file.size for name, file in manifest.files.items()}
    for name, size in expected.items():
        if there.get(name) != size:
            found = f"has {there[name]} bytes" if there.get(name) is not None else "is missing"
            raise CheckpointError(
                f"checkpoint {folder} is damaged: {name} {found}, expected {size} bytes"
            )
    return manifest


def _without_manifest(folder: Folder, there: dict[str, int | None]) -> str:
    if MANIFEST in there:
        return f"checkpoint {folder} is damaged: its {MANIFEST} is no regular file"
    if there:
        return f"checkpoint {folder} is incomplete (no {MANIFEST})"
    return f"no checkpoint {folder}: no such folder"


def _parse(folder: Folder, text: bytes) -> CheckpointManifest:
    try:
        if _FORMAT_1.match(text):
            raise CheckpointError(
                f"checkpoint {folder} has format 1, which holds pickles, that is code; this "
                f"version reads format 2 alone; train anew"
            )
        own = _OWN_CHECKSUM.match(text)
        if own is None or zlib.crc32(memoryview(text)[own.end() :], _OF_BRACE) != int(own[1]):
            raise ValueError("its checksum is wrong")
        raw = parse_json(text)
        return CheckpointManifest.model_validate({k: v for k, v in raw.items() if k != "crc32"})
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        first = first_error(error) if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(f"checkpoint {folder} has a damaged {MANIFEST}: {first}") from None


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder name; None for other names."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def name_of(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def complete_checkpoints(folder: Folder) -> list[Folder]:
    """Checkpoints in `folder` that have a manifest, oldest first.

    Raises:
        OSError: the folder can't be listed.
    """
    steps = sorted(
        (step, name)
        for name, size in folder.entries().items()
        if size is None and (step := step_of(name)) is not None
    )
    return [folder / name for _, name in steps if (folder / name).size(MANIFEST) is not None]


def newest(folder: Folder) -> Folder | None:
    """The newest complete checkpoint in `folder`, if there is one."""
    return next(iter(reversed(complete_checkpoints(folder))), None)
