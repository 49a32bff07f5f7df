"""64-bit keys of Arrow columns: those of `infnet_dist.features`, by pandas for long columns."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from infnet_dist.features.hashing import HASH_KEY

IntArray = npt.NDArray[np.int64]


def keys(values: pa.Array) -> IntArray:
    """Integers unchanged, texts by hash (`features.hashing.text_keys`), null as -1; int64 [n]."""
    if pa.types.is_integer(values.type):
        return pc.fill_null(values, -1).to_numpy().astype(np.int64)
    encoded = values.dictionary_encode()
    texts = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
    hashes = pd.util.hash_array(texts, hash_key=HASH_KEY, categorize=False).view(np.int64)
    hashes = np.append(hashes, -1)  # of null
    return hashes[pc.fill_null(encoded.indices, len(texts)).to_numpy()]


def nulls(values: pa.Array) -> npt.NDArray[np.bool_]:
    """The mask of nulls."""
    if not values.null_count:
        return np.zeros(len(values), bool)
    found: npt.NDArray[np.bool_] = pc.is_null(values).to_numpy(zero_copy_only=False)
    return found
