"""Every kind of lookup, sharded in every way that it may be, against slow loops in one process."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infnet_dist.checkpoint import CheckpointMetadata, SavedProgress, Saver, Throughput, load
from infnet_dist.checkpoint.manifest import DataOrder
from infnet_dist.checkpoint.step_folders import name_of
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.io.filesystem import Folder
from infnet_dist.model.build import build_train_model
from infnet_dist.sharding.build import build_sharded_model
from infnet_dist.sharding.optimizers import learning_rate_factors
from infnet_dist.training.step import EagerStep, StepSettings
from tests.mixed import ROWS, SCHEMA, config_of, looked_up, make_batch
from tests.ranks import run_ranks
from tests.tables import whole_tables

STEPS = 8
MIXED = {"user": "sgd", "item": "adagrad", "tag": "adagrad", "topic": "rowwise_adagrad"}


def train_sharded(
    context: WorkerContext,
    *,
    config: Config,
    workers_per_node: int | None = None,
    folder: Path | None = None,
    first: int = 0,
) -> dict[str, Any]:
    """Train steps `first` and later; with a folder, from its newest checkpoint, and save there."""
    if workers_per_node:
        os.environ["LOCAL_WORLD_SIZE"] = str(workers_per_node)
        context = replace(context, local_world_size=workers_per_node)
    sharded = build_sharded_model(config, SCHEMA, context)
    if folder and first:
        load(Folder(folder / name_of(first)), sharded, context)
    before, losses = whole_tables(sharded, context), []
    eager = EagerStep(sharded, context, seed=0)
    for step in range(first, first + STEPS):
        batch = make_batch(100 * step + context.rank)
        factors = learning_rate_factors(config, step, 1000)
        loss = eager.train(batch, StepSettings(step, factors)).loss
        losses.append(context.sum(loss).item() / context.world_size)
    if folder:
        saver = Saver(Folder(folder), sharded, config, context)
        progress = SavedProgress(step=first + STEPS)
        order = DataOrder(content_hash="x", seed=0, shuffle_rows=1)
        saver.save(CheckpointMetadata(progress, order, {}, {}, Throughput()))
        saver.wait()
        saver.close()
    types = {name: entry.sharding_type for name, entry in sharded.plan.tables.items()}
    after = whole_tables(sharded, context)
    return {"losses": losses, "before": before, "after": after, "types": types}


class Loops:
    """One process: whole tables of their own widths, pooled by loops, optimizers by formula."""

    def __init__(self, config: Config, before: dict[str, torch.Tensor]) -> None:
        self.config, self.model = config, build_train_model(config, SCHEMA)
        self.rows = {name: table.clone().requires_grad_() for name, table in before.items()}
        self.sums = {name: torch.zeros_like(table) for name, table in before.items()}
        rate = config.dense_optimizer.learning_rate
        self.adamw = torch.optim.AdamW(self.model.model.dense.parameters(), rate, weight_decay=0)

    def train(self, ranks: int, first: int = 0) -> list[float]:
        return [self._step(step, ranks) for step in range(first, first + STEPS)]

    def _step(self, step: int, ranks: int) -> float:
        dense = self.model.model.dense
        self.adamw.zero_grad()
        total = torch.zeros(())
        for rank in range(ranks):
            batch = make_batch(100 * step + rank)
            embeddings = looked_up(self.rows, batch, self.config)
            logits = dense(embeddings, batch.vectors_BV, batch.dense_BN, batch.time_gap_BL)
            total = total + self.model.loss(logits, batch.labels_BK, batch.weights_B)[0] / ranks
        gradients = torch.autograd.grad(total, list(self.rows.values()), retain_graph=True)
        total.backward(inputs=list(dense.parameters()))
        self.adamw.step()
        for (name, table), gradient in zip(self.rows.items(), gradients, strict=True):
            self._update(name, table.detach(), gradient)
        return float(total)

    def _update(self, name: str, table: torch.Tensor, gradient: torch.Tensor) -> None:
        settings = self.config.table(name)
        if settings.optimizer == "sgd":
            table -= settings.learning_rate * gradient
            return
        squares = gradient.square()
        if settings.optimizer == "rowwise_adagrad":
            squares = squares.mean(dim=1, keepdim=True).expand_as(table)
        self.sums[name] += squares
        table -= settings.learning_rate * gradient / (self.sums[name].sqrt() + settings.eps)


def config_with(types: dict[str, str], optimizers: dict[str, str], default: str) -> Config:
    overrides: dict[str, dict] = {name: {"sharding_types": [kind]} for name, kind in types.items()}
    for name, optimizer in optimizers.items():
        overrides[name] = overrides[name] | {"optimizer": optimizer}
    return config_of(
        overrides=overrides, sparse_optimizer={"name": default, "eps": 1e-3, "learning_rate": 0.05}
    )


BAGS = ("user", "tag", "topic", "place", "cross")
EVERY = {name: "row_wise" for name in ROWS}
CASES = {
    "table-wise": (2, None, dict.fromkeys(ROWS, "table_wise"), MIXED),
    "row-wise": (2, None, EVERY, {}),
    "column-wise": (
        2,
        None,
        EVERY | {"user": "column_wise", "item": "column_wise", "tag": "column_wise"},
        MIXED,
    ),
    "data-parallel": (2, None, EVERY | dict.fromkeys(BAGS, "data_parallel"), MIXED),
    "by node": (4, 2, EVERY | dict.fromkeys(BAGS, "table_row_wise"), {}),
    "grid": (
        4,
        2,
        EVERY | {"user": "grid_shard", "tag": "grid_shard", "place": "table_wise"},
        MIXED,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_all_kinds_sharded(case: str) -> None:
    ranks, workers_per_node, types, optimizers = CASES[case]
    config = config_with(types, optimizers, "rowwise_adagrad")
    sharded = run_ranks(train_sharded, ranks, config=config, workers_per_node=workers_per_node)[0]
    assert sharded["types"] == types
    slow = Loops(config, sharded["before"])
    assert sharded["losses"] == pytest.approx(slow.train(ranks), abs=1e-6)
    for name, table in sharded["after"].items():
        torch.testing.assert_close(table, slow.rows[name].detach(), rtol=0, atol=1e-5)
        assert not torch.equal(table, sharded["before"][name]), name


def test_tables_of_two_data_types() -> None:
    """In each collection; half precision rounds, so that losses are near those of the loops."""
    half = {name: {"data_type": "fp16"} for name in ("tag", "topic", "item")}
    config = config_of(overrides=half)
    sharded = run_ranks(train_sharded, 2, config=config)[0]
    types = {name: table.dtype for name, table in sharded["before"].items()}
    assert types["topic"] == types["item"] == torch.float16 and types["user"] == torch.float32
    slow = Loops(config, {name: table.float() for name, table in sharded["before"].items()})
    assert sharded["losses"] == pytest.approx(slow.train(2), abs=5e-3)


def test_other_workers_and_types(tmp_path: Path) -> None:
    """Two workers, then one, then three, each with another plan."""
    place = {"place": "data_parallel", "topic": "data_parallel"}
    changes = [(2, EVERY | place), (1, {}), (3, dict.fromkeys(ROWS, "table_wise"))]
    slow = None
    for number, (ranks, types) in enumerate(changes):
        config = config_with(types or {n: "table_wise" for n in ROWS}, {}, "rowwise_adagrad")
        first = number * STEPS
        sharded = run_ranks(train_sharded, ranks, config=config, folder=tmp_path, first=first)[0]
        slow = slow or Loops(config, sharded["before"])
        assert sharded["losses"] == pytest.approx(slow.train(ranks, first), abs=2e-6)
    assert slow is not None
    for name, table in sharded["after"].items():
        torch.testing.assert_close(table, slow.rows[name].detach(), rtol=0, atol=1e-5)
