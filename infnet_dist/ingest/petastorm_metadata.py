"""Metadata that lets petastorm's `make_reader` open the splits of our training sets."""

import json
import pickle
from pathlib import Path

from infnet_dist.data.manifest import Manifest
from infnet_dist.data.petastorm_bridge import LegacyDataset, load_petastorm
from infnet_dist.data.petastorm_file import UNISCHEMA_FILE, UNISCHEMA_KEY
from infnet_dist.errors import ConfigError

_ROW_GROUPS_KEY = b"dataset-toolkit.num_row_groups_per_file.v1"


def write_petastorm_metadata(folder: Path, manifest: Manifest) -> None:
    """Add a Unischema and the row groups of each file to every split, in `_common_metadata`.

    The columns stay plain Parquet, so the Unischema names no codecs. `make_batch_reader` opens a
    split without it, but stacks lists to a matrix and so fails where their lengths differ.

    Raises:
        ConfigError: the set was described from Petastorm, and has metadata of its own.
        DataError: petastorm isn't installed.
    """
    if manifest.source.get("source") == "petastorm":
        raise ConfigError(
            "data.petastorm_metadata: the data sets are Petastorm's already; set it to false"
        )
    load_petastorm()
    from petastorm.unischema import Unischema
    from petastorm.utils import add_to_dataset_metadata

    for name, split in manifest.splits.items():
        (folder / name / UNISCHEMA_FILE).unlink(missing_ok=True)
        dataset = LegacyDataset(str(folder / name))
        unischema = pickle.dumps(Unischema.from_arrow_schema(dataset))
        add_to_dataset_metadata(dataset, UNISCHEMA_KEY, unischema)
        row_groups = {Path(part.file).name: len(part.row_groups) for part in split.parts}
        add_to_dataset_metadata(dataset, _ROW_GROUPS_KEY, json.dumps(row_groups))
