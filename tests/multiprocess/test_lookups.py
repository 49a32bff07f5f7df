"""Every kind of lookup, sharded in every way that it may be, against slow loops in one process."""

from typing import Any

import pytest
import torch

from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.model.build import build_train_model
from infnet_dist.sharding.build import build_sharded_model
from infnet_dist.sharding.optimizers import learning_rate_factors
from infnet_dist.training.step import train_step
from tests.mixed import ROWS, SCHEMA, config_of, looked_up, make_batch
from tests.ranks import run_ranks
from tests.tables import whole_tables

STEPS = 12


def train_sharded(context: WorkerContext, *, config: Config) -> dict[str, Any]:
    sharded = build_sharded_model(config, SCHEMA, context)
    before, losses = whole_tables(sharded, context), []
    for step in range(STEPS):
        batch = make_batch(100 * step + context.rank)
        factors = learning_rate_factors(config, step, STEPS)
        loss, _ = train_step(sharded, batch, factors, step=step, seed=0)
        losses.append(context.sum(loss).item() / context.world_size)
    types = {name: entry.sharding_type for name, entry in sharded.plan.tables.items()}
    return {
        "losses": losses,
        "before": before,
        "after": whole_tables(sharded, context),
        "types": types,
    }


def train_by_loops(config: Config, before: dict[str, torch.Tensor], ranks: int) -> dict[str, Any]:
    """Whole tables of their own widths, pooled by loops, row-wise Adagrad by its formula."""
    model = build_train_model(config, SCHEMA)
    dense = model.model.dense
    rows = {name: table.clone().requires_grad_() for name, table in before.items()}
    adamw = torch.optim.AdamW(
        dense.parameters(), lr=config.dense_optimizer.learning_rate, weight_decay=0.0
    )
    sums = {name: torch.zeros(len(table)) for name, table in rows.items()}
    losses = []
    for step in range(STEPS):
        adamw.zero_grad()
        total = 0.0
        for rank in range(ranks):
            batch = make_batch(100 * step + rank)
            embeddings = looked_up(rows, batch, config)
            logits = dense(embeddings, batch.vectors_BV, batch.dense_BN, batch.time_gap_BL)
            total += model.loss(logits, batch.labels_BK, batch.weights_B)[0] / ranks
        grads = torch.autograd.grad(total, list(rows.values()), retain_graph=True)
        total.backward(inputs=list(dense.parameters()))
        adamw.step()
        with torch.no_grad():
            for (name, table), grad in zip(rows.items(), grads, strict=True):
                sums[name] += grad.pow(2).mean(dim=1)
                scale = sums[name].sqrt() + config.sparse_optimizer.eps
                table -= config.sparse_optimizer.learning_rate * grad / scale[:, None]
        losses.append(float(total))
    return {"losses": losses, "after": {name: t.detach() for name, t in rows.items()}}


TYPES = {
    "table-wise": dict.fromkeys(ROWS, "table_wise"),
    "row-wise": dict.fromkeys(ROWS, "row_wise"),
}


@pytest.mark.parametrize("types", TYPES.values(), ids=TYPES.keys())
def test_all_kinds_sharded(types: dict[str, str]) -> None:
    overrides = {name: {"sharding_types": [kind]} for name, kind in types.items()}
    config = config_of(overrides=overrides)
    sharded = run_ranks(train_sharded, 2, config=config)[0]
    assert sharded["types"] == types
    slow = train_by_loops(config, sharded["before"], 2)
    torch.testing.assert_close(sharded["losses"], slow["losses"], rtol=0, atol=2e-6)
    for name, table in sharded["after"].items():
        torch.testing.assert_close(table, slow["after"][name], rtol=0, atol=1e-5)
        assert not torch.equal(table, sharded["before"][name]), name
