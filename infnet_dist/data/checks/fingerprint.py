"""Fingerprint of a Parquet file, without reading its rows."""

import hashlib

import pyarrow as pa

_END = 8  # bytes after the footer: its length and "PAR1"


def fingerprint(source: pa.NativeFile) -> str:
    """`size:SHA-256 of the footer` of an open Parquet file.

    The footer of a part that ingest writes contains the hash of all bytes before it
    (`ingest/parts.py`), so the fingerprint changes with any row. For files of other writers it
    reflects sizes and column statistics.

    Raises:
        pa.ArrowInvalid: the file has no footer.
    """
    size = source.seek(0, 2)
    source.seek(max(size - _END, 0))
    end = source.read(_END)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or length + _END > size:
        raise pa.ArrowInvalid(f"no Parquet footer in {size} bytes")
    source.seek(size - _END - length)
    return f"{size}:{hashlib.sha256(source.read(length)).hexdigest()}"
