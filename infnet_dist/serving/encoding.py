"""Rows of a table as bytes, little-endian, one row after the other.

    fp32, fp16   E floats
    int8         E integers q in [-127, 127], then a float32 scale: the values are q * scale

Letters: n rows, E width.
"""

import torch

from infnet_dist.serving.manifest import DataType

_ITEM_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
_SCALE_BYTES, _LARGEST = 4, 127


def row_bytes(data_type: DataType, width: int) -> int:
    """Bytes of a row."""
    return width * _ITEM_BYTES[data_type] + (_SCALE_BYTES if data_type == "int8" else 0)


def encode(rows_nE: torch.Tensor, data_type: DataType) -> torch.Tensor:
    """uint8 [n, row_bytes] of float rows.

    Raises:
        OverflowError: a value is NaN, infinite, or beyond fp16.
    """
    rows_nE = rows_nE.float().contiguous()
    if data_type != "int8":
        stored_nE = rows_nE if data_type == "fp32" else rows_nE.half()
        _check_finite(stored_nE)
        return stored_nE.view(torch.uint8)
    _check_finite(rows_nE)
    scale_n1 = rows_nE.abs().amax(dim=1, keepdim=True) / _LARGEST
    step_n1 = torch.where(scale_n1 > 0, scale_n1, 1.0)
    stored_nE = (rows_nE / step_n1).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return torch.cat([stored_nE.view(torch.uint8), scale_n1.view(torch.uint8)], dim=1)


def decode(stored_nb: torch.Tensor, data_type: DataType, width: int) -> torch.Tensor:
    """float32 [n, E] of uint8 [n, row_bytes]."""
    if data_type == "fp32":
        return stored_nb.view(torch.float32)
    if data_type == "fp16":
        return stored_nb.view(torch.float16).float()
    scale_n1 = stored_nb[:, width:].contiguous().view(torch.float32)
    return stored_nb[:, :width].view(torch.int8).float() * scale_n1


def _check_finite(rows: torch.Tensor) -> None:
    if not bool(rows.isfinite().all()):
        raise OverflowError("a value is NaN, infinite, or too large for the data type")
