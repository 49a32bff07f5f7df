"""Parquet files whose footers lie."""

from pathlib import Path

from infnet_dist.data.manifest import Manifest, read_manifest, write_manifest


def _varint(value: int) -> bytes:
    """A Thrift integer: zigzag, then 7 bits a byte."""
    value = (value << 1) ^ (value >> 63)
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def lie(path: Path, true: int, told: int, places: slice = slice(None)) -> None:
    """Replace the count `true`, which must be an unusual number, in a footer by `told`."""
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - length], content[-8 - length : -8]
    old, new = _varint(true), _varint(told)
    starts = [i for i in range(len(footer)) if footer.startswith(old, i)][places]
    assert starts, "the footer doesn't hold that count"
    for start in reversed(starts):
        footer = footer[:start] + new + footer[start + len(old) :]
    path.write_bytes(body + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def without_fingerprints(manifest: Manifest) -> Manifest:
    """As it was in sets that were made before parts had fingerprints."""
    splits = {
        name: split.model_copy(
            update={"parts": tuple(p.model_copy(update={"fingerprint": None}) for p in split.parts)}
        )
        for name, split in manifest.splits.items()
    }
    return manifest.model_copy(update={"splits": splits})


def forget_fingerprints(folder: Path) -> None:
    """Make the manifest in a set's folder one without fingerprints, so that parts may differ."""
    write_manifest(folder, without_fingerprints(read_manifest(folder)))
