"""The optimizer of the dense part: AdamW, Adagrad or SGD, FTRL, clipping, accumulation, average."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter

from infnet_dist.config.optimizers import (
    AdagradConfig,
    AdamWConfig,
    DenseOptimizerConfig,
    FtrlConfig,
)
from infnet_dist.errors import ConfigError
from infnet_dist.lookups import table_of
from infnet_dist.sharding.flat_optimizer import FlatOptimizer
from infnet_dist.sharding.ftrl import FtrlProximal
from infnet_dist.sharding.trainable import trainable_name

_FIRST_ORDER = ".first_order."  # of `DenseArch`, in names of parameters


def make_dense_optimizer(
    model: nn.Module,
    config: DenseOptimizerConfig,
    lr_factor: Callable[[str], float] = lambda name: 1.0,
) -> CombinedOptimizer:
    """The optimizer of every parameter but the tables', with its state initialised.

    Without state before the first step, a checkpoint would have nothing to load into. The
    parameters become parts of one tensor (`FlatOptimizer`), or of one per learning rate.

    Args:
        model: the parameters that are frozen won't require gradients.
        config: of the optimizer.
        lr_factor: by `trainable_name`, the factor on the learning rate; 0: frozen.

    Raises:
        ConfigError: a factor on the learning rate of FTRL-proximal.
    """
    kinds: dict[tuple[bool, float], dict[str, nn.Parameter]] = {}
    for name, parameter in in_backward_optimizer_filter(model.named_parameters()):
        if not table_of(name):
            is_ftrl = config.first_order is not None and _FIRST_ORDER in name
            factor = lr_factor(trainable_name(name))
            kinds.setdefault((is_ftrl, factor), {})[name] = parameter
    found = []
    for (is_ftrl, factor), parameters in kinds.items():
        if is_ftrl and config.first_order:
            _check_ftrl_factor(factor)
            optimizer = FlatOptimizer(
                parameters, partial(_ftrl, config=config.first_order), is_frozen=not factor
            )
        else:
            make = partial(_optimizer, config=config)
            optimizer = FlatOptimizer(parameters, make, is_frozen=not factor)
            for group in optimizer.param_groups:
                group["initial_lr"] = factor * config.learning_rate
        found.append(("dense", optimizer))
    return CombinedOptimizer(found)


def _check_ftrl_factor(factor: float) -> None:
    if factor not in (0, 1):
        raise ConfigError(
            f"training.trainable: the factor of the linear term is {factor:g}, but weights of "
            "FTRL-proximal follow from its state and alpha, so expected 0 or 1; set "
            "dense_optimizer.first_order.alpha for another learning rate"
        )


def _ftrl(parameters: Sequence[torch.Tensor], config: FtrlConfig) -> torch.optim.Optimizer:
    return FtrlProximal(parameters, **config.model_dump(exclude={"name"}))


def _optimizer(
    parameters: Sequence[torch.Tensor], config: DenseOptimizerConfig
) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    if isinstance(config, AdagradConfig):
        return torch.optim.Adagrad(parameters, lr=rate, weight_decay=decay, eps=config.eps)
    return torch.optim.SGD(
        parameters, lr=rate, weight_decay=decay, momentum=config.momentum, fused=True
    )


class WeightAverage(KeyedOptimizer):
    """An exponential moving average of parameters, without bias towards their initial values.

    After t steps it is the mean of the parameters after step 1 to t, weighted by decay^(t - i).

    Args:
        parameters: by name; those that don't require a gradient are frozen.
        decay: weight of the average before a step, relative to the parameters' after it.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], decay: float) -> None:
        # The state is keyed by the averages, since the parameters are the keys of AdamW's.
        averages = {name: p.detach().clone() for name, p in parameters.items()}
        state = {
            average: {"average": average, "step": torch.zeros((), dtype=torch.int64)}
            for average in averages.values()
        }
        super().__init__(averages, state, [])
        self._values = [parameter.detach() for parameter in parameters.values()]
        self._trained = [n for n, p in enumerate(parameters.values()) if p.requires_grad]
        self._decay = decay

    @torch.no_grad()
    def include(self, skipped: torch.Tensor | None = None) -> None:
        """Include the present parameters, unless they are those of a skipped step (bool scalar).

        The average of a frozen parameter doesn't change.
        """
        every_average, every_state = list(self.params.values()), list(self.state.values())
        averages, steps, values = (
            [every_average[n] for n in self._trained],
            [every_state[n]["step"] for n in self._trained],
            [self._values[n] for n in self._trained],
        )
        if not steps:
            return
        torch._foreach_add_(steps, 1 if skipped is None else 1 - skipped.long())
        weights = (1 - self._decay) / (1 - self._decay ** torch.stack(steps).double())
        if skipped is not None:
            weights = weights.masked_fill(skipped, 0.0)
        torch._foreach_lerp_(averages, values, list(weights.float().unbind()))

    def step(self, closure: Any = None) -> None:
        """`include`, as an optimizer's step."""
        self.include()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to do."""

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters have the values of their averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, value in zip(self.params.values(), self._values, strict=True):
            copy = value.clone()
            value.copy_(average)
            average.copy_(copy)


class DenseUpdate:
    """Updates the dense part with the mean gradient over all workers, of one step or several.

    The gradients are one tensor, which one all-reduce sums up in every step alike: over three or
    more ranks the order of an element's summands depends on its place in the tensor, and a resumed
    run must be bit-identical. Those of several steps are added up on each worker before.

    Args:
        optimizer: of the dense part.
        average: of its parameters, if there is one.
        max_gradient_norm: limit of the norm of the whole gradient.
        accumulate_steps: steps per update.

    Attributes:
        masks: whether a step can be skipped by a flag on the device.
    """

    def __init__(
        self,
        optimizer: CombinedOptimizer,
        average: WeightAverage | None = None,
        *,
        max_gradient_norm: float | None = None,
        accumulate_steps: int = 1,
    ) -> None:
        parts: list[FlatOptimizer] = [part for _, part in optimizer.optimizers]
        self._optimizers = [part for part in parts if not part.is_frozen]
        self._average = average
        self._max_norm = max_gradient_norm
        self._accumulate_steps = accumulate_steps
        self._steps = 0  # since the last update
        self._added = 0  # of them, those that weren't skipped
        fused = all(g.get("fused") for part in self._optimizers for g in part.param_groups)
        self.masks = fused and accumulate_steps == 1
        self._world_size = dist.get_world_size()
        self._work: list[dist.Work] = []

    @property
    def is_pending(self) -> bool:
        """Whether gradients wait for further steps."""
        return self._steps > 0

    def begin_step(self) -> None:
        """Drop the gradients of the last update; called before each backward pass."""
        if not self.is_pending:
            for optimizer in self._optimizers:
                optimizer.zero_grad()

    def reduce(self) -> None:
        """All gradients of this step are there: begin to average them, unless more are to come.

        Called in the backward pass, before it reaches the tables: so their update runs meanwhile.
        """
        if self._accumulate_steps == 1:
            self._begin_average(1)

    def end_step(self, *, skipped: torch.Tensor | bool, is_last: bool) -> None:
        """Update the parameters if it is time; all ranks make the same calls.

        Args:
            skipped: whether the step made no gradient; with `masks` a bool scalar on the device:
                whether to change nothing.
            is_last: update even if the gradients are of fewer than `accumulate_steps` steps.
        """
        self._steps += 1
        self._added += skipped is not True
        if self._steps < self._accumulate_steps and not is_last:
            return
        if self._added:
            self._update(skipped if isinstance(skipped, torch.Tensor) else None)
        self._steps = self._added = 0

    def _update(self, skipped: torch.Tensor | None) -> None:
        if self._accumulate_steps > 1:
            self._begin_average(self._added)
        self._end_average()
        if self._max_norm is not None:
            wholes = [optimizer.whole for optimizer in self._optimizers]
            torch.nn.utils.clip_grad_norm_(wholes, self._max_norm)
        for optimizer in self._optimizers:
            if skipped is not None:
                # It then changes nothing.
                optimizer.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
            optimizer.step()
        if self._average is not None:
            self._average.include(skipped)

    def _begin_average(self, steps: int) -> None:
        """Divide sums of gradients by the number of steps, and begin to average over all ranks."""
        for optimizer in self._optimizers:
            gradient = optimizer.gather()
            if (divisor := steps * self._world_size) > 1:
                gradient /= divisor
            if self._world_size > 1 and (work := dist.all_reduce(gradient, async_op=True)):
                self._work.append(work)

    def _end_average(self) -> None:
        while self._work:
            self._work.pop().wait()
        if any(optimizer.has_gradients() for optimizer in self._optimizers):
            raise RuntimeError("a gradient of the dense part came after those of the tables")
