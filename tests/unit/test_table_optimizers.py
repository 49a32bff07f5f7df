"""Optimizers of tables: data-parallel ones and padded ones against fbgemm's kernels and loops."""

from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from infnet_dist.config.run import parse_config
from infnet_dist.lookups import Lookups, TableLookups
from infnet_dist.schema import CategoricalFeature, Schema, Table, Task
from infnet_dist.sharding.data_parallel import table_optimizer
from infnet_dist.sharding.optimizers import optimizer_of, optimizer_options

ROWS, STEPS = 9, 12
KINDS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}


def table(width: int, **settings: Any) -> TableLookups:
    schema = Schema(
        tables=(Table(name="t", num_embeddings=ROWS),),
        categorical=(CategoricalFeature(name="x", table="t", column="x"),),
        tasks=(Task(name="click", column="click"),),
        group_column="x",
        time_column="time",
    )
    tables = {"embedding_dim": width, "overrides": {"*": settings}}
    return Lookups(schema, parse_config({"data": {"path": "d"}, "tables": tables})).tables[0]


def kernel(found: TableLookups, start: torch.Tensor) -> SplitTableBatchedEmbeddingBagsCodegen:
    """fbgemm's kernel of a table with our options, as TorchRec makes it."""
    options = optimizer_options(found)
    made = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, found.kernel_width, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=KINDS[optimizer_of(found)],
        learning_rate=options.pop("lr"),
        **options,
    )
    made.split_embedding_weights()[0].copy_(padded(start, found))
    return made


def padded(rows: torch.Tensor, found: TableLookups) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, found.kernel_width - rows.shape[1]))


def steps(width: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids of each step, some more than once, some rows never; and the gradients of the lookups."""
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randint(0, ROWS - 2, (5,), generator=generator),
            torch.randn(5, width, generator=generator),
        )
        for _ in range(STEPS)
    ]


def by_loops(found: TableLookups, start: torch.Tensor) -> torch.Tensor:
    """The rows after all steps, by the formulas, without padding."""
    settings, rows = found.settings, start.double().clone()
    squares: dict[int, torch.Tensor] = {}
    for ids, gradients in steps(settings.embedding_dim):
        for row in set(ids.tolist()):
            gradient = gradients[ids == row].double().sum(0) + settings.weight_decay * rows[row]
            if settings.optimizer == "sgd":
                scale: torch.Tensor | float = 1.0
            else:
                square = gradient**2
                square = square.mean() if settings.optimizer == "rowwise_adagrad" else square
                squares[row] = squares.get(row, 0) + square
                scale = squares[row].sqrt() + settings.eps
            rows[row] -= settings.learning_rate * gradient / scale
    return rows.float()


CASES: list[tuple[int, dict[str, Any]]] = [
    (8, {"optimizer": "rowwise_adagrad"}),
    (8, {"optimizer": "rowwise_adagrad", "weight_decay": 0.1}),
    (8, {"optimizer": "adagrad", "learning_rate": 0.02}),
    (8, {"optimizer": "sgd", "learning_rate": 0.3}),
    (10, {"optimizer": "rowwise_adagrad", "weight_decay": 0.1}),
    (10, {"optimizer": "rowwise_adagrad"}),
    (1, {"optimizer": "rowwise_adagrad"}),
    (10, {"optimizer": "adagrad"}),
    (3, {"optimizer": "sgd"}),
]


@pytest.mark.parametrize(("width", "settings"), CASES)
def test_fused_and_data_parallel_equal_loops(width: int, settings: dict[str, Any]) -> None:
    found = table(width, **settings)
    start = torch.rand(ROWS, width, generator=torch.Generator().manual_seed(1)) - 0.5
    expected = padded(by_loops(found, start), found)

    # On CPUs the kernel ignores weight decay, which is refused there (test_settings_check).
    decays = found.settings.weight_decay > 0
    fused = kernel(found, start)
    for ids, gradients in steps(width):
        out = fused(indices=ids, offsets=torch.arange(len(ids) + 1))
        out.backward(padded(gradients, found))
    fused_rows = fused.split_embedding_weights()[0]
    if decays:
        assert (fused_rows - expected).abs().max() > 1e-3
    else:
        torch.testing.assert_close(fused_rows, expected, rtol=0, atol=1e-6)

    weight = torch.nn.Parameter(padded(start, found))
    options = optimizer_options(found)
    group = {
        "table": "t",
        "kind": optimizer_of(found),
        "lr": options["lr"],
        "eps": options.get("eps", 0.0),
        "weight_decay": options.get("weight_decay", 0.0),
    }
    optimizer = table_optimizer({"bags.embedding_bags.t.weight": weight}, [group])
    for ids, gradients in steps(width):
        weight.grad = torch.zeros_like(weight).index_add_(0, ids, padded(gradients, found))
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-6)
    states = optimizer.state_dict()["state"].get("bags.embedding_bags.t.weight", {})
    fused_states = [next(iter(s.values())) for s in fused.get_optimizer_state() if s]
    assert len(states) == len(fused_states)
    for (name, state), other in zip(states.items(), fused_states, strict=True):
        assert name == "t.momentum1", "the fused state's name, so that either loads the other's"
        assert state.shape == other.shape
        if not decays:
            torch.testing.assert_close(state, other, rtol=1e-6, atol=1e-6)


def test_frozen_is_sgd_at_rate_zero() -> None:
    found = table(8, trainable=False, optimizer="adagrad", learning_rate=0.3, weight_decay=0.2)
    assert (optimizer_of(found), optimizer_options(found)) == ("sgd", {"lr": 0.0})


def test_padding_changes_rates_of_optimizers_by_row_only() -> None:
    row_wise = optimizer_options(table(10, optimizer="partial_rowwise_adam", weight_decay=0.1))
    scale = (10 / 12) ** 0.5
    assert row_wise == pytest.approx(
        {"lr": 0.05 * scale, "eps": 1e-8 * scale, "weight_decay": 0.1 / scale}
    )
    element_wise = optimizer_options(table(10, optimizer="adam", weight_decay=0.1))
    assert element_wise == {"lr": 0.05, "eps": 1e-8, "weight_decay": 0.1}
    assert optimizer_options(table(8)) == {"lr": 0.05, "eps": 1e-8}
