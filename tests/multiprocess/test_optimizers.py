"""Optimizers by table and of the dense part, sharded, against formulas in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from infnet_dist import checkpoint
from infnet_dist.checkpoint.shards import ModelState
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError, ConfigError
from infnet_dist.io.filesystem import Folder
from infnet_dist.lookups import Lookups
from infnet_dist.model.build import build_train_model
from infnet_dist.sharding.build import build_sharded_model, table_bytes
from infnet_dist.sharding.optimizers import learning_rate_factors
from infnet_dist.sharding.row_clipping import RowClipping
from infnet_dist.training.evaluation import evaluate_checkpoint
from infnet_dist.training.setup import TrainingSetup
from infnet_dist.training.step import EagerStep, StepSettings
from infnet_dist.training.trainer import train
from tests.mixed import SCHEMA, config_of, looked_up, make_batch
from tests.ranks import run_ranks
from tests.runs import make_config, make_tiny_set
from tests.tables import whole_tables

STEPS, RANKS = 13, 2
# Two optimizers and more in one collection; padded rows; data-parallel tables; a frozen one.
OVERRIDES: dict[str, dict[str, Any]] = {
    "user": {"sharding_types": ["data_parallel"], "learning_rate": 0.02},
    "tag": {"sharding_types": ["data_parallel"], "optimizer": "adagrad"},
    "place": {"sharding_types": ["row_wise"], "trainable": False},
    "cross": {"sharding_types": ["row_wise"]},
    "topic": {"sharding_types": ["row_wise"], "learning_rate": 0.1},
    "item": {"sharding_types": ["row_wise"], "optimizer": "adagrad", "learning_rate": 0.01},
    "author": {"sharding_types": ["table_wise"], "optimizer": "sgd", "learning_rate": 0.5},
}
SCHEDULE = {"warmup_steps": 3, "dense": {"warmup_steps": 0, "decay_share": 0.5}}
# SGD and a large eps: AdamW and Adagrad divide by the rounding errors of gradients that are 0.
SGD = {"name": "sgd", "learning_rate": 0.1}
TABLES: dict[str, Any] = {"sparse_optimizer": {"eps": 1e-2}, "dense_optimizer": SGD}
EVERYTHING: dict[str, Any] = {
    "sparse_optimizer": {"eps": 1e-2, "max_gradient_norm": 0.003},
    "dense_optimizer": SGD | {"max_gradient_norm": 0.3, "ema_decay": 0.7},
    "training": {"accumulate_steps": 3},
}


def train_sharded(context: WorkerContext, *, config: Config) -> dict[str, Any]:
    sharded = build_sharded_model(config, SCHEMA, context)
    before, losses = whole_tables(sharded, context), []
    eager = EagerStep(sharded, context, seed=0)
    for step in range(STEPS):
        batch = make_batch(100 * step + context.rank)
        factors = learning_rate_factors(config, step, STEPS)
        is_last = step == STEPS - 1
        loss = eager.train(batch, StepSettings(step, factors, is_last)).loss
        losses.append(context.sum(loss).item() / context.world_size)
    with sharded.serving_weights():
        module = sharded.model.module
        served = {n: p.detach().clone() for n, p in module.model.dense.named_parameters()}
    rates = {
        name: group["lr"]
        for group in sharded.sparse_optimizer.param_groups
        for name, parameter in sharded.sparse_optimizer.params.items()
        if any(parameter is one for one in group["params"])
    }
    return {
        "losses": losses,
        "before": before,
        "after": whole_tables(sharded, context),
        "served": served,
        "rates": {name.split(".")[-2]: rate for name, rate in rates.items()},
        "bytes": table_bytes(sharded.model, sharded.sparse_optimizer),
    }


def factor(step: int, part: str) -> float:
    """`SCHEDULE` by hand."""
    if part == "sparse":
        return min((step + 1) / 4, 1.0)
    return min(1.0, (STEPS - step) / (0.5 * STEPS))


def train_by_formulas(config: Config, before: dict[str, torch.Tensor]) -> dict[str, Any]:
    lookups = Lookups(SCHEMA, config)
    model = build_train_model(config, SCHEMA)
    dense = model.model.dense
    rows = {name: table.clone().requires_grad_() for name, table in before.items()}
    squares = {name: torch.zeros_like(table) for name, table in rows.items()}
    options, every = config.dense_optimizer, config.training.accumulate_steps
    limit = config.sparse_optimizer.max_gradient_norm
    losses, history, clipped, count = [], [], 0, 0
    for step in range(STEPS):
        total = 0.0
        for rank in range(RANKS):
            batch = make_batch(100 * step + rank)
            embeddings = looked_up(rows, batch, config)
            if limit is not None:
                inputs = (None, None, batch.sparse_features, batch.weighted_features)
                RowClipping(lookups, limit)(None, inputs, embeddings)
            logits = dense(embeddings, batch.vectors_BV, batch.dense_BN, batch.time_gap_BL)
            total += model.loss(logits, batch.labels_BK, batch.weights_B)[0] / RANKS
        losses.append(total.item())
        total.backward()
        count += 1
        with torch.no_grad():
            for table in lookups.tables:
                update(table, rows[table.name], squares[table.name], factor(step, "sparse"))
        if count == every or step == STEPS - 1:
            gradients = [p.grad for p in dense.parameters() if p.grad is not None]
            norm = torch.stack([(g / count).square().sum() for g in gradients]).sum().sqrt()
            scale = min(1.0, options.max_gradient_norm / norm) if options.max_gradient_norm else 1.0
            clipped += scale < 1
            rate = factor(step, "dense") * options.learning_rate
            with torch.no_grad():
                for parameter in dense.parameters():
                    if parameter.grad is not None:
                        parameter -= rate * scale * parameter.grad / count
            dense.zero_grad()
            history.append({n: p.detach().clone() for n, p in dense.named_parameters()})
            count = 0
    served = history[-1]
    if options.ema_decay is not None:
        weights = [options.ema_decay ** (len(history) - i) for i in range(1, len(history) + 1)]
        served = {
            name: sum(w * h[name] for w, h in zip(weights, history, strict=True)) / sum(weights)
            for name in served
        }
    after = {name: table.detach() for name, table in rows.items()}
    return {"losses": losses, "after": after, "served": served, "clipped": clipped}


def update(table: Any, rows: torch.Tensor, squares: torch.Tensor, factor: float) -> None:
    """Change the rows by their optimizer's formula."""
    settings, gradient = table.settings, rows.grad
    rows.grad = None
    if not settings.trainable:
        return
    if settings.optimizer == "sgd":
        scale: torch.Tensor | float = 1.0
    else:
        by_row = settings.optimizer == "rowwise_adagrad"
        squares += gradient.square().mean(1, keepdim=True) if by_row else gradient.square()
        scale = squares.sqrt() + settings.eps
    rows -= factor * settings.learning_rate * gradient / scale


@pytest.mark.parametrize("sections", [TABLES, EVERYTHING], ids=["tables", "everything"])
def test_sharded_equals_formulas(sections: dict[str, Any]) -> None:
    config = config_of(overrides=OVERRIDES, schedule=SCHEDULE, **sections)
    sharded = run_ranks(train_sharded, RANKS, config=config)
    slow = train_by_formulas(config, sharded[0]["before"])
    if sections is EVERYTHING:
        assert 0 < slow["clipped"] < STEPS / 3, "of the updates of the dense part"
    torch.testing.assert_close(sharded[0]["losses"], slow["losses"], rtol=0, atol=1e-6)
    for name, table in sharded[0]["after"].items():
        torch.testing.assert_close(table, slow["after"][name], rtol=0, atol=1e-6)
        moved = not torch.equal(table, sharded[0]["before"][name])
        assert moved == (name != "place"), name
    for name, value in sharded[0]["served"].items():
        torch.testing.assert_close(value, slow["served"][name], rtol=0, atol=1e-6)
        assert torch.equal(value, sharded[1]["served"][name]), "equal on all ranks"


def test_ratios_of_learning_rates_under_a_schedule() -> None:
    schedule = {"warmup_steps": 99}
    config = config_of(overrides=OVERRIDES, schedule=schedule)
    rates = run_ranks(train_sharded, 1, config=config)[0]["rates"]
    factor = STEPS / 100
    assert rates == pytest.approx(
        {
            "user": 0.02 * factor,
            "tag": 0.05 * factor,
            "place": 0.0,
            "cross": 0.05 * factor * (1 / 4) ** 0.5,
            "topic": 0.1 * factor,
            "item": 0.01 * factor,
            "author": 0.5 * factor,
        }
    )


def test_plans_that_an_optimizer_can_t_train() -> None:
    by_column = {"tag": {"sharding_types": ["column_wise"]}}
    with pytest.raises(ConfigError, match=r"'tag'.*column_wise.*embedding_dim 8"):
        run_ranks(train_sharded, 2, config=config_of(overrides=by_column))


# --------------------------------------------------------------------------------------- resuming


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_set(tmp_path_factory.mktemp("data") / "tiny", num_rows=1_500)


@pytest.fixture(scope="module")
def averaged(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict]:
    """A finished run with an average; its config and summary."""
    folder = tmp_path_factory.mktemp("averaged")
    dense = {"ema_decay": 0.9, "learning_rate": 0.02}
    config = make_config(tiny_set, folder, dense_optimizer=dense, training={"max_steps": 8})
    return config, run_ranks(train, 2, config=config, run_folder=folder / "run")[0]


def test_a_checkpoint_serves_the_average(averaged: tuple[Config, dict]) -> None:
    config, summary = averaged
    path = Path(summary["checkpoint"])
    on_gpus = {"sparse_optimizer": config.sparse_optimizer.model_copy(update={"name": "adam"})}
    other = config.model_copy(update=on_gpus)  # an evaluation needs no optimizer
    result = run_ranks(evaluate_checkpoint, 1, config=other, path=path, split="valid")[0]
    assert result["metrics"] == pytest.approx(summary["metrics"], abs=1e-6, nan_ok=True)
    found = run_ranks(averages, 2, config=config, path=path)[0]
    assert found["trained"] != found["served"]
    tensors = checkpoint.read_manifest(Folder(path)).tensors
    of_average = [name for name in tensors if name.startswith("optimizer.average.")]
    assert {name.rpartition(".")[2] for name in of_average} == {"trained", "step"}


def averages(context: WorkerContext, *, config: Config, path: Path) -> dict[str, float]:
    """A number that shows which weights are in place, after loading with the optimizer."""
    setup = TrainingSetup.open(config, context, splits=[])
    checkpoint.load(Folder(path), setup.sharded, context)
    dense = setup.sharded.model.module.model.dense

    def total() -> float:
        return sum(float(p.detach().double().abs().sum()) for p in dense.parameters())

    trained = total()
    with setup.sharded.serving_weights():
        served = total()
    assert total() == trained
    return {"trained": trained, "served": served}


def test_states_move_between_data_parallel_and_sharded(tiny_set: Path, tmp_path: Path) -> None:
    def config_with(kind: str) -> Config:
        by_table = {"sharding_types": [kind]}
        duration = by_table | {"optimizer": "adagrad", "embedding_dim": 6}
        overrides = {"user": by_table, "duration": duration, "age_group": by_table}
        tables = {"embedding_dim": 8, "overrides": overrides}
        return make_config(tiny_set, tmp_path, tables=tables, training={"max_steps": 3})

    whole = config_with("data_parallel")
    summary = run_ranks(train, 2, config=whole, run_folder=tmp_path / "run")[0]
    path = Path(summary["checkpoint"])
    before = run_ranks(states, 2, config=whole, path=path)[0]
    after = run_ranks(states, 2, config=config_with("row_wise"), path=path)[0]
    assert before.keys() == after.keys()
    for name in ("user", "duration", "age_group"):
        state = f"optimizer.tables.{name}.momentum1"
        assert before[state].count_nonzero()
        assert torch.equal(before[state], after[state])


def states(context: WorkerContext, *, config: Config, path: Path) -> dict[str, torch.Tensor]:
    """All tensors after loading a checkpoint, put together from the ranks' shards."""
    setup = TrainingSetup.open(config, context, splits=[])
    checkpoint.load(Folder(path), setup.sharded, context)
    shards = ModelState(setup.sharded).shards()
    own = [(s.name, s.shape, s.offsets, s.tensor.clone()) for s in shards]
    whole: dict[str, torch.Tensor] = {}
    for name, shape, offsets, part in (one for rank in context.gather(own) for one in rank):
        tensor = whole.setdefault(name, torch.full(shape, torch.nan, dtype=torch.float64))
        tensor[tuple(slice(o, o + n) for o, n in zip(offsets, part.shape, strict=True))] = part
    return whole


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"tables": {"overrides": {"user": {"optimizer": "adagrad"}}}},
            "table 'user' is adagrad, was rowwise_adagrad",
        ),
        ({"dense_optimizer": {"name": "sgd"}}, "dense_optimizer.name is sgd, was adamw"),
        ({"dense_optimizer": {"ema_decay": None}}, "dense_optimizer.ema_decay is null"),
    ],
)
def test_another_optimizer_is_refused_by_name(
    averaged: tuple[Config, dict], changes: dict[str, dict], named: str
) -> None:
    config, summary = averaged
    run_folder = Path(summary["run_folder"])
    raw = config.model_dump()
    for section, values in changes.items():
        raw[section] |= values
    with pytest.raises(CheckpointError, match=named):
        run_ranks(train, 2, config=Config.model_validate(raw), run_folder=run_folder)
