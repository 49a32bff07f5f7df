"""The most FLOP/s that a device can do: of known GPUs from their data sheets, of CPUs measured."""

import re
import time
from typing import NamedTuple

import torch

_SIZE = 1024  # of the square matrices that are multiplied on CPUs
_TRIALS = 5


class _Sheet(NamedTuple):
    """TFLOP/s of a GPU, without sparsity: float32, TF32 and 16-bit floats on tensor cores."""

    fp32: float
    tf32: float
    half: float


# From NVIDIA's data sheets; the first name that is found in the device's name counts.
_GPUS = {
    "H200": _Sheet(67.0, 494.0, 989.0),
    "H100 PCIe": _Sheet(51.0, 378.0, 756.0),
    "H100 NVL": _Sheet(60.0, 417.5, 835.5),
    "H100": _Sheet(67.0, 494.0, 989.0),
    "A100": _Sheet(19.5, 156.0, 312.0),
    "L40S": _Sheet(91.6, 183.0, 362.0),
    "L4": _Sheet(30.3, 60.0, 121.0),
    "A10": _Sheet(31.2, 62.5, 125.0),
}


class Peak(NamedTuple):
    """The most FLOP/s of a device, and where the figure is from; None if it isn't known."""

    flops_per_s: float | None
    source: str


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak of matrix products of this type; on CPUs it multiplies matrices for a moment."""
    if device.type != "cuda":
        size = f"{_SIZE} x {_SIZE}"
        threads = torch.get_num_threads()
        return Peak(_measured(dtype), f"measured: product of {size} matrices, {threads} threads")
    return gpu_peak(torch.cuda.get_device_name(device), dtype)


def gpu_peak(name: str, dtype: torch.dtype) -> Peak:
    """The peak of a GPU by its name."""
    known = next((one for one in _GPUS if re.search(rf"\b{one}\b", name)), None)
    if known is None:
        return Peak(None, f"unknown for {name}")
    sheet = _GPUS[known]
    if dtype != torch.float32:
        return Peak(sheet.half * 1e12, f"data sheet of {known}, 16-bit floats")
    if torch.backends.cuda.matmul.allow_tf32:
        return Peak(sheet.tf32 * 1e12, f"data sheet of {known}, TF32")
    return Peak(sheet.fp32 * 1e12, f"data sheet of {known}, float32")


def _measured(dtype: torch.dtype) -> float:
    a, b = torch.randn(2, _SIZE, _SIZE).to(dtype)
    best = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * _SIZE**3 / best
