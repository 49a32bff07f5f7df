"""The tensors of a checkpoint as its manifest describes them: chunks in files, with checksums."""

import bisect
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_BLOCK_BYTES = 2**26  # read at once, so also the limit of one row
DATA_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

Count = Annotated[int, Field(ge=0, lt=2**63)]
Checksum = Annotated[int, Field(ge=0, lt=2**32)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,200}$")]
Shape = Annotated[tuple[Count, ...], Field(max_length=8)]


class Frozen(BaseModel):
    """Base of all parts of a manifest: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SavedFile(Frozen):
    """A file that holds no tensors: its bytes and CRC-32."""

    size: Count
    crc32: Checksum


class SavedChunk(Frozen):
    """A rectangle of a tensor in a file, in row-major order.

    Attributes:
        file: name of the safetensors file.
        begin: its first byte in the file.
        offsets: its position in the tensor.
        shape: rows, columns, ...
        crc32: of each block of `rows_per_block` rows.
    """

    file: FileName
    begin: Count
    offsets: Shape
    shape: Shape
    crc32: tuple[Checksum, ...]


class SavedTensor(Frozen):
    """A tensor, in chunks: the shards of the ranks."""

    data_type: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL"]
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
                raise ValueError(f"a chunk at {chunk.offsets} is outside its tensor")
        if sum(math.prod(chunk.shape) for chunk in self.chunks) != math.prod(self.shape):
            raise ValueError("its chunks don't make up the whole tensor")
        if len(self.chunks) > 1:
            self._check_tiling()
        return self

    def _check_tiling(self) -> None:
        """Check that no two chunks overlap: since they fill the tensor's volume, they tile it.

        They are rectangles of rows and columns, whole in further dimensions. A sweep over the rows
        keeps the column ranges of the chunks at a row in order; a new range can overlap only its
        neighbours. So thousands of chunks cost milliseconds.
        """
        events: list[tuple[int, bool, int, int]] = []
        for chunk in self.chunks:
            if chunk.shape[2:] != self.shape[2:]:
                raise ValueError("a chunk is cut in a dimension other than rows and columns")
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


def rows_per_block(shape: Sequence[int], item_bytes: int, block_bytes: int) -> int:
    """Rows of a chunk of this shape that share a checksum; a scalar is a row."""
    return max(1, block_bytes // max(1, math.prod(shape[1:]) * item_bytes))
