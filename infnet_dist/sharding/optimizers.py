"""Optimizers: row-wise Adagrad fused in the tables' backward, AdamW for the rest; schedules."""

from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.optim import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.keyed import KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from infnet_dist.config.run import (
    Config,
    DenseOptimizerConfig,
    ScheduleConfig,
    SparseOptimizerConfig,
)


def apply_sparse_optimizer(collection: nn.Module, config: SparseOptimizerConfig) -> None:
    """Attach row-wise Adagrad to every table; called before sharding."""
    apply_optimizer_in_backward(
        RowWiseAdagrad,
        collection.parameters(),
        {"lr": config.learning_rate, "eps": config.eps},
    )


def make_dense_optimizer(model: nn.Module, config: DenseOptimizerConfig) -> KeyedOptimizerWrapper:
    """AdamW over every parameter that no table's backward updates, with its state initialised.

    Without state before the first step, a checkpoint would have nothing to load into. TorchRec's
    `init_state` creates it by a step with zero gradients: at rate 0, so that weight decay changes
    no parameter. The step count, which Adam's bias correction uses, is then reset to 0.
    """
    parameters = dict(in_backward_optimizer_filter(model.named_parameters()))
    optimizer = KeyedOptimizerWrapper(
        parameters,
        lambda params: torch.optim.AdamW(
            params, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        ),
    )
    set_learning_rate(optimizer, 0.0)
    optimizer.init_state()
    set_learning_rate(optimizer, config.learning_rate)
    for state in optimizer.state.values():
        state["step"].zero_()
    return optimizer


def learning_rate_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Factor on the learning rates of step `step` (the first is 0) out of `total_steps`."""
    warmup = (step + 1) / (schedule.warmup_steps + 1)
    decay_steps = schedule.decay_share * total_steps
    decay = (total_steps - step) / decay_steps if decay_steps else 1.0
    return min(warmup, 1.0, max(decay, 0.0))


class LearningRates(NamedTuple):
    """The learning rates of a step, by optimizer."""

    sparse: float
    dense: float


def learning_rates(config: Config, step: int, total_steps: int) -> LearningRates:
    """The scheduled learning rates of step `step` (the first is 0) out of `total_steps`."""
    factor = learning_rate_factor(config.schedule, step, total_steps)
    return LearningRates(
        sparse=factor * config.sparse_optimizer.learning_rate,
        dense=factor * config.dense_optimizer.learning_rate,
    )


def set_learning_rate(optimizer: KeyedOptimizer, learning_rate: float) -> None:
    """Set it in all groups; a fused optimizer applies it in its next `zero_grad` or `step`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
