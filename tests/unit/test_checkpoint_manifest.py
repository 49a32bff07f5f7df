"""A checkpoint's manifest is untrusted data, so it is checked."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infnet_dist.checkpoint.manifest import (
    CheckpointManifest,
    DataOrder,
    SavedProgress,
    dump_manifest,
    read_manifest,
)
from infnet_dist.checkpoint.saved_tensors import SavedTensor
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from tests.checkpoints import whole, write_checkpoint

Rectangle = tuple[int, int, int, int]


def tensor_of(shape: tuple[int, int], rectangles: list[Rectangle]) -> dict[str, Any]:
    chunks = [
        {
            "file": "x.safetensors",
            "begin": 8,
            "offsets": (top, left),
            "shape": (bottom - top, right - left),
            "crc32": (),
        }
        for top, left, bottom, right in rectangles
    ]
    return {"data_type": "F32", "shape": shape, "chunks": chunks}


def row_wise(rows: int, ranks: int) -> list[Rectangle]:
    return [(i, 0, i + rows // ranks, 64) for i in range(0, rows, rows // ranks)]


@pytest.mark.parametrize(
    "rectangles",
    [
        row_wise(40_000, 4_000),
        [(0, i, 40_000, i + 1) for i in range(64)],
        [(i, j, i + 40, j + 16) for i in range(0, 40_000, 40) for j in range(0, 64, 16)],
        [(0, 0, 40_000, 64)],
    ],
    ids=["row-wise", "column-wise", "grid", "table-wise"],
)
def test_thousands_of_chunks_are_checked_in_milliseconds(rectangles: list[Rectangle]) -> None:
    random.Random(0).shuffle(rectangles)
    start = time.process_time()
    SavedTensor.model_validate(tensor_of((40_000, 64), rectangles))
    assert time.process_time() - start < 1


def test_chunks_of_the_right_size_that_overlap() -> None:
    halves = [(0, 0, 3, 4), (3, 0, 6, 4)]
    SavedTensor.model_validate(tensor_of((6, 4), halves))
    for twice in ([halves[0]] * 2, [(0, 0, 3, 4), (1, 0, 4, 4)], [(0, 0, 6, 2), (0, 1, 6, 3)]):
        with pytest.raises(ValidationError, match="overlap"):
            SavedTensor.model_validate(tensor_of((6, 4), twice))


@given(st.randoms(use_true_random=False))
def test_whatever_tiles_passes_and_whatever_overlaps_does_not(dice: random.Random) -> None:
    """Random cuts of a rectangle; then one chunk replaced by another place of the same size."""
    rows, columns = dice.randint(1, 12), dice.randint(1, 12)
    chunks: list[Rectangle] = [(0, 0, rows, columns)]
    for _ in range(dice.randint(0, 12)):
        top, left, bottom, right = chunks.pop(dice.randrange(len(chunks)))
        if dice.random() < 0.5:
            cut = dice.randint(top, bottom)
            chunks += [(top, left, cut, right), (cut, left, bottom, right)]
        else:
            cut = dice.randint(left, right)
            chunks += [(top, left, bottom, cut), (top, cut, bottom, right)]
    dice.shuffle(chunks)
    SavedTensor.model_validate(tensor_of((rows, columns), chunks))
    top, left, bottom, right = chunks.pop()
    down = dice.randint(0, rows - bottom + top) - top
    aside = dice.randint(0, columns - right + left) - left
    if (down or aside) and bottom > top and right > left:
        chunks.append((top + down, left + aside, bottom + down, right + aside))
        with pytest.raises(ValidationError, match="overlap"):
            SavedTensor.model_validate(tensor_of((rows, columns), chunks))


def test_a_chunk_cut_in_its_third_dimension() -> None:
    raw = json.loads(json.dumps(tensor_of((2, 2), [(0, 0, 2, 2), (0, 0, 2, 2)])))
    raw["shape"] = (2, 2, 2)
    for number, chunk in enumerate(raw["chunks"]):
        chunk["offsets"], chunk["shape"] = (0, 0, number), (2, 2, 1)
    with pytest.raises(ValidationError, match="dimension"):
        SavedTensor.model_validate(raw)


def test_a_manifest_is_parsed_only_if_its_checksum_is_right(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b'{"crc32":1,' + b"[" * 10**6)
    parser = mock.patch("infnet_dist.checkpoint.manifest.parse_json", side_effect=AssertionError)
    with parser, pytest.raises(CheckpointError, match="checksum"):
        read_manifest(Folder(tmp_path))
    (tmp_path / "manifest.json").write_bytes(b'{"format_version": 1, "tensors": {}}')
    with parser, pytest.raises(CheckpointError, match="format 1"):
        read_manifest(Folder(tmp_path))


def test_a_manifest_too_large_to_be_read_is_not_written(tmp_path: Path) -> None:
    os.truncate(os.open(tmp_path / "manifest.json", os.O_CREAT | os.O_RDWR), 2**40)
    with pytest.raises(CheckpointError, match=f"{2**40} .*{2**27}"):
        read_manifest(Folder(tmp_path))
    small = mock.patch("infnet_dist.checkpoint.manifest.MAX_MANIFEST_BYTES", 300)
    tensors = {"model.x": whole(torch.zeros(4))}
    with small, pytest.raises(CheckpointError, match="300"):
        write_checkpoint(Folder(tmp_path), tensors)


def test_each_flipped_byte_of_a_manifest_is_found(tmp_path: Path) -> None:
    manifest = CheckpointManifest(
        progress=SavedProgress(step=3, examples=96, consumed=((0, 96),)),
        order=DataOrder(content_hash="abc", seed=1, shuffle_rows=1_000, version=2),
        world_size=2,
        metrics={"valid/auc/click": 0.75, "valid/auc/like": None},
        block_bytes=64,
        files={},
        tensor_files={},
        tensors={},
    )
    content = dump_manifest(manifest)
    (tmp_path / "manifest.json").write_bytes(content)
    assert read_manifest(Folder(tmp_path)) == manifest
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (tmp_path / "manifest.json").write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"manifest\.json|format 1"):
            read_manifest(Folder(tmp_path))


@pytest.mark.parametrize(
    "left_out",
    [
        [[["train/part-00000.parquet", 0, 5]] * 10_001],
        [[]] * 70_000,
        [[["\x1b[2J", 0, 5]]],
        [[["x" * 4_001, 0, 5]]],
        [[["train/part-00000.parquet", -1, 5]]],
    ],
    ids=["row groups", "ranks", "control characters", "long name", "negative"],
)
def test_row_groups_left_out_are_bounded(left_out: list) -> None:
    SavedProgress.model_validate({"left_out": [[["train/part-00000.parquet", 0, 5]] * 10_000, []]})
    with pytest.raises(ValidationError):
        SavedProgress.model_validate({"left_out": left_out})
