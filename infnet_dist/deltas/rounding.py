"""Rows in fewer bits, for serving: fp16, or int8 with a scale per row."""

import torch

from infnet_dist.config.publish import RowType

_LARGEST = 127.0


def rounded(rows_RE: torch.Tensor, row_type: RowType) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows [R, E] in another type, and the scale float32 [R] of int8 rows.

    An int8 row times its scale is within half a scale of the row; a row of zeros stays zero. Values
    that fp16 can't hold become infinite, which the writer refuses.
    """
    if row_type == "fp32":
        return rows_RE, None
    if row_type == "fp16":
        return rows_RE.half(), None
    if not rows_RE.numel():
        return rows_RE.to(torch.int8), rows_RE.new_zeros(len(rows_RE), dtype=torch.float32)
    values = rows_RE.float()
    scale_R = values.abs().amax(1) / _LARGEST
    divisor_R1 = scale_R.where(scale_R > 0, 1.0).unsqueeze(1)
    return (values / divisor_R1).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scale_R


def restored(
    rows_RE: torch.Tensor, scale_R: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """The rows of `rounded` in the type of their table."""
    if scale_R is None:
        return rows_RE.to(dtype)
    return (rows_RE.float() * scale_R.unsqueeze(1)).to(dtype)
