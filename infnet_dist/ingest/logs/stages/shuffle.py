"""Stage shuffle: the rows of a part, permuted and written as Parquet.

A part is a random sample of the rows of its split and is permuted itself, so each of its row groups
is a random sample of the split: the shuffle is global.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infnet_dist.data.manifest import arrow_type
from infnet_dist.ingest.logs.context import IngestContext
from infnet_dist.ingest.logs.stages.shuffle_files import read_bucket
from infnet_dist.ingest.writing.parts import PartSummary, PartWriter, summarise
from infnet_dist.io.filesystem import published
from infnet_dist.schema import Schema


def write_parts(
    context: IngestContext,
    assembled: tuple[Path, ...],
    *,
    schema: Schema,
    rows: Mapping[str, int],
    num_parts: Mapping[str, int],
) -> dict[str, list[PartSummary]]:
    """Run the stage; the parts that have rows, by split.

    Args:
        context: settings and paths.
        assembled: files of stage assemble.
        schema: schema of the training set.
        rows: number of rows by split.
        num_parts: number of parts by split.
    """
    prefix = "part" if context.ingested is None else f"{context.generation_name}-part"
    files = [
        (split, f"{split}/{prefix}-{i:05d}.parquet")
        for split, number in num_parts.items()
        for i in range(number)
    ]
    tasks = {
        f"{part:05d}": WritePart(
            schema=schema,
            assembled=assembled,
            part=part,
            num_parts=len(files),
            seed=context.config.seed,
            row_group_rows=context.config.row_group_rows,
            folder=context.staged,
            file=file,
            generation=context.generation,
        )
        for part, (_, file) in enumerate(files)
    }
    for split in num_parts:
        (context.staged / split).mkdir(exist_ok=True)
    each = [rows[split] // num_parts[split] for split, _ in files]
    outcomes = context.runner.run("shuffle", tasks, rows=each)
    parts: dict[str, list[PartSummary]] = {split: [] for split in num_parts}
    for (split, _), outcome in zip(files, outcomes, strict=True):
        if outcome["rows"]:
            parts[split].append(PartSummary.model_validate(outcome["summary"]))
    return parts


@dataclass(frozen=True)
class WritePart:
    """The task of one part.

    Attributes:
        assembled: files of stage assemble.
        part: number of the part, of `num_parts` in all splits.
        folder: folder of the new parts.
        file: path of the part in it, e.g. train/part-00000.parquet.
        generation: number of this ingest.
    """

    schema: Schema
    assembled: tuple[Path, ...]
    part: int
    num_parts: int
    seed: int
    row_group_rows: int
    folder: Path
    file: str
    generation: int

    def run(self) -> dict[str, Any]:
        """Summary of the part; `rows` is 0 and there is no file if it got no rows."""
        rows = read_bucket(self.assembled, self.part, self.num_parts)
        if not len(rows):
            return {"rows": 0}
        order = np.random.default_rng((self.seed, self.part)).permutation(len(rows))
        types = pa.schema({n: arrow_type(self.schema, n) for n in rows.column_names})
        labels = [task.column for task in self.schema.tasks]
        with (
            published(self.folder / self.file) as path,
            PartWriter(path, types, nullable=labels) as writer,
        ):
            for start in range(0, len(order), self.row_group_rows):
                chosen = pa.array(order[start : start + self.row_group_rows])
                group = rows.take(chosen).cast(writer.schema)
                writer.write_table(group, row_group_size=self.row_group_rows)
        summary = summarise(self.folder, self.file, self.schema, generation=self.generation)
        return {"rows": len(rows), "summary": summary.model_dump(mode="json")}
