"""The update of the dense part against loops over steps and values."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from infnet_dist.config.run import Config, parse_config
from infnet_dist.distributed.context import local_process_group
from infnet_dist.io.ports import free_ports
from infnet_dist.sharding.dense_optimizer import DenseUpdate, WeightAverage, make_dense_optimizer
from infnet_dist.sharding.optimizers import set_learning_rates


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    with local_process_group(0, 1, use_gpu=False, port=free_ports(1)[0], timeout_s=60):
        yield


class Model(nn.Module):
    """A dense part with a linear term."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Module()
        self.dense.tower = nn.Linear(3, 2)
        self.dense.first_order = nn.Linear(3, 2)
        nn.init.zeros_(self.dense.first_order.weight)
        nn.init.zeros_(self.dense.first_order.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense.tower(x) + self.dense.first_order(x)


def config_of(**dense: Any) -> Config:
    first_order = "first_order" in dense
    return parse_config(
        {"data": {"path": "d"}, "dense_optimizer": dense, "model": {"first_order": first_order}}
    )


def inputs(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(4, 3, generator=generator) * 3 for _ in range(count)]


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - 1).square().mean()


SECTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.1},
    "adagrad": {"weight_decay": 0.1},
    "sgd": {"weight_decay": 0.1, "momentum": 0.9},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_state_is_complete_and_zero_before_the_first_step(name: str) -> None:
    model, other = Model(), Model()
    config = config_of(name=name, learning_rate=0.1, **SECTIONS[name])
    optimizer = make_dense_optimizer(model, config.dense_optimizer)
    start = {n: p.clone() for n, p in other.named_parameters()}
    assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())
    states = optimizer.state_dict()["state"]
    assert states.keys() == {f"dense.{n}" for n in start}
    values = [value for state in states.values() for value in state.values()]
    assert values and all(not value.any() for value in values)

    kinds = {"adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
    plain = kinds[name](other.parameters(), lr=0.1, **SECTIONS[name])
    update = DenseUpdate(optimizer)
    for step, x in enumerate(inputs(5)):
        factor = 1 / (1 + step)
        set_learning_rates(optimizer, factor)
        update.begin_step()
        loss_of(model, x).backward()
        update.reduce()
        update.end_step(skipped=False, is_last=False)
        plain.param_groups[0]["lr"] = 0.1 * factor
        plain.zero_grad()
        loss_of(other, x).backward()
        plain.step()
    for mine, reference in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-6)


def test_accumulated_clipped_and_averaged() -> None:
    """SGD by hand: 3 steps per update, of them one skipped; the last update is of fewer."""
    rate, decay, limit, n = 0.002, 0.8, 6.0, 3
    skipped, last = {1, 5}, 10  # steps; the updates are of steps 0-2, 3-5, 6-8, 9-10
    config = config_of(name="sgd", learning_rate=rate, ema_decay=decay, max_gradient_norm=limit)
    model, other = Model(), Model()
    optimizer = make_dense_optimizer(model, config.dense_optimizer)
    average = WeightAverage(dict(model.named_parameters()), decay)
    update = DenseUpdate(optimizer, average, max_gradient_norm=limit, accumulate_steps=n)
    history, clipped = [], 0
    sums = [torch.zeros_like(p) for p in other.parameters()]
    count = 0
    for step, x in enumerate(inputs(last + 1)):
        update.begin_step()
        if step not in skipped:
            loss_of(model, x).backward()
        update.end_step(skipped=step in skipped, is_last=step == last)
        assert update.is_pending == (step not in (2, 5, 8, 10))

        if step not in skipped:
            gradients = torch.autograd.grad(loss_of(other, x), list(other.parameters()))
            sums = [a + b for a, b in zip(sums, gradients, strict=True)]
            count += 1
        if step in (2, 5, 8, 10):
            mean = [total / count for total in sums]
            norm = math.sqrt(sum(float(g.square().sum()) for g in mean))
            clipped += norm > limit
            with torch.no_grad():
                for p, g in zip(other.parameters(), mean, strict=True):
                    p -= rate * min(1.0, limit / norm) * g
            history.append([p.detach().clone() for p in other.parameters()])
            sums, count = [torch.zeros_like(p) for p in other.parameters()], 0
    assert 0 < clipped < 4, "some gradients are above the limit, and some aren't"
    for mine, reference in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-6)

    weights = [decay ** (len(history) - i) for i in range(1, len(history) + 1)]
    for place, parameter in enumerate(model.parameters()):
        mean = sum(w * h[place] for w, h in zip(weights, history, strict=True)) / sum(weights)
        with average.in_place():
            torch.testing.assert_close(parameter, mean, rtol=0, atol=1e-6)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ZeroDivisionError), average.in_place():
        raise ZeroDivisionError
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_without_any_gradient_nothing_is_updated() -> None:
    model = Model()
    config = config_of(learning_rate=0.1, weight_decay=0.5)
    update = DenseUpdate(make_dense_optimizer(model, config.dense_optimizer), accumulate_steps=2)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        update.begin_step()
        update.end_step(skipped=True, is_last=False)
    assert not update.is_pending
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_ftrl_takes_the_linear_term_alone_and_no_schedule() -> None:
    model = Model()
    config = config_of(first_order={"name": "ftrl", "alpha": 0.5}, learning_rate=0.1)
    optimizer = make_dense_optimizer(model, config.dense_optimizer)
    states = optimizer.state_dict()["state"]
    kinds = {name: set(state) for name, state in states.items()}
    assert kinds == {
        "dense.dense.tower.weight": {"step", "exp_avg", "exp_avg_sq"},
        "dense.dense.tower.bias": {"step", "exp_avg", "exp_avg_sq"},
        "dense.dense.first_order.weight": {"z", "n"},
        "dense.dense.first_order.bias": {"z", "n"},
    }
    set_learning_rates(optimizer, 0.0)
    update = DenseUpdate(optimizer)
    update.begin_step()
    loss_of(model, inputs(1)[0]).backward()
    update.reduce()
    tower = model.dense.tower.weight.detach().clone()
    update.end_step(skipped=False, is_last=False)
    assert torch.equal(model.dense.tower.weight, tower)
    assert model.dense.first_order.weight.count_nonzero()


@pytest.mark.parametrize("name", SECTIONS)
def test_parameters_that_were_frozen_for_a_while(name: str) -> None:
    """Loaded into an optimizer of all, each continues with its own state and number of steps."""
    config = config_of(name=name, learning_rate=0.1, **SECTIONS[name]).dense_optimizer
    kinds = {"adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
    model, other = Model(), Model()
    plain = kinds[name](other.parameters(), lr=0.1, **SECTIONS[name])
    frozen = "dense.tower.bias"  # between two parameters that aren't
    other.dense.tower.bias.requires_grad_(False)
    optimizer = make_dense_optimizer(model, config, lambda name: float(name != frozen))
    _train_both(model, optimizer, other, plain, steps=range(4))
    assert torch.equal(model.dense.tower.bias, Model().dense.tower.bias)

    thawed = Model()
    thawed.load_state_dict(model.state_dict())
    other.dense.tower.bias.requires_grad_(True)
    optimizer_of_all = make_dense_optimizer(thawed, config)
    optimizer_of_all.load_state_dict(optimizer.state_dict())
    _train_both(thawed, optimizer_of_all, other, plain, steps=range(4, 9))
    for mine, reference in zip(thawed.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-6)
    if name == "adamw":
        states = optimizer_of_all.state_dict()["state"]
        steps = {key.removeprefix("dense."): int(s["step"]) for key, s in states.items()}
        assert steps == {n: 5 if n == frozen else 9 for n, _ in model.named_parameters()}


def _train_both(
    model: nn.Module,
    optimizer: Any,
    other: nn.Module,
    plain: torch.optim.Optimizer,
    *,
    steps: range,
) -> None:
    update, batches = DenseUpdate(optimizer), inputs(steps.stop)
    for step in steps:
        update.begin_step()
        loss_of(model, batches[step]).backward()
        update.reduce()
        update.end_step(skipped=False, is_last=False)
        plain.zero_grad()
        loss_of(other, batches[step]).backward()
        plain.step()


def test_a_frozen_parameter_keeps_its_average() -> None:
    model, decay = Model(), 0.5
    config = config_of(learning_rate=0.1, ema_decay=decay)
    optimizer = make_dense_optimizer(
        model, config.dense_optimizer, lambda name: float("tower" not in name)
    )
    average = WeightAverage(dict(model.named_parameters()), decay)
    for state in average.state.values():  # as a checkpoint has it
        state["average"] += 1
        state["step"] += 7
    before = {name: value.clone() for name, value in average.params.items()}
    update = DenseUpdate(optimizer, average)
    update.begin_step()
    loss_of(model, inputs(1)[0]).backward()
    update.reduce()
    update.end_step(skipped=False, is_last=False)
    for name, state in zip(average.params, average.state.values(), strict=True):
        is_frozen = "tower" in name
        assert torch.equal(average.params[name], before[name]) == is_frozen, name
        assert int(state["step"]) == (7 if is_frozen else 8)


def test_a_factor_multiplies_the_schedules() -> None:
    config = config_of(learning_rate=0.1).dense_optimizer
    optimizer = make_dense_optimizer(Model(), config, lambda name: 0.2 if "tower" in name else 1.0)
    set_learning_rates(optimizer, 0.5)
    for name, parameter in optimizer.params.items():
        (group,) = (g for g in optimizer.param_groups if any(parameter is p for p in g["params"]))
        assert group["lr"] == pytest.approx(0.1 * 0.5 * (0.2 if "tower" in name else 1.0))
