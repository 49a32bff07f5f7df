"""The optimizer of the dense part: AdamW, Adagrad or SGD, FTRL, clipping, accumulation, average."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from infnet_dist.config.optimizers import (
    AdagradConfig,
    AdamWConfig,
    DenseOptimizerConfig,
)
from infnet_dist.lookups import table_of
from infnet_dist.sharding.ftrl import FtrlProximal

_FIRST_ORDER = ".first_order."  # of `DenseArch`, in names of parameters


def make_dense_optimizer(model: nn.Module, config: DenseOptimizerConfig) -> CombinedOptimizer:
    """The optimizer of every parameter but the tables', with its state initialised.

    Without state before the first step, a checkpoint would have nothing to load into.
    """
    parameters = {
        name: parameter
        for name, parameter in in_backward_optimizer_filter(model.named_parameters())
        if not table_of(name)
    }
    ftrl = config.first_order
    first_order = {n: p for n, p in parameters.items() if ftrl and _FIRST_ORDER in n}
    others = {name: p for name, p in parameters.items() if name not in first_order}
    found = [("dense", _initialised(others, config))]
    if ftrl:
        options = ftrl.model_dump(exclude={"name"})
        wrapped = KeyedOptimizerWrapper(first_order, lambda p: FtrlProximal(p, **options))
        found.append(("dense", wrapped))
    return CombinedOptimizer(found)


def _initialised(
    parameters: dict[str, nn.Parameter], config: DenseOptimizerConfig
) -> KeyedOptimizerWrapper:
    """The optimizer with its state.

    TorchRec's `init_state` creates it by a step with zero gradients: at rate 0, so that weight
    decay changes no parameter. The state is then reset to 0: steps are counted, for Adam's bias
    correction, and L2 weight decay is part of the gradient.
    """
    optimizer = KeyedOptimizerWrapper(parameters, lambda params: _optimizer(params, config))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.init_state()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = config.learning_rate
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
    return optimizer


def _optimizer(
    parameters: Sequence[torch.Tensor], config: DenseOptimizerConfig
) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    if isinstance(config, AdagradConfig):
        return torch.optim.Adagrad(parameters, lr=rate, weight_decay=decay, eps=config.eps)
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=config.momentum)


class WeightAverage(KeyedOptimizer):
    """An exponential moving average of parameters, without bias towards their initial values.

    After t steps it is the mean of the parameters after step 1 to t, weighted by decay^(t - i).

    Args:
        parameters: by name.
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
        self._decay = decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Include the present parameters."""
        steps = [state["step"] for state in self.state.values()]
        torch._foreach_add_(steps, 1)
        weight = (1 - self._decay) / (1 - self._decay ** steps[0].item())
        torch._foreach_lerp_(list(self.params.values()), self._values, weight)

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
    """Updates the dense part with the mean gradient of one step or several.

    Gradients of one step are all-reduced by DDP in the backward pass. Those of several steps are
    added up on each worker, then averaged here over steps and workers, without DDP: its `no_sync`
    fails in the first backward pass of a static graph.

    Args:
        optimizer: of the dense part.
        average: of its parameters, if there is one.
        max_gradient_norm: limit of the norm of the whole gradient.
        accumulate_steps: steps per update.
    """

    def __init__(
        self,
        optimizer: CombinedOptimizer,
        average: WeightAverage | None = None,
        *,
        max_gradient_norm: float | None = None,
        accumulate_steps: int = 1,
    ) -> None:
        self._optimizer = optimizer
        self._average = average
        self._max_norm = max_gradient_norm
        self._accumulate_steps = accumulate_steps
        self._steps = 0  # since the last update
        self._added = 0  # of them, those that weren't skipped

    @property
    def is_pending(self) -> bool:
        """Whether gradients wait for further steps."""
        return self._steps > 0

    def begin_step(self) -> None:
        """Drop the gradients of the last update; called before each backward pass."""
        if not self.is_pending:
            self._optimizer.zero_grad()

    def end_step(self, *, skipped: bool, is_last: bool) -> None:
        """Update the parameters if it is time; all ranks make the same calls.

        Args:
            skipped: whether the step made no gradient.
            is_last: update even if the gradients are of fewer than `accumulate_steps` steps.
        """
        self._steps += 1
        self._added += not skipped
        if self._steps < self._accumulate_steps and not is_last:
            return
        if self._added:
            self._update()
        self._steps = self._added = 0

    def _update(self) -> None:
        parameters = list(self._optimizer.params.values())
        if self._accumulate_steps > 1:
            _average([p.grad for p in parameters if p.grad is not None], self._added)
        if self._max_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self._max_norm)
        self._optimizer.step()
        if self._average is not None:
            self._average.step()


def _average(gradients: Sequence[torch.Tensor], steps: int) -> None:
    """Divide sums of gradients by the number of steps, and average them over all ranks."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat /= steps * dist.get_world_size()
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
