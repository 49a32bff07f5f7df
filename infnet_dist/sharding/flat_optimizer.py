"""An optimizer that updates all parameters at once, as parts of one tensor."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torchrec.optim.keyed import KeyedOptimizer

_ALIGNMENT = 16  # bytes; matrix products of GPUs want it


class FlatOptimizer(KeyedOptimizer):
    """An optimizer of one tensor that holds all parameters, whose gradients are gathered into one.

    Its state is per parameter, as that of the optimizer of separate parameters: parts of the
    tensor's state, and a number of steps each. After loading a checkpoint these may differ, where
    some parameters were frozen for a while: then the tensor is updated in segments of equal ones.

    Args:
        parameters: by name, of one device and data type; those that are trained become parts of the
            tensor.
        make: the optimizer of the tensor, or of its segments; it updates every element by itself.
        is_frozen: the parameters don't change, and have no gradients, but they keep the state.

    Attributes:
        whole: the tensor; its gradient is `gradient`.
        gradient: of the last `gather`.
        optimizer: of the tensor.
        is_frozen: whether the parameters are frozen; then it is never stepped.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        make: Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer],
        *,
        is_frozen: bool = False,
    ) -> None:
        self.is_frozen = is_frozen
        self._make = make
        self._parameters = [p for p in parameters.values() if p.requires_grad]
        first = self._parameters[0]
        unit = _ALIGNMENT // first.element_size()
        self._sizes = [-(-parameter.numel() // unit) * unit for parameter in self._parameters]
        self.whole = nn.Parameter(first.new_zeros(sum(self._sizes)))
        self.gradient = torch.zeros_like(self.whole)
        self._gaps = [
            first.new_zeros(size - parameter.numel())
            for size, parameter in zip(self._sizes, self._parameters, strict=True)
        ]
        with torch.no_grad():
            for parameter, part in zip(self._parameters, self._parts(self.whole), strict=True):
                part.copy_(parameter)
                parameter.data = part
        self.whole.grad = self.gradient
        self.optimizer = make([self.whole])
        self._whole_state: dict[str, torch.Tensor] = {}  # but for the number of steps
        self._steps: torch.Tensor  # by parameter
        # By range of parameters with equal numbers; none if the optimizer doesn't count steps.
        self._segment_steps: dict[tuple[int, int], torch.Tensor] = {}
        groups = [group | {"params": self._parameters} for group in self.optimizer.param_groups]
        super().__init__(parameters, self._initial_state(), groups)
        for parameter in self._parameters if is_frozen else ():
            parameter.requires_grad_(False)

    def gather(self) -> torch.Tensor:
        """Move the parameters' gradients to `gradient`: zeros where there is none."""
        pieces = []
        for parameter, gap in zip(self._parameters, self._gaps, strict=True):
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            pieces += [gradient.reshape(-1), gap]
            parameter.grad = None
        torch.cat(pieces, out=self.gradient)
        return self.gradient

    def has_gradients(self) -> bool:
        """Whether a parameter has a gradient that wasn't gathered."""
        return any(parameter.grad is not None for parameter in self._parameters)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the parameters' gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self, closure: Any = None) -> None:
        """Update all parameters by `gradient`."""
        for inner, group in zip(self.optimizer.param_groups, self.param_groups, strict=True):
            if "lr" in group:  # as a schedule set it
                inner["lr"] = group["lr"]
        self.optimizer.step()
        for (first, last), step in self._segment_steps.items():
            self._steps[first:last] = step

    def post_load_state_dict(self) -> None:
        """Apply the numbers of steps that were loaded; called by `load_state_dict`."""
        if not self._segment_steps:
            return
        self._segment_steps, segments, first = {}, [], 0
        for step, equal in groupby(self._steps.tolist()):
            last = first + len(list(equal))
            self._segment_steps[first, last] = self._steps.new_tensor(step)
            segments.append(slice(sum(self._sizes[:first]), sum(self._sizes[:last])))
            first = last
        parameters = [nn.Parameter(self.whole.detach()[segment]) for segment in segments]
        self.optimizer = self._make(parameters)
        for parameter, segment, step in zip(
            parameters, segments, self._segment_steps.values(), strict=True
        ):
            parameter.grad = self.gradient[segment]
            state = {key: value[segment] for key, value in self._whole_state.items()}
            self.optimizer.state[parameter] = state | {"step": step}

    def _initial_state(self) -> dict[torch.Tensor, dict[str, torch.Tensor]]:
        """The state that the optimizer makes in its first step, all zeros, by parameter.

        That step has a gradient of zero and the rate 0: weight decay changes no parameter. (What it
        leaves is reset since steps are counted, and L2 weight decay is part of the gradient.)
        """
        for group in self.optimizer.param_groups:
            if "lr" in group:  # which `step` sets again
                group["lr"] = 0.0
        self.optimizer.step()
        states: list[dict[str, torch.Tensor]] = [{} for _ in self._parameters]
        for key, value in self.optimizer.state[self.whole].items():
            value.zero_()
            if key == "step":
                self._steps = value.new_zeros(len(states))
                self._segment_steps[0, len(states)] = value
                parts = [self._steps[number] for number in range(len(states))]
            else:
                self._whole_state[key] = value
                parts = self._parts(value)
            for state, part in zip(states, parts, strict=True):
                state[key] = part
        return dict(zip(self._parameters, states, strict=True))

    def _parts(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """A tensor's parts, in the shapes of the parameters."""
        parts = whole.detach().split(self._sizes)
        return [
            part[: parameter.numel()].view_as(parameter)
            for part, parameter in zip(parts, self._parameters, strict=True)
        ]
