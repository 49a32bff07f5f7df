"""Keys of values -> ids of a table: by a vocabulary, by hash, unchanged, or ids already.

A key is an integer itself or the hash of a text (`hashing.text_keys`); nulls are given by a mask.
Id 0 means null or unknown in every table. A vocabulary is two arrays on disk: keys in ascending
order, and their ids.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from infnet_dist.errors import DataError
from infnet_dist.features.hashing import IntArray, hashed_rows

BoolArray = npt.NDArray[np.bool_]
_COMPACT = 4  # maximum entries of a table by key per value: 4 bytes each, a value has 12
_PARTS = ("keys", "ids")


class KeyMap:
    """Ids by key; all other keys get 0.

    Args:
        keys: int64 [n], ascending, without duplicates.
        ids: int32 or int64 [n], > 0.
        direct: whether to make a table that is indexed by key where keys are small integers. It
            is faster for many lookups; without it, arrays that are mapped from a file stay there.
    """

    def __init__(
        self, keys: IntArray, ids: npt.NDArray[np.integer], *, direct: bool = False
    ) -> None:
        self.keys, self.ids = keys, ids
        self._by_key = self._direct() if direct else None

    @classmethod
    def of(cls, keys: IntArray, ids: npt.NDArray[np.integer], *, direct: bool = False) -> "KeyMap":
        """The map of keys in any order.

        Raises:
            DataError: two values have the same key.
        """
        order = np.argsort(keys, kind="stable")
        keys, ids = keys[order], ids[order]
        if np.any(keys[1:] == keys[:-1]):
            raise DataError(
                "two values of a vocabulary have the same 64-bit hash, so they would "
                "get one id; change the text of one of them, or encode the table by hash"
            )
        small = int(ids.max(initial=0)) < 2**31
        return cls(keys, ids.astype(np.int32 if small else np.int64), direct=direct)

    @classmethod
    def load(cls, stem: Path, *, direct: bool = False) -> "KeyMap":
        """Map the files of `save` into memory.

        Raises:
            DataError: a file is missing or malformed.
        """
        arrays = []
        for path, kinds in zip(key_map_files(stem), (("i8",), ("i4", "i8")), strict=True):
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{path} can't be read as an array ({error})") from None
            if array.ndim != 1 or array.dtype not in [np.dtype(kind) for kind in kinds]:
                raise DataError(f"{path} has {array.dtype} {array.shape}, expected integers [n]")
            arrays.append(array.view(np.ndarray))
        if len(arrays[0]) != len(arrays[1]):
            raise DataError(f"{stem}: {len(arrays[0])} keys, but {len(arrays[1])} ids")
        return cls(arrays[0], arrays[1], direct=direct)

    def save(self, stem: Path) -> None:
        """Write `<stem>.keys.npy` and `<stem>.ids.npy`, each by rename."""
        for path, array in zip(key_map_files(stem), (self.keys, self.ids), strict=True):
            partial = path.with_name(f".{path.name}.partial")
            with partial.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            partial.replace(path)

    def __len__(self) -> int:
        """Number of values with an id."""
        return len(self.keys)

    def __call__(self, wanted: IntArray) -> IntArray:
        """Ids of keys, 0 for unknown ones; int64 [n]."""
        if self._by_key is not None:
            inside = (wanted >= 0) & (wanted < len(self._by_key))
            ids = self._by_key[np.where(inside, wanted, 0)].astype(np.int64)
            ids[~inside] = 0
            return ids
        if not len(self.keys):
            return np.zeros(len(wanted), np.int64)
        # In ascending order neighbouring searches read neighbouring memory.
        distinct, back = np.unique(wanted, return_inverse=True)
        place = np.minimum(np.searchsorted(self.keys, distinct), len(self.keys) - 1)
        found = np.where(self.keys[place] == distinct, self.ids[place], 0)
        return found.astype(np.int64)[back]

    def _direct(self) -> npt.NDArray[np.int32] | None:
        """Ids indexed by key, if this array isn't much larger than the vocabulary."""
        if not len(self.keys) or self.keys[0] < 0 or self.ids.dtype != np.int32:
            return None
        if self.keys[-1] > _COMPACT * len(self.keys) + (1 << 16):
            return None
        by_key = np.zeros(int(self.keys[-1]) + 1, np.int32)
        by_key[self.keys] = self.ids
        return by_key


def key_map_files(stem: Path) -> list[Path]:
    """The files of a key map: keys, then ids."""
    return [stem.with_name(f"{stem.name}.{part}.npy") for part in _PARTS]


def sha256(path: Path) -> str:
    """Hash of the bytes of a file.

    Raises:
        DataError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})") from None


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
