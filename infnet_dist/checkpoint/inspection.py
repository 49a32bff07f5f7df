"""Inspection of a checkpoint's tensors, read in parts, and verification of all its bytes."""

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from infnet_dist.checkpoint.files import DamagedError
from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.checkpoint.reading import RANGE_BYTES, TensorReader
from infnet_dist.checkpoint.saved_tensors import SavedTensor
from infnet_dist.checkpoint.tensor_names import TABLE
from infnet_dist.errors import CheckpointError, unknown_name
from infnet_dist.io.filesystem import Folder

Advance = Callable[[int], object]  # called with the number of bytes read
_VALUES = 2**20  # converted to float64 at once
_MOST_PLAIN_BYTES = 2**27  # parsed as JSON, so many may take 3 GiB
_PART_BYTES = 2**20


@dataclass(frozen=True)
class TableFacts:
    """Statistics of a table.

    Attributes:
        num_bytes: of its rows.
        optimizer_bytes: of its optimizer's state.
        chunks: number of chunks.
        norm: L2 over all rows.
        untrained: rows whose optimizer state is 0, so without any gradient; None without a state.
        not_finite: values that are NaN or infinite.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    data_type: str
    num_bytes: int
    optimizer_bytes: int
    chunks: int
    norm: float
    mean_row_norm: float
    max_row_norm: float
    untrained: int | None
    not_finite: int


@dataclass(frozen=True)
class DenseFacts:
    """Statistics of the dense part of the model."""

    tensors: int
    values: int
    num_bytes: int
    optimizer_bytes: int
    norm: float


def is_table(name: str) -> bool:
    """Whether a tensor of this name holds a table's rows."""
    return TABLE.fullmatch(name) is not None


def tables_of(manifest: CheckpointManifest) -> dict[str, str]:
    """Names of the tables' tensors, by table."""
    return {
        match[1]: name
        for name, tensor in manifest.tensors.items()
        if len(tensor.shape) == 2 and (match := TABLE.fullmatch(name))
    }


def table_tensor(manifest: CheckpointManifest, table: str) -> str:
    """The tensor of a table.

    Raises:
        CheckpointError: there is no such table; the message names the existing ones.
    """
    known = tables_of(manifest)
    if table not in known:
        raise CheckpointError(unknown_name("table", table, known))
    return known[table]


def optimizer_tensors(manifest: CheckpointManifest, tensor: str) -> list[str]:
    """Names of the optimizer's tensors of a table's tensor."""
    start = f"optimizer.{tensor.removeprefix('model.').removesuffix('weight')}"
    return [name for name in manifest.tensors if name.startswith(start)]


class RowState(NamedTuple):
    """Row-wise Adagrad's state of a table: `column_shards` times one value per row."""

    tensor: str
    column_shards: int


def row_state(manifest: CheckpointManifest, tensor: str) -> RowState | None:
    """Row-wise Adagrad's state of a table's tensor; None without one."""
    rows, columns = manifest.tensors[tensor].shape
    for name in optimizer_tensors(manifest, tensor):
        shape = manifest.tensors[name].shape
        if not name.endswith(".momentum1") or len(shape) != 1 or not rows:
            continue
        if shape[0] % rows == 0 and rows <= shape[0] <= rows * columns:
            return RowState(name, shape[0] // rows)
    return None


def table_facts(
    reader: TensorReader, manifest: CheckpointManifest, table: str, advance: Advance
) -> TableFacts:
    """Read a table and its optimizer's state."""
    name = table_tensor(manifest, table)
    saved = manifest.tensors[name]
    squares = row_norms = largest = 0.0
    not_finite = 0
    for values in _read(reader, manifest, name, advance):
        norms = torch.linalg.vector_norm(values, dim=1)
        squares += float(norms.square().sum())
        row_norms += float(norms.sum())
        largest = float(norms.max().clamp(min=largest))
        not_finite += int((~values.isfinite()).sum())
    rows, dim = saved.shape
    return TableFacts(
        name=table,
        num_embeddings=rows,
        embedding_dim=dim,
        data_type=saved.data_type,
        num_bytes=_num_bytes(saved),
        optimizer_bytes=_sum_bytes(manifest, optimizer_tensors(manifest, name)),
        chunks=len(saved.chunks),
        norm=math.sqrt(squares),
        mean_row_norm=row_norms / max(1, rows),
        max_row_norm=largest,
        untrained=_untrained(reader, manifest, name, advance),
        not_finite=not_finite,
    )


def _untrained(
    reader: TensorReader, manifest: CheckpointManifest, tensor: str, advance: Advance
) -> int | None:
    state = row_state(manifest, tensor)
    if state is None:
        return None
    rows = manifest.tensors[tensor].shape[0]
    count = 0
    most = RANGE_BYTES // state.column_shards  # of each column shard's
    for start, stop in reader.ranges(state.tensor, 0, rows, most_bytes=most):
        values = state_rows(reader, state, rows, start, stop)
        advance(values.nbytes)
        count += int((values == 0).all(1).sum())
    return count


def state_rows(
    reader: TensorReader, state: RowState, num_rows: int, start: int, stop: int
) -> torch.Tensor:
    """The state of rows [start, stop) of a table of `num_rows`, by column shard: [rows, shards]."""
    shards = (num_rows * shard for shard in range(state.column_shards))
    return torch.stack([reader.rows(state.tensor, at + start, at + stop) for at in shards], 1)


def dense_facts(reader: TensorReader, manifest: CheckpointManifest, advance: Advance) -> DenseFacts:
    """Read the tensors of the model that aren't tables."""
    tables = set(tables_of(manifest).values())
    names = [n for n in manifest.tensors if n.startswith("model.") and n not in tables]
    squares = 0.0
    for name in names:
        for values in _read(reader, manifest, name, advance):
            squares += float(values.square().sum())
    of_tables = {n for table in tables for n in optimizer_tensors(manifest, table)}
    others = [n for n in manifest.tensors if n.startswith("optimizer.") and n not in of_tables]
    return DenseFacts(
        tensors=len(names),
        values=sum(math.prod(manifest.tensors[name].shape) for name in names),
        num_bytes=_sum_bytes(manifest, names),
        optimizer_bytes=_sum_bytes(manifest, others),
        norm=math.sqrt(squares),
    )


def read_plain(folder: Folder, manifest: CheckpointManifest, name: str) -> bytes | None:
    """The content of a file without tensors; None if the checkpoint has no such file.

    Raises:
        DamagedError: its checksum is wrong.
        CheckpointError: it is too large for memory.
        OSError: it can't be read.
    """
    if name not in manifest.files:
        return None
    size = manifest.files[name].size
    if size > _MOST_PLAIN_BYTES:
        raise CheckpointError(
            f"{name} in {folder} has {size} bytes, at most {_MOST_PLAIN_BYTES} are read"
        )
    return b"".join(_parts_of_plain(folder, manifest, name))


def _parts_of_plain(folder: Folder, manifest: CheckpointManifest, name: str) -> Iterator[bytes]:
    """The bytes of a file without tensors; a DamagedError at the end if the checksum differs."""
    checksum = 0
    with folder.open(name) as file:
        while part := file.read(_PART_BYTES):
            checksum = zlib.crc32(part, checksum)
            yield part
    if checksum != manifest.files[name].crc32:
        raise DamagedError(f"{folder} is damaged: the checksum of {name} is wrong")


class Fault(NamedTuple):
    """A fault of a file: `is_damage` if its content is wrong, rather than the storage failing."""

    text: str
    is_damage: bool = True


def verify(folder: Folder, manifest: CheckpointManifest, advance: Advance) -> list[Fault]:
    """Read every byte and check every checksum; returns all faults."""
    faults: list[Fault] = []
    reader = TensorReader(folder, manifest)
    for name in manifest.files:
        try:
            for part in _parts_of_plain(folder, manifest, name):
                advance(len(part))
        except DamagedError as error:
            faults.append(Fault(str(error)))
        except OSError as error:
            faults.append(Fault(f"{name} in {folder} can't be read: {error}", False))
    for name in sorted(manifest.tensor_files):
        try:
            for size, fault in reader.check(name):
                faults += [Fault(fault)] if fault else []
                advance(size)
        except OSError as error:
            faults.append(Fault(f"{name} in {folder} can't be read: {error}", False))
    return faults


def _read(
    reader: TensorReader, manifest: CheckpointManifest, name: str, advance: Advance
) -> Iterator[torch.Tensor]:
    """A tensor's values as float64 [rows, values], in parts."""
    for start, stop in reader.ranges(name):
        values = as_matrix(reader.rows(name, start, stop))
        advance(values.nbytes)
        for part in parts_of(values):
            yield part.double()


def as_matrix(values: torch.Tensor) -> torch.Tensor:
    """The values as [rows, values], with further dimensions flattened."""
    return values.reshape(len(values), -1)


def parts_of(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The rows of a matrix in parts that are small enough for float64."""
    return matrix.split(max(1, _VALUES // matrix.shape[1]))


def _num_bytes(saved: SavedTensor) -> int:
    return math.prod(saved.shape) * saved.dtype.itemsize


def _sum_bytes(manifest: CheckpointManifest, names: list[str]) -> int:
    return sum(_num_bytes(manifest.tensors[name]) for name in names)
