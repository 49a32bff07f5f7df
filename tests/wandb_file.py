"""Reads the records of a W&B offline run, from the file's own layout.

A 7-byte header, then LevelDB log blocks of 32 KiB of records (crc32 4, length 2, type 1, data);
types 1 whole, 2 first, 3 middle, 4 last; the data is a `wandb_internal_pb2.Record`.
"""

import json
import struct
from pathlib import Path

from wandb.proto import wandb_internal_pb2

_BLOCK = 32_768


def read_history(folder: Path) -> list[dict[str, float]]:
    """The logged metrics of an offline run's folder, one dictionary per `log` call."""
    (path,) = folder.glob("run-*.wandb")
    data = path.read_bytes()
    assert data[:4] == b":W&B", "not a W&B file"
    history = []
    for record in _records(data):
        message = wandb_internal_pb2.Record()
        message.ParseFromString(record)
        if message.WhichOneof("record_type") == "history":
            items = message.history.item
            history.append(
                {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            )
    return history


def _records(data: bytes) -> list[bytes]:
    records, parts, place = [], [], 7
    while place + 7 <= len(data):
        room = _BLOCK - place % _BLOCK
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            records.append(b"".join(parts))
            parts = []
    return records
