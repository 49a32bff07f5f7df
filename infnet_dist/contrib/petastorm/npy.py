"""Decodes 1-D arrays in the .npy and .npz formats, which Petastorm codecs store in every cell.

numpy parses a header of Python source for each array, which takes far longer than reading a few
values. Arrays of equal length and type have the same header, so each header is parsed once here.
"""

import functools
import io
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

_MAGIC = b"\x93NUMPY\x01\x00"  # version 1.0; other versions are for headers of 64 KiB and more
_PREFIX = len(_MAGIC) + 2  # and the header's length


def unpack(value: bytes) -> npt.NDArray[Any] | None:
    """The array in `value`; None unless it is 1-D with numbers or fixed-width text.

    Raises:
        ValueError: there are fewer bytes than in the header.
    """
    if not value.startswith(_MAGIC):
        return None
    start = _PREFIX + int.from_bytes(value[len(_MAGIC) : _PREFIX], "little")
    found = _parse(value[len(_MAGIC) : start])
    if found is None:
        return None
    count, dtype = found
    return np.frombuffer(value, dtype, count, start) if count else np.empty(0, dtype)


def unpack_compressed(value: bytes) -> npt.NDArray[Any] | None:
    """As `unpack`, for the array named `arr` in a .npz archive.

    Raises:
        ValueError: as `unpack`.
        zipfile.BadZipFile: `value` isn't an archive.
        KeyError: the archive lacks the array.
    """
    with zipfile.ZipFile(io.BytesIO(value)) as archive:
        return unpack(archive.read("arr.npy"))


@functools.lru_cache(maxsize=4096)
def _parse(header: bytes) -> tuple[int, np.dtype[Any]] | None:
    """Length and type in a header, which begins with its own length."""
    shape, _, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    return None if len(shape) != 1 or dtype.hasobject else (shape[0], dtype)
