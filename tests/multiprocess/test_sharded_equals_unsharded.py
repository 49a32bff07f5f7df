"""Sharded training against an unsharded model with optimizers written out here."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.model.build import build_train_model
from infnet_dist.model.train_model import TrainModel
from infnet_dist.planning.plan_file import load_plan, save_plan
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.sharding.build import table_bytes, topology_of
from infnet_dist.sharding.optimizers import learning_rate_factors
from infnet_dist.training.setup import TrainingSetup
from infnet_dist.training.step import EagerStep, StepSettings
from tests.ranks import run_ranks
from tests.runs import make_config, make_tiny_set

STEPS = 50


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_set(tmp_path_factory.mktemp("data") / "tiny", num_rows=6_000)


def full_tables(setup: TrainingSetup) -> dict[str, torch.Tensor]:
    """Every table gathered on rank 0 (empty elsewhere)."""
    tables = {}
    for name, sharded in setup.sharded.model.state_dict().items():
        if ".sparse." in name and not isinstance(sharded, ShardedTensor):
            tables[name] = sharded.detach().clone()  # data-parallel
        elif ".sparse." in name:
            whole = torch.empty(sharded.size()) if setup.context.is_first else None
            sharded.gather(dst=0, out=whole)
            tables[name] = whole
    return tables if setup.context.is_first else {}


def train_sharded(context: WorkerContext, *, config: Config) -> dict:
    setup = TrainingSetup.open(config, context, splits=["train"])
    before = full_tables(setup)
    losses, sharding = [], {n: t.sharding_type for n, t in setup.sharded.plan.tables.items()}
    eager = EagerStep(setup.sharded, context, seed=config.run.seed)
    for batch in islice(setup.reader("train", shuffle=True).batches(), STEPS):
        step = len(losses)
        factors = learning_rate_factors(config, step, STEPS)
        loss = eager.train(batch, StepSettings(step, factors)).loss
        losses.append(context.sum(loss).item() / context.world_size)
    dense = {
        name: value.detach().clone()
        for name, value in setup.sharded.model.state_dict().items()
        if ".sparse." not in name
    }
    return {
        "losses": losses,
        "before": before,
        "after": full_tables(setup),
        "dense": dense,
        "sharding": sharding,
        "table_bytes": context.gather(
            table_bytes(setup.sharded.model, setup.sharded.sparse_optimizer)
        ),
        "planned_bytes": setup.sharded.plan.ranks.stored_bytes,
    }


def train_unsharded(context: WorkerContext, *, config: Config, before: dict, ranks: int) -> dict:
    """One process, whole tables, row-wise Adagrad by its formula, all ranks' batches."""
    setup = TrainingSetup.open(config, context, splits=[])
    model: TrainModel = build_train_model(config, setup.schema)
    model.load_state_dict(before, strict=False)
    tables = {n: p for n, p in model.named_parameters() if ".sparse." in n}
    dense = [p for n, p in model.named_parameters() if ".sparse." not in n]
    options = config.dense_optimizer
    adamw = torch.optim.AdamW(dense, lr=options.learning_rate, weight_decay=options.weight_decay)
    state = {name: torch.zeros(len(p)) for name, p in tables.items()}
    readers = []
    for rank in range(ranks):
        reader = setup.reader("train", shuffle=True)
        object.__setattr__(reader, "rank", rank)
        object.__setattr__(reader, "world_size", ranks)
        readers.append(reader.batches())
    losses = []
    for batches in islice(zip(*readers, strict=True), STEPS):
        model.zero_grad()
        loss = sum(model(batch)[0] for batch in batches) / ranks
        loss.backward()
        factor = warm_up_and_decay(len(losses)) if config.schedule.warmup_steps else 1.0
        adamw.param_groups[0]["lr"] = factor * config.dense_optimizer.learning_rate
        adamw.step()
        with torch.no_grad():
            for name, weight in tables.items():
                state[name] += weight.grad.pow(2).mean(dim=1)
                scale = state[name].sqrt() + config.sparse_optimizer.eps
                rate = factor * config.sparse_optimizer.learning_rate
                weight -= rate * weight.grad / scale[:, None]
        losses.append(loss.item())
    return {"losses": losses, "after": model.state_dict()}


def warm_up_and_decay(step: int) -> float:
    """Up over 10 steps, down to 0 over the last half of 50."""
    return min((step + 1) / 11, 1.0, (50 - step) / 25)


def compare(config: Config, ranks: int) -> dict:
    sharded = run_ranks(train_sharded, ranks, config=config)[0]
    single = config.model_copy(update={"sharding": type(config.sharding)()})
    reference = run_ranks(train_unsharded, 1, config=single, before=sharded["before"], ranks=ranks)[
        0
    ]
    assert len(sharded["losses"]) == STEPS
    assert sharded["table_bytes"] == list(sharded["planned_bytes"])
    torch.testing.assert_close(sharded["losses"], reference["losses"], rtol=0, atol=1e-5)
    for name, weight in (sharded["after"] | sharded["dense"]).items():
        torch.testing.assert_close(weight, reference["after"][name], rtol=0, atol=1e-5)
    moved = [n for n, w in sharded["after"].items() if not torch.equal(w, sharded["before"][n])]
    assert len(moved) == len(sharded["after"]), "every table must have been trained"
    return sharded["sharding"]


# Sharding knows nothing of the tower: tests/unit compares each of them with plain loops.
MODELS: list[Any] = [
    {"name": "infnet"},
    pytest.param({"name": "infnet_paper"}, marks=pytest.mark.exhaustive),
    pytest.param({"name": "onetrans"}, marks=pytest.mark.exhaustive),
    {
        "name": "stack",
        "sequence": {"name": "dien"},
        "interaction": {"name": "deep"},
        "conditional_on": {"like": "click"},
    },
    pytest.param(
        {
            "name": "stack",
            "sequence": {"name": "hstu"},
            "interaction": {"name": "wukong"},
            "head": {"name": "mmoe", "expert_dropout": 0.0},
        },
        marks=pytest.mark.exhaustive,
    ),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: str(model.get("sequence", model)))
def test_planned_for_the_workers_at_hand(tiny_set: Path, tmp_path: Path, model: dict) -> None:
    # Where a ReLU is on for one rounding and off for the other, weights part at once, by more than
    # the tolerance: seeds 0 and 1 have such a step.
    raw = make_config(tiny_set, tmp_path, run={"seed": 2}).model_dump()
    config = Config.model_validate(raw | {"model": model | {"token_dim": 8}})
    types = {"user": "row_wise", "item": "row_wise", "author": "table_wise"}
    tables = {"overrides": {name: {"sharding_types": [kind]} for name, kind in types.items()}}
    config = config.model_validate(config.model_dump() | {"tables": tables})
    sharding = compare(config, ranks=2)
    assert sharding.items() >= types.items()


def test_learning_rate_schedule_and_weight_decay(tiny_set: Path, tmp_path: Path) -> None:
    schedule = {"warmup_steps": 10, "decay_share": 0.5}
    decayed = {"weight_decay": 0.1}
    compare(make_config(tiny_set, tmp_path, schedule=schedule, dense_optimizer=decayed), 2)


def write_plan(context: WorkerContext, *, config: Config, types: dict, path: Path) -> None:
    setup = TrainingSetup.open(config, context, splits=[])
    table_set = tables_of_run(config, setup.schema)
    for name, allowed in types.items():
        table_set = table_set.replace(name, sharding_types=allowed)
    plan = make_plan(table_set, topology_of(context))
    if context.is_first:
        save_plan(plan, path)


def test_plan_file(tiny_set: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    # With seed 0 a ReLU of Wukong is so near 0 in step 34 that rounding decides its gradient.
    run = {"name": "test", "folder": str(tmp_path), "seed": 1}
    config = make_config(tiny_set, tmp_path, run=run)
    types = {"user": ("table_wise",), "item": ("table_wise",), "author": ("row_wise",)}
    run_ranks(write_plan, 2, config=config, types=types, path=path)
    config = make_config(tiny_set, tmp_path, run=run, sharding={"plan": str(path)})
    sharding = compare(config, ranks=2)
    assert sharding == {n: t.sharding_type for n, t in load_plan(path).tables.items()}
    assert sharding["user"] == "table_wise" and sharding["author"] == "row_wise"
