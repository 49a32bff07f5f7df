"""The manifest of a delta: that of a checkpoint, and what its rows refer to.

Its tensors have the names of a checkpoint's. Those of a table in `DeltaLink.tables` hold only the
rows that `indices.tables.<table>` lists; all others are whole.

indices.tables.<table>              int64 [K], ascending, without repetition
model.tables.<table>.weight         [K, width], in the type of the table, fp16 or int8
scale.tables.<table>                float32 [K]; only of int8 rows, which it multiplies
optimizer.tables.<table>.<state>    [K, ...]; with S column shards [S * K], shard by shard
"""

import hashlib
import re
from typing import Annotated

from pydantic import Field, model_validator

from infnet_dist.checkpoint.manifest import (
    CheckpointManifest,
    Digest,
    Name,
    read_manifest_of,
)
from infnet_dist.checkpoint.saved_tensors import Count, Frozen
from infnet_dist.checkpoint.step_folders import DELTA_MANIFEST
from infnet_dist.checkpoint.tensor_names import TABLE
from infnet_dist.config.publish import RowType
from infnet_dist.io.filesystem import Folder

INDICES, SCALE = "indices.tables.", "scale.tables."
_OF_TABLE = re.compile(r"(?:model|optimizer|scale|indices)\.tables\.([^.]+)(?:\..+)?")


class Identity(Frozen):
    """A publication: the name of its folder, for messages, and its identity."""

    name: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,1000}$")]
    digest: Digest


class DeltaLink(Frozen):
    """What a delta refers to.

    Attributes:
        base: the checkpoint at the head of its chain.
        previous: the publication that it changes, which is the base or another delta.
        number: its place in the chain; the first delta of a base is 1.
        state: identity of another publication with the state that it leads to: of a compacted delta
            the last one that it replaces, of a compared one the second checkpoint.
        rows: data type of the rows; all but fp32 are rounded.
        optimizer_state: whether the optimizers' state is in it.
        tables: by table with indices, its number of rows in the state that the delta leads to. If
            that is more than before, all rows that are new are among the indices.
    """

    base: Identity
    previous: Identity
    number: int = Field(ge=1, lt=2**31)
    state: Digest | None = None
    rows: RowType = "fp32"
    optimizer_state: bool = True
    tables: dict[Name, Count] = Field(default_factory=dict)


class DeltaManifest(CheckpointManifest):
    """The manifest of a complete delta."""

    delta: DeltaLink

    @property
    def changed_rows(self) -> int:
        """Number of rows of its tables with indices."""
        return sum(self.tensors[f"{INDICES}{table}"].shape[0] for table in self.delta.tables)

    @property
    def is_exact(self) -> bool:
        """Whether its rows are those of the model, bit for bit."""
        return self.delta.rows == "fp32"

    @model_validator(mode="after")
    def _check_tables(self) -> "DeltaManifest":
        for table, num_embeddings in self.delta.tables.items():
            indices = self.tensors.get(INDICES + table)
            weight = self.tensors.get(f"model.tables.{table}.weight")
            if indices is None or weight is None:
                raise ValueError(f"table {table!r} lacks its indices or its rows")
            if indices.data_type != "I64" or len(indices.shape) != 1:
                raise ValueError(f"the indices of table {table!r} aren't int64 [K]")
            count = indices.shape[0]
            if count > num_embeddings:
                raise ValueError(f"table {table!r} has {num_embeddings} rows, changed are {count}")
            for name, tensor in self.tensors.items():
                if table_in(name) == table and (
                    not tensor.shape or tensor.shape[0] % max(1, count) or weight.shape[0] != count
                ):
                    raise ValueError(f"{name} has another number of rows than its indices")
        for name, tensor in self.tensors.items() if self.delta.rows == "int8" else ():
            scale = self.tensors.get(f"{SCALE}{table_in(name)}")
            if TABLE.fullmatch(name) and (scale is None or scale.shape != tensor.shape[:1]):
                raise ValueError(f"the int8 rows of {name} lack their scale")
        return self


def table_in(name: str) -> str | None:
    """The table that a tensor of this name belongs to; None for the dense part."""
    match = _OF_TABLE.fullmatch(name)
    return match[1] if match else None


def identity(manifest: CheckpointManifest) -> str:
    """The identity of a checkpoint or delta: SHA-256 of its step and of all its tensors' checksums.

    Metrics, which may be added later, aren't part of it.
    """
    text = manifest.model_dump_json(include={"tensors"})
    link = manifest.delta.model_dump_json() if isinstance(manifest, DeltaManifest) else ""
    return hashlib.sha256(f"{manifest.progress.step}\n{link}\n{text}".encode()).hexdigest()


def states_of(manifest: CheckpointManifest) -> set[str]:
    """Identities of the publications whose state this one has, its own included."""
    found = {identity(manifest)}
    if isinstance(manifest, DeltaManifest):
        found |= {manifest.delta.state} - {None}  # type: ignore[arg-type]
    elif manifest.applied:
        found.add(manifest.applied.last)
    return found


def read_delta(folder: Folder) -> DeltaManifest:
    """Read and check a delta's manifest and the sizes of its files.

    Raises:
        CheckpointError: missing, incomplete, damaged, or a checkpoint.
    """
    return read_manifest_of(DeltaManifest, folder, DELTA_MANIFEST)
