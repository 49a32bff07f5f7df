"""How the dense part is computed: the precision of its matrix products, and compilation."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from infnet_dist.errors import ConfigError

Precision = Literal["fp32", "tf32", "bf16"]


def set_precision(precision: Precision) -> None:
    """Set what torch keeps per process; `bf16_autocast` does the rest of bf16."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # Otherwise attention under SDPBackend.MATH converts its inputs back to float32.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(precision == "bf16")


@contextmanager
def bf16_autocast(device: torch.device) -> Iterator[None]:
    """Matrix products and attention in bfloat16; parameters and their gradients stay float32.

    On CPUs attention isn't fused: the backward pass of the fused kernel is 10 times slower in
    bfloat16 than in float32.
    """
    with torch.autocast(device.type, torch.bfloat16):
        if device.type == "cpu":
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield


def compile_in_place(module: nn.Module, *, backend: str = "inductor") -> None:
    """Compile a module's forward and backward at its next calls; names in checkpoints stay.

    Raises:
        ConfigError: this machine has no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"training.compile needs a C++ compiler on every worker, and {compiler} isn't here; "
            "install it, name another one in CXX, or set training.compile=false"
        )
    module.compile(backend=backend)
