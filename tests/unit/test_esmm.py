"""Tasks under others: products of probabilities, at any size of the logits."""

import itertools
from pathlib import Path

import pytest
import torch

from infnet_dist.config.model import InfnetConfig
from infnet_dist.config.run import Config, DataConfig
from infnet_dist.errors import ConfigError
from infnet_dist.model.build import build_train_model
from infnet_dist.model.towers.esmm import EntireSpace
from infnet_dist.schema import Task
from tests.unit.test_reader import SCHEMA


def test_probabilities_multiply_along_the_chain() -> None:
    """Task 2 under 0, task 1 under 2; task 3 by itself."""
    logits = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = torch.sigmoid(EntireSpace([None, 2, 0, None])(3 * logits))
    p = torch.sigmoid(3 * logits)
    expected = torch.stack([p[:, 0], p[:, 0] * p[:, 2] * p[:, 1], p[:, 0] * p[:, 2], p[:, 3]], 1)
    torch.testing.assert_close(found, expected)


def test_large_logits_stay_finite_and_train() -> None:
    extremes = [-200.0, -30.0, 0.0, 30.0, 200.0]
    logits = torch.tensor(list(itertools.product(extremes, extremes)), requires_grad=True)
    out = EntireSpace([None, 0])(logits)
    assert torch.isfinite(out).all()
    out.sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    exact = torch.tensor([[-30.0, -30.0]], dtype=torch.float64)
    assert EntireSpace([None, 0])(exact.float())[0, 1].item() == pytest.approx(-60, rel=1e-6)


def model_with(parents: dict[str, str], watch_time: bool = False) -> torch.nn.Module:
    tasks = [Task(name=name, column=name) for name in ("click", "like")]
    tasks += [Task(name="time", column="time", kind="watch_time")] * watch_time
    schema = SCHEMA.model_copy(update={"tasks": tuple(tasks)})
    options = InfnetConfig(token_dim=8, num_hubs=2, conditional_on=parents)
    config = Config(data=DataConfig(path=Path("unused")), model=options)
    return build_train_model(config, schema).model.dense


def test_a_run_file_says_which_task_is_under_which() -> None:
    assert model_with({}).entire_space is None
    assert model_with({"like": "click"}).entire_space.chains == [[0], [1, 0]]
    with pytest.raises(ConfigError, match=r"model\.conditional_on: .*'likee'.*'like'"):
        model_with({"likee": "click"})
    with pytest.raises(ConfigError, match=r"model\.conditional_on.*click: like"):
        model_with({"like": "click", "click": "like"})
    with pytest.raises(ConfigError, match=r"model\.conditional_on: 'time'"):
        model_with({"time": "click"}, watch_time=True)
