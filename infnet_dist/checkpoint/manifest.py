"""The manifest of a complete checkpoint. Written last: readers ignore a folder without it.

A manifest may come from elsewhere, so it is untrusted data: names can't leave the folder, and every
chunk must be within a file of the size that the folder really holds.
"""

import math
import re
import zlib
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from infnet_dist.checkpoint.saved_tensors import (
    MAX_BLOCK_BYTES,
    Count,
    FileName,
    Frozen,
    SavedFile,
    SavedTensor,
    rows_per_block,
)
from infnet_dist.checkpoint.step_folders import DELTA_MANIFEST, MANIFEST, name_of, step_of
from infnet_dist.checkpoint.tensor_names import current_name
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.parsing import first_error, parse_json

# Enough for a million chunks. A forged manifest can have a valid checksum, and parsing may take 25
# times as much memory.
MAX_MANIFEST_BYTES = 2**27
MAX_LEFT_OUT = 10_000  # row groups per rank that a manifest names
_OWN_CHECKSUM = re.compile(rb'\{"crc32":(\d{1,10}),')
_OF_BRACE = zlib.crc32(b"{")
_FORMAT_1 = re.compile(rb'\s*\{\s*("crc32":\d+,)?"format_version"\s*:\s*1\s*[,}]')

Digest = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:+=-]{0,200}$")]
Rate = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,1000}$")]  # safe on a terminal
PartName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,4000}$")]  # as of data
LeftOut = Annotated[tuple[tuple[PartName, Count, Count], ...], Field(max_length=MAX_LEFT_OUT)]


M = TypeVar("M", bound="CheckpointManifest")


class UnreadableError(CheckpointError):
    """The storage failed; the checkpoint may be intact."""


class RenamedError(CheckpointError):
    """The step in a checkpoint's folder name differs from its manifest."""


class SavedProgress(Frozen):
    """The progress of a run and the state of its reader.

    Attributes:
        step: optimizer steps done.
        examples: rows trained on, over all workers.
        epoch: the current epoch.
        consumed: intervals of the epoch's order that all workers have trained on.
        skipped: steps that were skipped since their loss wasn't finite.
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


class Throughput(Frozen):
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


class DataOrder(Frozen):
    """The inputs that determine the order of rows, to which `SavedProgress.consumed` refers.

    Attributes:
        content_hash: the training set's.
        identity: hash of the selected schema, the fingerprints of the selected parts and which of
            their rows are read; empty in checkpoints of versions without fingerprints.
        replay_share: data.replay_share.
        generations: generations of train that are read, without replayed ones; empty in checkpoints
            of earlier versions.
    """

    content_hash: Digest
    identity: Digest = ""
    seed: int
    shuffle_rows: int
    version: int = 1  # of the algorithm in data/epoch_order.py; absent in checkpoints before 2
    replay_share: float = Field(0.0, ge=0, lt=1)
    generations: tuple[Count, ...] = ()


class AppliedDeltas(Frozen):
    """The deltas that a checkpoint was made of: identities of their base and of the last one."""

    base: Digest
    last: Digest


class CheckpointManifest(Frozen):
    """The manifest of a complete checkpoint.

    Attributes:
        world_size: number of workers that saved it.
        metrics: of the evaluation at this step, if there was one; None for NaN.
        unknown_id_rates: shares of the ids that training drops to 0, by table; None in checkpoints
            of versions that didn't save them.
        interval: the train meter by rank (see `TrainMeter.restore`) in checkpoints of versions that
            didn't log at each save; empty since.
        totals: throughput up to the checkpoint; 0 in checkpoints of earlier versions.
        published: identity of the publication that `changed.tables.*` refer to, if there are any.
        applied: if it was made of a base and deltas, of which.
        block_bytes: approximate size of the blocks of rows that share a checksum.
        files: files without tensors, by name.
        tensor_files: sizes of the files with tensors, by name.
        tensors: by name (`tensor_names`).
    """

    format_version: Literal[2] = 2
    progress: SavedProgress
    order: DataOrder
    world_size: int = Field(ge=1, lt=2**31)
    metrics: dict[Name, float | None]
    unknown_id_rates: dict[Name, Rate] | None = None
    interval: tuple[tuple[float, ...], ...] = ()
    totals: Throughput = Throughput()
    published: Digest | None = None
    applied: AppliedDeltas | None = None
    block_bytes: int = Field(ge=1, le=MAX_BLOCK_BYTES)
    files: dict[FileName, SavedFile]
    tensor_files: dict[FileName, Count]
    tensors: dict[Name, SavedTensor]

    @property
    def num_bytes(self) -> int:
        """The size of all files but the manifest."""
        return sum(f.size for f in self.files.values()) + sum(self.tensor_files.values())

    @model_validator(mode="after")
    def _check_places(self) -> "CheckpointManifest":
        for name, tensor in self.tensors.items():
            row_bytes = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
            if row_bytes > MAX_BLOCK_BYTES and 0 not in tensor.shape:
                raise ValueError(
                    f"{name}: rows of {row_bytes} bytes, at most {MAX_BLOCK_BYTES} are read"
                )
            for chunk in tensor.chunks:
                size = math.prod(chunk.shape) * tensor.dtype.itemsize
                if chunk.begin + size > self.tensor_files.get(chunk.file, 0):
                    raise ValueError(f"{name}: a chunk is outside {chunk.file}")
                rows = chunk.shape[0] if chunk.shape else 1
                step = rows_per_block(chunk.shape, tensor.dtype.itemsize, self.block_bytes)
                if len(chunk.crc32) != (-(-rows // step) if size else 0):
                    raise ValueError(f"{name}: a chunk lacks checksums")
        return self


def dump_manifest(manifest: CheckpointManifest) -> bytes:
    """The manifest as JSON whose first key is the checksum of all others.

    Raises:
        CheckpointError: it is too large to be read again.
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
    return read_manifest_of(CheckpointManifest, folder, MANIFEST)


def read_manifest_of(kind: type[M], folder: Folder, file: str) -> M:
    """As `read_manifest`, for a kind of manifest in a file of its own."""
    try:
        size = folder.size(file)
        if size is None:
            raise CheckpointError(_without_manifest(folder, folder.entries(), file))
        if size > MAX_MANIFEST_BYTES:
            raise CheckpointError(
                f"checkpoint {folder} has a {file} of {size} bytes, at most "
                f"{MAX_MANIFEST_BYTES} are read"
            )
        text = folder.read(file)
        there = folder.entries()
    except OSError as error:
        raise UnreadableError(f"checkpoint {folder} can't be read: {error}") from None
    manifest = _parse(kind, folder, file, text)
    step = manifest.progress.step
    if step_of(folder.name) not in (None, step):
        raise RenamedError(
            f"checkpoint {folder} was renamed: its {file} has step {step}; rename it to "
            f"{name_of(step)}, or move it elsewhere"
        )
    expected = manifest.tensor_files | {name: file.size for name, file in manifest.files.items()}
    for name, size in expected.items():
        if there.get(name) != size:
            found = f"has {there[name]} bytes" if there.get(name) is not None else "is missing"
            raise CheckpointError(
                f"checkpoint {folder} is damaged: {name} {found}, expected {size} bytes"
            )
    return manifest


def _without_manifest(folder: Folder, there: dict[str, int | None], file: str) -> str:
    if file in there:
        return f"checkpoint {folder} is damaged: its {file} isn't a regular file"
    if other := next((kind for kind in (DELTA_MANIFEST, MANIFEST) if kind in there), None):
        if other == DELTA_MANIFEST:
            return (
                f"{folder} is a delta, expected a checkpoint; make one: infnet checkpoint apply "
                "BASE DELTA ... --out FOLDER"
            )
        return f"{folder} is a checkpoint, expected a delta"
    if there:
        return f"checkpoint {folder} is incomplete (no {file})"
    return f"no checkpoint {folder}: no such folder"


def _parse(kind: type[M], folder: Folder, file: str, text: bytes) -> M:
    try:
        if _FORMAT_1.match(text):
            raise CheckpointError(
                f"checkpoint {folder} has format 1, which holds pickles, that is code; this "
                f"version reads format 2 only; train a new run"
            )
        own = _OWN_CHECKSUM.match(text)
        if own is None or zlib.crc32(memoryview(text)[own.end() :], _OF_BRACE) != int(own[1]):
            raise ValueError("its checksum is wrong")
        raw = parse_json(text)
        if isinstance(tensors := raw.get("tensors"), dict):
            raw["tensors"] = {current_name(name): tensor for name, tensor in tensors.items()}
        return kind.model_validate({k: v for k, v in raw.items() if k != "crc32"})
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        first = first_error(error) if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(f"checkpoint {folder} has a damaged {file}: {first}") from None
