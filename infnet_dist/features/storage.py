"""`transforms.json` and the key maps beside it, in one folder that can be copied as a whole.

transforms/g0001/transforms.json
transforms/g0001/table-000.keys.npy    int64, ascending
transforms/g0001/table-000.ids.npy     int32 (int64 from 2**31 ids on)
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infnet_dist.errors import DataError
from infnet_dist.features.definition import Definition, KeyMapFiles, parse, plain
from infnet_dist.features.ids import IdEncoder, KeyMap, key_map_files, sha256
from infnet_dist.features.transforms import Transforms, make_encoder

TRANSFORMS = "transforms.json"
_MAX_BYTES = 2**28
_STEM = re.compile(r"[A-Za-z0-9_-]{1,100}")
_AGAIN = "restore it, or ingest again"


def save_key_map(folder: Path, number: int, key_map: KeyMap) -> KeyMapFiles:
    """Write the vocabulary of the table of this number."""
    stem = f"table-{number:03d}"
    key_map.save(folder / stem)
    hashes = tuple(sha256(path) for path in key_map_files(folder / stem))
    return KeyMapFiles(stem=stem, values=len(key_map), sha256=hashes)


def save_transforms(folder: Path, definition: Definition) -> Path:
    """Write `transforms.json` beside the key maps, by rename; returns its path."""
    path = folder / TRANSFORMS
    partial = path.with_name(f".{path.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(plain(definition), indent=1, allow_nan=False) + "\n")
    partial.replace(path)
    return path


def encoders_of(definition: Definition, folder: Path) -> dict[str, IdEncoder]:
    """Encoders by table for long columns, from the key maps that `save_key_map` has just written.

    Raises:
        DataError: a key map can't be read.
    """
    found = {}
    for name, table in definition.tables.items():
        files = table.key_map
        key_map = KeyMap.load(folder / files.stem, direct=True) if files is not None else None
        found[name] = make_encoder(table, key_map)
    return found


def load_transforms(
    folder: str | Path,
    *,
    verify: bool = True,
    change: Callable[[Definition], Definition] = lambda definition: definition,
) -> Transforms:
    """The transforms that a folder holds; key maps are mapped into memory.

    Args:
        folder: the folder of `transforms.json`.
        verify: whether to compare all bytes of the key maps with their hashes.
        change: a change of the definition, e.g. to the inputs of one model.

    Raises:
        DataError: a file is missing, damaged or malformed; names it.
    """
    folder = Path(folder)
    definition = change(_read(folder / TRANSFORMS))
    key_maps = {
        name: _load(folder, table.key_map, verify)
        for name, table in definition.tables.items()
        if table.key_map is not None
    }
    return Transforms(definition, key_maps)


def _read(path: Path) -> Definition:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"exceeds {_MAX_BYTES} bytes; {_AGAIN}")
        value = json.loads(path.read_bytes(), parse_constant=_refuse, object_pairs_hook=_once)
        return parse(value)
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); {_AGAIN}") from None
    except RecursionError:
        raise DataError(f"{path} is nested too deeply; {_AGAIN}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); {_AGAIN}") from None


def _once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key appears twice in an object")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _load(folder: Path, files: KeyMapFiles, verify: bool) -> KeyMap:
    if not _STEM.fullmatch(files.stem):
        raise DataError(f"{folder / TRANSFORMS}: {files.stem[:60]!r} can't be the name of a file")
    stem = folder / files.stem
    if verify:
        for path, expected in zip(key_map_files(stem), files.sha256, strict=True):
            if sha256(path) != expected:
                raise DataError(f"{path} is damaged: its hash isn't that of {TRANSFORMS}; {_AGAIN}")
    key_map = KeyMap.load(stem)
    if len(key_map) != files.values:
        raise DataError(f"{stem}: {len(key_map)} values, expected {files.values}; {_AGAIN}")
    if verify and np.any(key_map.keys[1:] <= key_map.keys[:-1]):
        raise DataError(f"{stem}: keys aren't ascending; {_AGAIN}")
    return key_map
