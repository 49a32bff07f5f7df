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
    return torch.optim.SGD(
        parameters, lr=rate, weight_decay=decay, momentum=config.momentum, fused=True
    )


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
    def include(self, skipped: torch.Tensor | None = None) -> None:
        """Include the present parameters, unless they are those of a skipped step (bool scalar)."""
        steps = [state["step"] for state in self.state.values()]
        torch._foreach_add_(steps, 1 if skipped is None else 1 - skipped.long())
        weight = (1 - self._decay) / (1 - self._decay ** steps[0].double())
        if skipped is not None:
            weight = weight.masked_fill(skipped, 0.0)
        weights = [weight.float()] * len(steps)
        torch._foreach_lerp_(list(self.params.values()), self._values, weights)

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
        self._optimizers = [keyed._optimizer for _, keyed in optimizer.optimizers]
        self._average = average
        self._max_norm = max_gradient_norm
        self._accumulate_steps = accumulate_steps
        self._steps = 0  # since the last update
        self._added = 0  # of them, those that weren't skipped
        fused = all(
            group.get("fused") for inner in self._optimizers for group in inner.param_groups
        )
        self.masks = fused and accumulate_steps == 1
        self._parameters = [p for p in optimizer.params.values() if p.requires_grad]
        self._world_size = dist.get_world_size()
        self._work: dist.Work | None = None
        if self._world_size > 1:
            sizes = [parameter.numel() for parameter in self._parameters]
            self._flat = self._parameters[0].new_zeros(sum(sizes))
            parts = zip(self._flat.split(sizes), self._parameters, strict=True)
            self._gradients = [part.view_as(parameter) for part, parameter in parts]

    @property
    def is_pending(self) -> bool:
        """Whether gradients wait for further steps."""
        return self._steps > 0

    def begin_step(self) -> None:
        """Drop the gradients of the last update; called before each backward pass."""
        if not self.is_pending:
            for parameter in self._parameters:
                parameter.grad = None

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
            torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        for optimizer in self._optimizers:
            if skipped is not None:
                optimizer.found_inf = skipped.float()  # it then changes nothing
            optimizer.step()
        if self._average is not None:
            self._average.include(skipped)

    def _begin_average(self, steps: int) -> None:
        """Divide sums of gradients by the number of steps, and begin to average over all ranks."""
        for parameter in self._parameters:
            if parameter.grad is None:  # unused; the same on all ranks, and for any number of them
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._world_size == 1:
            if steps > 1:
                torch._foreach_div_(gradients, steps)
            return
        torch._foreach_copy_(self._gradients, gradients)
        self._flat /= steps * self._world_size
        self._work = dist.all_reduce(self._flat, async_op=True)
        for parameter in self._parameters:
            parameter.grad = None

    def _end_average(self) -> None:
        if self._world_size == 1:
            return
        assert self._work is not None
        self._work.wait()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if parameter.grad is not None:
                raise RuntimeError("a gradient of the dense part came after those of the tables")
            parameter.grad = gradient
