"""Which negative rows of train are left out (`ingest.negatives`).

A row is negative if its label of the named task is 0 and no other label is known and not 0. It is
kept or left out by a hash of what identifies it, so files, partitions and workers don't matter.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.config.logs import LogsIngest
from infnet_dist.features.hashing import splitmix64
from infnet_dist.ingest.convert.keys import keys
from infnet_dist.ingest.logs.encoding.hashing import combined
from infnet_dist.ingest.logs.splits import NEGATIVE, SPLITS, Calendar

BoolArray = npt.NDArray[np.bool_]
_TRAIN = SPLITS.index("train")
_SEED = 13  # differs from those of hashed ids, partitions, samples and parts


def splits_of(config: LogsIngest, rows: pa.Table) -> npt.NDArray[np.int64]:
    """The split of each row as in `Calendar.splits`, or NEGATIVE; int64 [n]."""
    codes = Calendar.of(config).splits(rows[config.time.column].to_numpy())
    if config.negatives is not None:
        negative = _is_zero(config, rows) & ~_has_other_label(config, rows)
        codes[(codes == _TRAIN) & negative & ~_is_kept(config, rows)] = NEGATIVE
    return codes


def contradicting(config: LogsIngest, rows: pa.Table) -> BoolArray:
    """Mask of the rows of train with another label although that of the named task is 0."""
    if config.negatives is None:
        return np.zeros(len(rows), bool)
    splits = Calendar.of(config).splits(rows[config.time.column].to_numpy())
    return (splits == _TRAIN) & _is_zero(config, rows) & _has_other_label(config, rows)


def _is_zero(config: LogsIngest, rows: pa.Table) -> BoolArray:
    """Rows whose label of the named task is known and 0."""
    assert config.negatives is not None
    column = rows[config.tasks[config.negatives.task]]
    return pc.fill_null(pc.equal(column, 0), False).to_numpy()


def _has_other_label(config: LogsIngest, rows: pa.Table) -> BoolArray:
    """Rows with a label of another task that is known and not 0."""
    assert config.negatives is not None
    columns = [column for task, column in config.tasks.items() if task != config.negatives.task]
    columns += [config.watch_time] if config.watch_time else []
    found = np.zeros(len(rows), bool)
    for column in columns:
        found |= pc.fill_null(pc.not_equal(rows[column], 0), False).to_numpy()
    return found


def _is_kept(config: LogsIngest, rows: pa.Table) -> BoolArray:
    """A share of all rows, by a hash of `unique`, or of user, time and all ids."""
    assert config.negatives is not None
    names = config.unique or (config.user, config.time.column, *config.ids)
    identity = combined([keys(rows[name].combine_chunks()) for name in dict.fromkeys(names)])
    return splitmix64(identity, _SEED) < np.uint64(config.negatives.share * 2.0**64)
