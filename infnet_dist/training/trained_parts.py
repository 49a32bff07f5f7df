"""Counts of what a run freezes, and of what it trains at another learning rate."""

from collections.abc import Callable, Sequence

from infnet_dist.sharding.build import ShardedModel
from infnet_dist.sharding.trainable import trainable_name

Sizes = Sequence[tuple[int, float]]  # rows or values, and their learning-rate factor


def trained_parts(sharded: ShardedModel) -> list[str]:
    """A line about what is frozen, and one about what is slowed; none if there is nothing."""
    training = sharded.lookups.config.training
    tables = [
        (table.table.num_embeddings, 0.0 if table.settings.is_frozen else table.settings.lr_factor)
        for table in sharded.lookups.tables
    ]
    dense = [
        (parameter.numel(), training.lr_factor(trainable_name(name.removeprefix("dense."))))
        for name, parameter in sharded.dense_optimizer.params.items()
    ]
    frozen = _count(tables, dense, lambda factor: factor == 0)
    slowed = _count(tables, dense, lambda factor: factor not in (0, 1))
    named = {"frozen": frozen, "trained at another learning rate": slowed}
    return [f"{name}: {parts}" for name, parts in named.items() if parts]


def _count(tables: Sizes, dense: Sizes, is_meant: Callable[[float], bool]) -> str:
    """The tables, rows and dense parameters whose factor is meant, as text; empty without any."""
    rows = [count for count, factor in tables if is_meant(factor)]
    values = sum(count for count, factor in dense if is_meant(factor))
    parts = []
    if rows:
        total = sum(count for count, _ in tables)
        parts.append(f"{len(rows)} of {len(tables)} tables ({sum(rows):,} of {total:,} rows)")
    if values:
        parts.append(f"{values:,} of {sum(count for count, _ in dense):,} dense parameters")
    return ", ".join(parts)
