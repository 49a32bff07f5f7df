"""A schema with every kind of lookup, random batches of it, and its embeddings by slow loops."""

from pathlib import Path
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.batch import BatchRows, RankingBatch
from infnet_dist.config.run import Config, DataConfig
from infnet_dist.lookups import Lookups
from infnet_dist.model.tokens import SparseEmbeddings
from infnet_dist.schema import (
    BagFeature,
    CategoricalFeature,
    CrossFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
    VectorFeature,
    sequence_keys,
)

ROWS = {"user": 40, "item": 30, "tag": 20, "topic": 15, "place": 5, "cross": 25, "author": 10}
WIDTHS = {"tag": 6, "topic": 12, "place": 4, "cross": 1, "author": 4}
SCHEMA = Schema(
    tables=tuple(Table(name=name, num_embeddings=rows) for name, rows in ROWS.items()),
    categorical=(
        CategoricalFeature(name="user", table="user", column="user"),
        CategoricalFeature(name="item", table="item", column="item"),
        CategoricalFeature(name="place", table="place", column="place"),
        CategoricalFeature(name="topic", table="topic", column="topic"),
    ),
    crosses=(CrossFeature(name="user_place", features=("user", "place"), table="cross"),),
    bags=(
        BagFeature(name="tags", table="tag", column="tags", pooling="sum", max_length=4),
        BagFeature(name="new_tags", table="tag", column="new_tags", pooling="mean", max_length=3),
        BagFeature(
            name="interests",
            table="topic",
            column="interests",
            pooling="sum",
            max_length=4,
            weight_column="interest_weights",
        ),
        BagFeature(
            name="moods",
            table="topic",
            column="moods",
            pooling="mean",
            max_length=3,
            weight_column="mood_weights",
        ),
        BagFeature(name="similar", table="item", column="similar", pooling="mean", max_length=3),
        BagFeature(
            name="liked",
            table="item",
            column="liked",
            pooling="mean",
            max_length=3,
            weight_column="liked_weights",
        ),
    ),
    vectors=(
        VectorFeature(name="picture", column="picture", dim=5),
        VectorFeature(name="sound", column="sound", dim=2),
    ),
    sequences=(
        SequenceFeature(
            name="click",
            attributes=(
                SequenceAttribute(name="item", table="item", column="click_item"),
                SequenceAttribute(name="author", table="author", column="click_author"),
            ),
            max_length=3,
        ),
    ),
    tasks=(Task(name="click", column="click"), Task(name="like", column="like")),
    group_column="user",
    time_column="time",
)
TABLE_OF = {feature.key: feature.table for feature in SCHEMA.table_features}


def config_of(**sections: Any) -> Config:
    """A small model; `tables` is merged with the widths."""
    overrides = {name: {"embedding_dim": width} for name, width in WIDTHS.items()}
    for name, more in sections.pop("overrides", {}).items():
        overrides[name] = overrides.get(name, {}) | more
    return Config(
        data=DataConfig(path=Path("unused"), batch_size=8),
        tables={"embedding_dim": 8, "overrides": overrides},
        model={"name": "infnet", "token_dim": 8, "num_hubs": 2},
        **sections,
    )


def make_batch(seed: int, num_rows: int = 7, size: int = 8) -> RankingBatch:
    """Random rows, then padding."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    lengths, ids, weights = {}, {}, {}
    most = {bag.name: bag.max_length for bag in SCHEMA.bags}
    history_B = integers(0, 4, num_rows)
    singles = {feature.key for feature in SCHEMA.fields}
    for feature in SCHEMA.table_features:
        if feature.key in singles:
            length_B = torch.ones(num_rows, dtype=torch.int64)
        elif feature.key in most:
            length_B = integers(0, most[feature.key] + 1, num_rows)
        else:
            length_B = history_B
        lengths[feature.key] = torch.cat([length_B, length_B.new_zeros(size - num_rows)])
        ids[feature.key] = integers(0, ROWS[feature.table], int(length_B.sum()))
        weights[feature.key] = torch.ones(len(ids[feature.key]))
    for bag in SCHEMA.weighted_bags:
        drawn = torch.rand(len(ids[bag.name]), generator=generator)
        weights[bag.name] = drawn * (drawn > 0.2)  # some are 0

    def jagged(keys: tuple[str, ...], weighted: bool) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(
            keys=list(keys),
            values=torch.cat([ids[key] for key in keys]),
            lengths=torch.cat([lengths[key] for key in keys]),
            weights=torch.cat([weights[key] for key in keys]) if weighted else None,
            stride=size,
        )

    vectors_BV = torch.randn(size, 7, generator=generator)
    vectors_BV[num_rows:] = 0
    vectors_BV[2, :5] = torch.nan  # no picture
    real_B = (torch.arange(size) < num_rows).float()
    return RankingBatch(
        sparse_features=jagged(SCHEMA.unweighted_keys, weighted=False),
        weighted_features=jagged(SCHEMA.weighted_keys, weighted=True),
        vectors_BV=vectors_BV,
        dense_BN=torch.zeros(size, 0),
        time_gap_BL=torch.zeros(size, 3, dtype=torch.uint8),
        labels_BK=integers(0, 2, size, 2).float(),
        weights_B=real_B,
        group_B=torch.zeros(size, dtype=torch.int64),
        truth_BK=torch.full((size, 2), torch.nan),
        rows=BatchRows(epoch=0, intervals=((0, num_rows),)),
    )


def looked_up(
    rows: dict[str, torch.Tensor], batch: RankingBatch, config: Config
) -> SparseEmbeddings:
    """What SparseArch should return, by loops over rows and ids; `rows` by table."""
    assert batch.weighted_features is not None
    unweighted, weighted = batch.sparse_features.to_dict(), batch.weighted_features.to_dict()
    size = len(batch.weights_B)
    bags = {bag.name: bag for bag in SCHEMA.bags}
    fields = []
    for lookup in Lookups(SCHEMA, config).fields:
        key, bag = lookup.feature, bags.get(lookup.feature)
        found = weighted[key] if bag and bag.weight_column else (unweighted | weighted)[key]
        pooled = []
        for ids, weights in _by_row(found, size):
            if not (bag and bag.weight_column):
                weights = [1.0] * len(ids)
            total = rows[lookup.table].new_zeros(rows[lookup.table].shape[1])
            for i, weight in zip(ids, weights, strict=True):
                total = total + weight * rows[lookup.table][i]
            if bag and bag.pooling == "mean" and sum(weights):
                total = total / sum(weights)
            pooled.append(total)
        fields.append(torch.stack(pooled))
    sequences, masks = [], []
    for sequence in SCHEMA.sequences:
        parts = []
        for key in sequence_keys(sequence):
            table = rows[TABLE_OF[key]]
            part = [
                torch.stack(
                    [table[i] for i in ids]
                    + [table.new_zeros(table.shape[1])] * (sequence.max_length - len(ids))
                )
                for ids, _ in _by_row(unweighted[key], size)
            ]
            parts.append(torch.stack(part))
        sequences.append(torch.cat(parts, dim=2))
        lengths = [len(ids) for ids, _ in _by_row(unweighted[key], size)]
        masks.append(torch.tensor([[i < n for i in range(3)] for n in lengths]))
    return SparseEmbeddings(fields, sequences, masks)


def _by_row(jagged: Any, size: int) -> list[tuple[list[int], list[float]]]:
    weights = jagged.weights_or_none()
    ends = jagged.offsets().tolist()
    return [
        (
            jagged.values()[ends[b] : ends[b + 1]].tolist(),
            [] if weights is None else weights[ends[b] : ends[b + 1]].tolist(),
        )
        for b in range(size)
    ]
