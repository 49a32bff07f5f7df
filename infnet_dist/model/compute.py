"""How the dense part is computed: the precision of its matrix products, and compilation."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from infnet_dist.errors import ConfigError

Precision = Literal["fp32", "tf32", "bf16"]


def set_tf32(allowed: bool) -> None:
    """Allow TF32 in the float32 matrix products and GRUs of this process; GPUs alone have it."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed  # True in torch by default


@contextmanager
def bf16_autocast(device: torch.device) -> Iterator[None]:
    """Matrix products in bfloat16; parameters and their gradients stay float32.

    On CPUs attention is computed in float32, as torch's math kernel does: the backward pass of the
    fused one is 10 times slower in bfloat16 than in float32.
    """
    with torch.autocast(device.type, torch.bfloat16):
        if device.type == "cpu":
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield


def compile_training(module: nn.Module, *, backend: str = "inductor") -> None:
    """Compile a module for training mode, at its next call; it evaluates as before.

    The module stays the same object, so that no name in a checkpoint changes.

    Raises:
        ConfigError: this machine has no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"training.compile needs a C++ compiler on every worker, and {compiler} isn't here; "
            "install it, name another one in CXX, or set training.compile=false"
        )
    plain, compiled = module.forward, torch.compile(module.forward, backend=backend)

    def forward(*inputs: Any) -> Any:
        return compiled(*inputs) if module.training else plain(*inputs)

    module.forward = forward  # type: ignore[method-assign]
