"""How a training set uses its tables, from a sample of its batches: what planning needs to know."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from infnet_dist.data.manifest import Manifest
from infnet_dist.data.part_files import ARROW, OpenPart
from infnet_dist.data.reader import Reader
from infnet_dist.schema import Schema

_BATCH_SIZE = 4_096
_BATCHES = 16


@dataclass(frozen=True)
class Usage:
    """What a sample of train looks up.

    Attributes:
        mean_lengths: mean ids per row, by key of the KeyedJaggedTensor.
        lookups: ids of the sample by table, at most as many as the table has rows: more would be
            all its rows, whatever its skew.
        distinct: distinct ids among them, by table.
    """

    mean_lengths: Mapping[str, float]
    lookups: Mapping[str, int]
    distinct: Mapping[str, int]


def sample_usage(
    folder: Path, manifest: Manifest, schema: Schema, open_part: OpenPart = ARROW
) -> Usage:
    """Look at up to 65,536 rows of train: of row groups in shuffled order, so of a few times.

    Args:
        folder: the training set.
        manifest: its manifest.
        schema: the selected features.
        open_part: how a part is opened.

    Raises:
        DataError: a part can't be read (names the file).
    """
    reader = Reader(
        folder=folder,
        manifest=manifest,
        schema=schema,
        split="train",
        batch_size=_BATCH_SIZE,
        rank=0,
        world_size=1,
        shuffle_rows=_BATCH_SIZE * _BATCHES,
        open_part=open_part,
    )
    table_of = {feature.key: feature.table for feature in schema.table_features}
    rows, lengths = 0.0, dict.fromkeys(table_of, 0)
    ids: dict[str, list[np.ndarray]] = {table.name: [] for table in schema.tables}
    for batch in islice(reader.batches(), _BATCHES):
        rows += float(batch.weights_B.sum())
        real_B = batch.weights_B.bool()
        for key, jagged in batch.sparse_features.to_dict().items():
            kept = real_B.repeat_interleave(jagged.lengths())
            values = jagged.values()[kept].numpy()
            lengths[key] += len(values)
            ids[table_of[key]].append(values)
    most = {table.name: table.num_embeddings for table in schema.tables}
    together = {name: _thinned(np.concatenate(ids[name]), most[name]) for name in ids}
    return Usage(
        mean_lengths={key: length / rows for key, length in lengths.items()},
        lookups={table: len(values) for table, values in together.items()},
        distinct={table: len(np.unique(values)) for table, values in together.items()},
    )


def _thinned(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly spread."""
    return values[np.linspace(0, len(values) - 1, min(len(values), most)).astype(np.int64)]
