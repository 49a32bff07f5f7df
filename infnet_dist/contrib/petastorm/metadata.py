"""Writes `_common_metadata`, so that petastorm's `make_reader` can open a training set."""

import json
import pickle
from pathlib import Path

from infnet_dist.contrib.petastorm.bridge import LegacyDataset, load_petastorm
from infnet_dist.contrib.petastorm.part_file import UNISCHEMA_FILE, UNISCHEMA_KEY
from infnet_dist.data.manifest import Manifest
from infnet_dist.errors import ConfigError

_ROW_GROUPS_KEY = b"dataset-toolkit.num_row_groups_per_file.v1"


def write_petastorm_metadata(folder: Path, manifest: Manifest) -> None:
    """Add a Unischema and the row groups of each file to every folder of parts.

    The columns are plain Parquet, so the Unischema has no codecs. `make_batch_reader` opens a
    folder without it, but stacks lists to a matrix and fails if their lengths differ.

    Raises:
        ConfigError: the set refers to Petastorm data sets, which have their own metadata, or it has
            vectors, for whose type petastorm has no name.
        DataError: petastorm isn't installed.
    """
    if manifest.source.get("source") == "petastorm":
        raise ConfigError(
            "data.petastorm_metadata: the data sets have Petastorm metadata already; set it to "
            "false"
        )
    for vector in manifest.schema_.vectors:
        raise ConfigError(
            f"data.petastorm_metadata: petastorm can't read column {vector.column!r} of vectors "
            "(a list of fixed size); set it to false"
        )
    load_petastorm()
    from petastorm.unischema import Unischema
    from petastorm.utils import add_to_dataset_metadata

    parts = [part for split in manifest.splits.values() for part in split.parts]
    for root in sorted({(folder / part.file).parent for part in parts}):
        (root / UNISCHEMA_FILE).unlink(missing_ok=True)
        dataset = LegacyDataset(str(root))
        row_groups = {Path(p.path).name: p.get_metadata().num_row_groups for p in dataset.pieces}
        unischema = pickle.dumps(Unischema.from_arrow_schema(dataset))
        add_to_dataset_metadata(dataset, UNISCHEMA_KEY, unischema)
        add_to_dataset_metadata(dataset, _ROW_GROUPS_KEY, json.dumps(row_groups))
