"""Clipping by row against a loop over the lookups of each example."""

from typing import Any

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.config.run import parse_config
from infnet_dist.lookups import Lookups
from infnet_dist.model.sparse import SparseArch
from infnet_dist.model.tokens import SparseEmbeddings
from infnet_dist.schema import (
    BagFeature,
    CategoricalFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
)
from infnet_dist.sharding.row_clipping import RowClipping

B, LIMIT = 5, 0.5
SCHEMA = Schema(
    tables=tuple(Table(name=name, num_embeddings=40) for name in ("a", "b", "c", "d")),
    categorical=(CategoricalFeature(name="one", table="a", column="one"),),
    bags=(
        BagFeature(name="total", table="a", column="total", pooling="sum", max_length=4),
        BagFeature(name="mean", table="b", column="mean", max_length=4),
        BagFeature(
            name="wsum", table="c", column="wsum", pooling="sum", max_length=4, weight_column="w1"
        ),
        BagFeature(name="wmean", table="d", column="wmean", max_length=4, weight_column="w2"),
    ),
    sequences=(
        SequenceFeature(
            name="past",
            attributes=(
                SequenceAttribute(name="a", table="d", column="past_a"),
                SequenceAttribute(name="b", table="b", column="past_b"),
            ),
            max_length=3,
        ),
    ),
    tasks=(Task(name="click", column="click"),),
    group_column="one",
    time_column="time",
)
LENGTHS = {"one": [1, 1, 1, 1, 0], "past.a": [3, 0, 1, 2, 0], "past.b": [3, 0, 1, 2, 0]}
OF_BAGS = [4, 1, 0, 2, 0]


def places() -> dict[str, list[list[int]]]:
    """By key and example, the ids; each is looked up once, so a row's gradient is that lookup's."""
    used = {table.name: 0 for table in SCHEMA.tables}
    found: dict[str, list[list[int]]] = {}
    for feature in SCHEMA.table_features:
        found[feature.key] = []
        for length in LENGTHS.get(feature.key, OF_BAGS):
            first = used[feature.table]
            used[feature.table] += length
            found[feature.key].append(list(range(first, first + length)))
    return found


PLACES = places()


def jagged(keys: tuple[str, ...], weighted: bool) -> KeyedJaggedTensor:
    ids = [row for key in keys for rows in PLACES[key] for row in rows]
    weights = torch.rand(len(ids), generator=torch.Generator().manual_seed(5)) * 2
    return KeyedJaggedTensor(
        keys=list(keys),
        values=torch.tensor(ids),
        lengths=torch.tensor([len(rows) for key in keys for rows in PLACES[key]]),
        weights=weights if weighted else None,
    )


def loss_of(embeddings: SparseEmbeddings) -> torch.Tensor:
    """Gradients of many sizes, on both sides of the limit."""
    parts = [*embeddings.fields, *embeddings.sequences]
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(())
    for part in parts:
        size = torch.rand(part.shape[:-1], generator=generator).mul(2).unsqueeze(-1)
        total = total + (part * size * torch.randn(part.shape, generator=generator)).sum()
    return total


def gradients(clip: bool) -> dict[str, torch.Tensor]:
    overrides: dict[str, Any] = {"b": {"embedding_dim": 6}, "c": {"embedding_dim": 3}}
    config = parse_config({"data": {"path": "d"}, "tables": {"overrides": overrides}})
    lookups = Lookups(SCHEMA, config)
    torch.manual_seed(0)
    sparse = SparseArch(lookups)
    if clip:
        sparse.pooling.register_forward_hook(RowClipping(lookups, LIMIT))
    ids = jagged(SCHEMA.unweighted_keys, weighted=False)
    loss_of(sparse(ids, jagged(SCHEMA.weighted_keys, weighted=True))).backward()
    return {name: parameter.grad for name, parameter in sparse.named_parameters()}


@pytest.fixture(scope="module")
def both() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return gradients(clip=False), gradients(clip=True)


def test_no_lookup_exceeds_the_limit(both: Any) -> None:
    free, clipped = both
    assert any((gradient.norm(dim=1) > 2 * LIMIT).any() for gradient in free.values())
    for gradient in clipped.values():
        assert (gradient.norm(dim=1) <= LIMIT * (1 + 1e-5)).all()


def test_equals_a_loop_over_lookups(both: Any) -> None:
    """Rows of a bag keep their ratios; all other rows are clipped on their own."""
    free, clipped = both
    parameters = {name.split(".")[-2]: name for name in free}
    tables = {feature.key: feature.table for feature in SCHEMA.table_features}
    bags = {bag.name for bag in SCHEMA.bags}
    checked = 0
    for key, lookups in PLACES.items():
        before, after = (found[parameters[tables[key]]] for found in (free, clipped))
        for rows in lookups:
            for together in [rows] if key in bags else [[row] for row in rows]:
                largest = before[together].norm(dim=1).max().item() if together else 0.0
                scale = min(1.0, LIMIT / max(largest, LIMIT))
                expected = before[together] * scale
                torch.testing.assert_close(after[together], expected, rtol=1e-5, atol=1e-7)
                checked += scale < 1
    assert checked > 10
