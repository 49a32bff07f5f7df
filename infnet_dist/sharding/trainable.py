"""Frozen and slowed parts of a model (`training.trainable`): names, checks, and frozen tables.

Frozen dense parameters are those of a `FlatOptimizer` that is never stepped.
"""

from typing import Any

import torch
from torch import nn
from torchrec.optim.keyed import KeyedOptimizer

from infnet_dist.config.run import Config
from infnet_dist.config.trainable import check_trainable
from infnet_dist.lookups import Lookups, table_of
from infnet_dist.sharding.optimizers import kernels_with_tables

_WRAPPERS = "model."  # of the dense part: `TrainModel` and `RankingModel`


def trainable_name(parameter: str) -> str:
    """The name of a model's parameter in `training.trainable`: the table's, or `dense.<...>`."""
    if table := table_of(parameter):
        return table
    while parameter.startswith(_WRAPPERS):
        parameter = parameter.removeprefix(_WRAPPERS)
    return parameter


def check_trainable_names(model: nn.Module, config: Config) -> None:
    """Check `training.trainable` against the parameters of an unsharded model.

    Raises:
        ConfigError: a pattern matches no table and no parameter, or nothing is trained.
    """
    names = {trainable_name(name) for name, _ in model.named_parameters()}
    check_trainable(config.training, sorted(names))


def freeze_tables(optimizer: KeyedOptimizer, lookups: Lookups) -> None:
    """Keep the backward pass away from the kernels of frozen tables: rows and state stay as is.

    A learning rate of 0 isn't enough, since the kernel would still change the optimizer's state.
    It gives frozen tables kernels of their own, since TorchRec groups by it.

    Args:
        optimizer: of the tables.
        lookups: of the run.
    """
    frozen = {table.name for table in lookups.tables if table.settings.is_frozen}
    for kernel, tables in kernels_with_tables(optimizer):
        if tables <= frozen:
            kernel.register_forward_hook(_without_backward)
        elif tables & frozen:  # not an assert: it must happen under python -O too
            raise RuntimeError(f"one kernel has frozen and trained tables: {sorted(tables)}")


def _without_backward(kernel: nn.Module, inputs: Any, rows: torch.Tensor) -> torch.Tensor:
    """Detached rows; they require a gradient, since all ranks exchange gradients all the same."""
    return rows.detach().requires_grad_(rows.requires_grad)
