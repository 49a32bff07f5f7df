"""Mean history lengths of a training set, from the footers alone: what planning needs to know."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from infnet_dist.data.manifest import Manifest
from infnet_dist.schema import Schema

_MOST_PARTS = 16


def mean_lengths(folder: Path, manifest: Manifest, schema: Schema) -> dict[str, float]:
    """Mean items per row of each sequence in train, capped at its max_length.

    A footer counts an empty list as one value, so means are slightly high where many are empty.
    At most 16 parts are looked at, spread over the split.

    Args:
        folder: the training set.
        manifest: its manifest.
        schema: the selected features.

    Returns:
        float by sequence name, at least 1.
    """
    parts = manifest.split("train").parts
    spread = np.unique(np.linspace(0, len(parts) - 1, _MOST_PARTS).astype(int))
    values: dict[str, int] = {}
    rows = 0
    for part in (parts[i] for i in spread):
        footer = pq.read_metadata(folder / part.file)
        rows += footer.num_rows
        for group in range(footer.num_row_groups):
            for number in range(footer.num_columns):
                column = footer.row_group(group).column(number)
                name = column.path_in_schema.split(".")[0]
                values[name] = values.get(name, 0) + column.num_values
    return {
        s.name: min(max(values[s.attributes[0].column] / rows, 1.0), float(s.max_length))
        for s in schema.sequences
    }
