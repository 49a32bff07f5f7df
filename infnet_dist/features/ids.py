"""Keys of values -> ids of a table: by a vocabulary, by hash, unchanged, or ids already.

A key is an integer itself or the hash of a text (`text_keys`); nulls are given by a mask. Id 0
means null or unknown in every table.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from infnet_dist.features.hashing import IntArray, hashed_rows
from infnet_dist.features.key_map import KeyMap

BoolArray = npt.NDArray[np.bool_]


class IdEncoder(Protocol):
    """Keys of a table's columns -> ids."""

    def __call__(self, keys: IntArray, null: BoolArray, seed: int = 0) -> IntArray:
        """Ids, int64 [n]; 0 for null or unknown. `seed` selects the hash function.

        Args:
            keys: int64 [n]; those of nulls are arbitrary.
            null: bool [n].
            seed: number of the hash function.
        """
        ...


@dataclass(frozen=True)
class VocabularyEncoder:
    """Ids of a vocabulary."""

    key_map: KeyMap

    def __call__(self, keys: IntArray, null: BoolArray, seed: int = 0) -> IntArray:
        """As `IdEncoder`; the seed has no effect."""
        ids = self.key_map(keys)
        ids[null] = 0
        return ids


@dataclass(frozen=True)
class HashEncoder:
    """Rows 1 to num_embeddings - 1 by hash."""

    num_embeddings: int

    def __call__(self, keys: IntArray, null: BoolArray, seed: int = 0) -> IntArray:
        """As `IdEncoder`."""
        ids = hashed_rows(keys, self.num_embeddings, seed)
        ids[null] = 0
        return ids


@dataclass(frozen=True)
class UnchangedEncoder:
    """Keys as they are: raw ids, which are hashed to rows when they are read, or ids already."""

    def __call__(self, keys: IntArray, null: BoolArray, seed: int = 0) -> IntArray:
        """As `IdEncoder`; the seed has no effect."""
        return np.where(null, 0, keys)
