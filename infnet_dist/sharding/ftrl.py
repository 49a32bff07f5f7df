"""FTRL-proximal (McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches")."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class FtrlProximal(torch.optim.Optimizer):
    """FTRL-proximal, algorithm 1 of the paper, with a learning rate per coordinate.

    With the gradient g of a coordinate, n the sum of its squares and z the state of the paper:

        sigma = (sqrt(n + g^2) - sqrt(n)) / alpha
        z += g - sigma * w
        n += g^2
        w = 0 if |z| <= l1 else -(z - sign(z) * l1) / ((beta + sqrt(n)) / alpha + l2)

    Weights follow from z and n alone, so they must be 0 in the beginning, when z and n are 0.

    Args:
        params: parameters, initially 0.
        alpha: learning rate.
        beta: added to sqrt(n).
        l1: L1 regularisation.
        l2: L2 regularisation.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        *,
        alpha: float = 0.1,
        beta: float = 1.0,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        super().__init__(params, {"alpha": alpha, "beta": beta, "l1": l1, "l2": l2})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.count_nonzero():
                    raise ValueError("FTRL-proximal needs parameters that are 0 in the beginning")
                self.state[parameter]["z"] = torch.zeros_like(parameter)
                self.state[parameter]["n"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]
    ) -> None:
        z, n = self.state[parameter]["z"], self.state[parameter]["n"]
        root = n.sqrt()
        n.addcmul_(gradient, gradient)
        new_root = n.sqrt()
        z.add_(gradient).addcmul_(new_root - root, parameter, value=-1 / group["alpha"])
        shrunk = torch.sign(z) * (z.abs() - group["l1"]).clamp(min=0)
        rate = (group["beta"] + new_root) / group["alpha"] + group["l2"]
        # With beta = l2 = 0 the rate of a coordinate without any gradient is 0, and so is z.
        parameter.copy_(torch.where(rate > 0, -shrunk / rate, 0.0))
