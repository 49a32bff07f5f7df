"""Stage layout: the rows that chance dealt to a part, permuted, written as Parquet.

A part is a random share of its split's rows and permuted itself, so any of its row groups is a
random sample of the split: the shuffle is global.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infnet_dist.data.manifest import arrow_type
from infnet_dist.ingest.logs.shuffle_files import read_bucket, renamed
from infnet_dist.ingest.parts import PartWriter, summarise
from infnet_dist.schema import Schema


@dataclass(frozen=True)
class Layout:
    """The task of one part.

    Attributes:
        assembled: files of stage assemble.
        bucket: of `num_buckets`.
        folder: the new parts' folder.
        file: the part's path in it, e.g. train/part-00000.parquet.
    """

    schema: Schema
    assembled: tuple[Path, ...]
    bucket: int
    num_buckets: int
    seed: int
    row_group_rows: int
    folder: Path
    file: str

    def run(self) -> dict[str, Any]:
        """The part's summary; `rows` 0 and no file if chance dealt it none."""
        rows = read_bucket(self.assembled, self.bucket, self.num_buckets)
        if not len(rows):
            return {"rows": 0}
        order = np.random.default_rng((self.seed, self.bucket)).permutation(len(rows))
        types = pa.schema({n: arrow_type(self.schema, n) for n in rows.column_names})
        labels = [task.column for task in self.schema.tasks]
        with (
            renamed(self.folder / self.file) as path,
            PartWriter(path, types, nullable=labels) as writer,
        ):
            for start in range(0, len(order), self.row_group_rows):
                chosen = pa.array(order[start : start + self.row_group_rows])
                group = rows.take(chosen).cast(writer.schema)
                writer.write_table(group, row_group_size=self.row_group_rows)
        summary = summarise(self.folder, self.file, self.schema)
        return {"rows": len(rows), "summary": summary.model_dump(mode="json")}
