"""The optimizer of data-parallel tables, with the formulas and states of fbgemm's fused ones.

A data-parallel table has a copy on every worker and a dense gradient, which DDP all-reduces in the
backward pass. TorchRec doesn't train it in the backward pass, so an optimizer does it afterwards.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torchrec.optim.keyed import KeyedOptimizerWrapper

KINDS = ("rowwise_adagrad", "adagrad", "sgd")


class TableOptimizer(torch.optim.Optimizer):
    """Row-wise Adagrad, Adagrad or SGD of whole tables, one param group per table.

    Like the fused optimizers it changes only the rows that have a gradient, so that weight decay
    spares all others.

    Args:
        groups: `params` (one table), `table` (its name), `kind` (one of `KINDS`), `lr`, `eps` and
            `weight_decay` (L2, of row-wise Adagrad alone); `is_frozen`, if the table is.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        for group in self.param_groups:
            (weight,) = group["params"]
            if group["kind"] == "rowwise_adagrad":
                shape = weight.shape[:1]
            elif group["kind"] == "adagrad":
                shape = weight.shape
            else:
                continue
            # The name and shape of the fused optimizer's state: either loads the other's.
            state = torch.zeros(shape, dtype=torch.float32, device=weight.device)
            self.state[weight][f"{group['table']}.momentum1"] = state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all tables that have a gradient, except for frozen ones."""
        assert closure is None
        for group in self.param_groups:
            (weight,) = group["params"]
            if weight.grad is not None and not group.get("is_frozen"):
                self._update(weight, weight.grad, group)

    def _update(self, weight: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        gradient = gradient.float()  # eps and the squares may be 0 in fp16
        if group["weight_decay"]:
            has_gradient = (gradient != 0).any(1, keepdim=True)
            gradient = gradient + group["weight_decay"] * weight * has_gradient
        if group["kind"] == "rowwise_adagrad":
            momentum = self.state[weight][f"{group['table']}.momentum1"]
            momentum += gradient.square().mean(1)
            gradient = gradient / momentum.sqrt().add_(group["eps"]).unsqueeze(1)
        elif group["kind"] == "adagrad":
            momentum = self.state[weight][f"{group['table']}.momentum1"]
            momentum += gradient.square()
            gradient = gradient / momentum.sqrt().add_(group["eps"])
        weight.sub_(group["lr"] * gradient)


def table_optimizer(
    tables: dict[str, torch.nn.Parameter], groups: list[dict[str, Any]]
) -> KeyedOptimizerWrapper:
    """A `TableOptimizer` with state by parameter name; `groups` in the order of `tables`."""
    # On CPUs fbgemm has no autograd kernel for these lookups; gradients are right all the same.
    warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen_lookup_function")
    return KeyedOptimizerWrapper(
        tables,
        lambda params: TableOptimizer(
            [{"params": [p], **group} for p, group in zip(params, groups, strict=True)]
        ),
    )
