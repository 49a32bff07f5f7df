"""Rows of a bundle's tables: their bytes, their values, and pooling, against loops."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from infnet_dist.errors import BundleError
from infnet_dist.serving.bundle import pool
from infnet_dist.serving.encoding import decode, encode, row_bytes
from infnet_dist.serving.manifest import DataType, Shard, StoredTable
from infnet_dist.serving.request import Ids
from infnet_dist.serving.tables import MappedTable


def some_rows(count: int = 9, width: int = 5) -> torch.Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    rows[2] = 0.0
    rows[3] *= 1e-6  # a row as it was initialised
    return rows


@pytest.mark.parametrize("data_type", ["fp32", "fp16", "int8"])
def test_rows_come_back(data_type: DataType) -> None:
    rows = some_rows()
    stored = encode(rows, data_type)
    assert stored.shape == (9, row_bytes(data_type, 5))
    found = decode(stored, data_type, 5)
    largest = rows.abs().amax(1, keepdim=True)
    step = {"fp32": 0.0, "fp16": 2.0**-11, "int8": 0.5 / 127}[data_type]
    # fp16 has no smaller values than 6e-8; int8 has a scale per row.
    assert ((found - rows).abs() <= largest * step * 1.001 + 3e-8 * (data_type == "fp16")).all()
    assert torch.equal(found[2], torch.zeros(5))


def test_bytes_are_those_of_the_document() -> None:
    row = torch.tensor([[1.0, -2.0, 0.5]])
    assert encode(row, "fp32").numpy().tobytes() == struct.pack("<3f", 1, -2, 0.5)
    assert encode(row, "fp16").numpy().tobytes() == struct.pack("<3e", 1, -2, 0.5)
    scale = np.float32(2) / np.float32(127)
    assert encode(row, "int8").numpy().tobytes() == struct.pack("<3bf", 64, -127, 32, scale)


@pytest.mark.parametrize("data_type", ["fp32", "fp16", "int8"])
def test_values_that_cant_be_stored_are_refused(data_type: DataType) -> None:
    for wrong in (np.nan, np.inf, *([1e6] if data_type == "fp16" else [])):
        with pytest.raises(OverflowError):
            encode(torch.tensor([[1.0, wrong]]), data_type)


@pytest.mark.parametrize("per_shard", [1, 4, 9])
def test_shards_make_up_a_table(per_shard: int, tmp_path: Path) -> None:
    rows, shards = some_rows(), []
    for first in range(0, 9, per_shard):
        part = rows[first : first + per_shard]
        shards.append(Shard(f"{first}.bin", first, len(part)))
        (tmp_path / f"{first}.bin").write_bytes(encode(part, "fp32").numpy().tobytes())
    table = MappedTable(tmp_path, StoredTable("t", 9, 5, "fp32", tuple(shards)))
    ids = torch.tensor([8, 0, 0, 3, 5, 4])
    assert torch.equal(table.lookup(ids), rows[ids])
    assert table.lookup(ids[:0]).shape == (0, 5)
    with pytest.raises(BundleError, match=r"'t'.*10 rows"):
        MappedTable(tmp_path, StoredTable("t", 10, 5, "fp32", tuple(shards)))


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_pooling_is_that_of_loops(pooling: str, weighted: bool) -> None:
    lengths = [2, 0, 3, 1]
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([0.5, 2.0, 0.0, 1.0, 0.25, 0.0])
    ids = Ids(torch.arange(6), torch.tensor(lengths), weights if weighted else None)
    found = pool(rows, ids, pooling)
    start = 0
    for i, length in enumerate(lengths):
        total, divisor = np.zeros(3), 0.0
        for j in range(start, start + length):
            weight = float(weights[j]) if weighted else 1.0
            total, divisor = total + weight * rows[j].numpy(), divisor + weight
        start += length
        if pooling == "mean" and divisor:
            total = total / divisor
        np.testing.assert_allclose(found[i].numpy(), total, rtol=1e-6, atol=1e-6)
