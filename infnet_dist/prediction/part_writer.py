"""Writes a part of the output, which appears when it is complete."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.prediction.batches import FILE, ROW, Counts
from infnet_dist.prediction.layout import OutputPart

SUMMARY = "infnet_dist.prediction"  # in the footer
_GROUP_ROWS = 65_536  # rows of a row group


class PartSummary(BaseModel):
    """What the footer of a part says of it.

    Attributes:
        digest: of the identity of its prediction.
        number: of the part.
        rows: number of its rows.
        score_sums: sum of the scores, by task.
        ids: number of ids that were looked up, by key.
        unknown: number of those that are unknown (0), by key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    number: int
    rows: int
    score_sums: dict[str, float]
    ids: dict[str, int]
    unknown: dict[str, int]


def output_schema(
    keys: Mapping[str, str], types: Mapping[str, pa.DataType], tasks: Sequence[str], *, logits: bool
) -> pa.Schema:
    """The columns of the output: keys, place in the input, a score per task, and its logit.

    Args:
        keys: columns of the input by name in the output.
        types: of these columns.
        tasks: names.
        logits: whether there are logits.
    """
    scores = [*tasks, *(logit_of(task) for task in tasks if logits)]
    return pa.schema(
        [(name, types[column]) for name, column in keys.items()]
        + [pa.field(FILE, pa.string(), nullable=False), pa.field(ROW, pa.int64(), nullable=False)]
        + [pa.field(name, pa.float32(), nullable=False) for name in scores]
    )


def logit_of(task: str) -> str:
    """Name of the column of a task's logits."""
    return f"{task}_logit"


class PartWriter:
    """Takes the rows of a part batch by batch, in memory, and publishes it.

    Args:
        part: the part.
        digest: of the identity of the prediction.
        schema: see `output_schema`.
        keys: columns of the input by name in the output.
        tasks: names.
        id_keys: keys of the KeyedJaggedTensors, in the order of `Counts`.
    """

    def __init__(
        self,
        part: OutputPart,
        digest: str,
        schema: pa.Schema,
        *,
        keys: Mapping[str, str],
        tasks: Sequence[str],
        id_keys: Sequence[str],
    ) -> None:
        self._part, self._digest, self._schema = part, digest, schema
        self._keys, self._tasks, self._id_keys = keys, tasks, id_keys
        self._sums_k = np.zeros(len(tasks))
        self._ids_F, self._unknown_F = (np.zeros(len(id_keys), np.int64) for _ in range(2))
        self._buffer = pa.BufferOutputStream()
        coded = [field.name for field in schema if not pa.types.is_floating(field.type)]
        self._writer = pq.ParquetWriter(
            self._buffer,
            schema,
            compression="zstd",
            use_dictionary=[name for name in coded if name != ROW],
            write_page_checksum=True,
        )
        self._pending: list[pa.Table] = []
        self._rows = 0

    def add(self, rows: pa.Table, scores_B2k: npt.NDArray[np.float32], counts: Counts) -> None:
        """Add a batch.

        Args:
            rows: its key columns and places.
            scores_B2k: scores and logits (`Scores`) of these rows.
            counts: of its ids.

        Raises:
            CheckpointError: a score isn't finite; names the row.
        """
        self._check_finite(rows, scores_B2k)
        num_tasks = len(self._tasks)
        self._sums_k += scores_B2k[:, :num_tasks].sum(axis=0, dtype=np.float64)
        self._ids_F += counts.ids_F
        self._unknown_F += counts.unknown_F
        columns = [rows.column(column) for column in self._keys.values()]
        columns += [rows.column(FILE), rows.column(ROW)]
        num_scores = len(self._schema) - len(columns)
        columns += [pa.array(np.ascontiguousarray(s)) for s in scores_B2k.T[:num_scores]]
        self._pending.append(pa.table(columns, schema=self._schema))
        self._rows += len(rows)
        if sum(map(len, self._pending)) >= _GROUP_ROWS:
            self._flush()

    def publish(self, output: Folder) -> None:
        """Write the part to its folder; it is complete or absent.

        Raises:
            OSError: it can't be written.
        """
        assert self._rows == self._part.rows, (self._rows, self._part)
        self._flush()
        summary = PartSummary(
            digest=self._digest,
            number=self._part.number,
            rows=self._rows,
            score_sums=dict(zip(self._tasks, self._sums_k.tolist(), strict=True)),
            ids=dict(zip(self._id_keys, self._ids_F.tolist(), strict=True)),
            unknown=dict(zip(self._id_keys, self._unknown_F.tolist(), strict=True)),
        )
        self._writer.add_key_value_metadata({SUMMARY: summary.model_dump_json()})
        self._writer.close()
        output.put(self._part.name, self._buffer.getvalue())

    def _flush(self) -> None:
        if self._pending:
            table = pa.concat_tables(self._pending)
            self._writer.write_table(table, row_group_size=len(table))
            self._pending = []

    def _check_finite(self, rows: pa.Table, scores_B2k: npt.NDArray[np.float32]) -> None:
        finite_B2k = np.isfinite(scores_B2k)
        if finite_B2k.all():
            return
        row, column = np.argwhere(~finite_B2k)[0]
        raise CheckpointError(
            f"the model's score of task {self._tasks[column % len(self._tasks)]!r} is "
            f"{scores_B2k[row, column]} for row {rows.column(ROW)[int(row)]} of "
            f"{rows.column(FILE)[int(row)]}, expected a finite number; use another checkpoint"
        )
