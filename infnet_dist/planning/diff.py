"""Differences between two plans: changed tables, bytes moved over which links, and time."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from infnet_dist.planning.costs.sizes import row_bytes
from infnet_dist.planning.plan import BY_NODE, Plan, TableBytes, described, shards_of
from infnet_dist.planning.topology import Topology


@dataclass(frozen=True)
class Moved:
    """Bytes of rows and optimizer state that move to other ranks.

    Attributes:
        intra_node: from another rank of the same node.
        inter_node: from another node.
    """

    intra_node: float
    inter_node: float

    @property
    def total(self) -> float:
        """Within and between nodes."""
        return self.intra_node + self.inter_node


@dataclass(frozen=True)
class PlanDiff:
    """From plan `before` to plan `after`.

    Attributes:
        added: names of tables only in `after`.
        removed: names of tables only in `before`.
        changed: one line per table whose sharding differs, by name.
        moved: moved bytes by table, for tables that move.
        bytes_before: bytes of each table in `before`, by name.
        bytes_after: bytes of each table in `after`, by name.
        bottleneck_ms: time of the busiest rank (before, after).
    """

    added: list[str]
    removed: list[str]
    changed: dict[str, str]
    moved: dict[str, Moved]
    bytes_before: dict[str, TableBytes]
    bytes_after: dict[str, TableBytes]
    bottleneck_ms: tuple[float, float]

    @property
    def intra_node_bytes(self) -> float:
        """Bytes moved within nodes."""
        return sum(moved.intra_node for moved in self.moved.values())

    @property
    def inter_node_bytes(self) -> float:
        """Bytes moved between nodes."""
        return sum(moved.inter_node for moved in self.moved.values())

    @property
    def moved_bytes(self) -> float:
        """Bytes moved within and between nodes."""
        return self.intra_node_bytes + self.inter_node_bytes

    def to_json(self) -> dict[str, Any]:
        """The diff as a JSON object."""
        moved = {
            name: {"intra_node_bytes": m.intra_node, "inter_node_bytes": m.inter_node}
            for name, m in self.moved.items()
        }
        return {
            "added": self.added,
            "removed": self.removed,
            "changed": self.changed,
            "moved": moved,
            "bytes_before": {n: found._asdict() for n, found in self.bytes_before.items()},
            "bytes_after": {n: found._asdict() for n, found in self.bytes_after.items()},
            "intra_node_bytes": self.intra_node_bytes,
            "inter_node_bytes": self.inter_node_bytes,
            "bottleneck_ms_before": self.bottleneck_ms[0],
            "bottleneck_ms_after": self.bottleneck_ms[1],
        }


def diff_plans(before: Plan, after: Plan) -> PlanDiff:
    """Compare two plans, taking rank r of both to be the same worker.

    A table whose shape, kind or optimizer differs counts as changed; its bytes are new, so none
    move.
    """
    changed, moved = {}, {}
    for name in sorted(set(before.tables) & set(after.tables)):
        one, two = before.table(name), after.table(name)
        if described(one) != described(two):
            changed[name] = f"{described(one)} -> {described(two)}"
            continue
        if before.tables[name] == after.tables[name] and _same_ranks(before, after):
            continue
        old, new = _where(before, name), _where(after, name)
        if old != new:
            changed[name] = f"{old} -> {new}"
        bytes_moved = _moved(before, after, name)
        if bytes_moved.total:
            moved[name] = bytes_moved
    return PlanDiff(
        added=sorted(set(after.tables) - set(before.tables)),
        removed=sorted(set(before.tables) - set(after.tables)),
        changed=changed,
        moved=moved,
        bytes_before={name: before.bytes_of(name) for name in sorted(before.tables)},
        bytes_after={name: after.bytes_of(name) for name in sorted(after.tables)},
        bottleneck_ms=(before.bottleneck_ms, after.bottleneck_ms),
    )


def _same_ranks(before: Plan, after: Plan) -> bool:
    one, two = before.made_for.topology, after.made_for.topology
    return (one.world_size, one.workers_per_node) == (two.world_size, two.workers_per_node)


def _where(plan: Plan, name: str) -> str:
    entry, topology = plan.tables[name], plan.made_for.topology
    if not entry.places:
        place = f"all {topology.world_size} ranks"
    else:
        by_node = entry.sharding_type in BY_NODE
        numbers = ",".join(map(str, entry.places))
        place = f"{'nodes' if by_node else 'ranks'} {numbers}"
    cache = f" {entry.cache_share:g} cached" if entry.cache_share else ""
    return f"{entry.sharding_type} {entry.compute_kernel}{cache} on {place}"


def _moved(before: Plan, after: Plan, name: str) -> Moved:
    """Bytes of each new shard that no old shard on its rank holds, by link."""
    table = after.table(name)
    old = _rectangles(before, name)
    new = _rectangles(after, name)
    size = row_bytes(table, after.made_for.tables.optimizer_of(table)) / table.embedding_dim
    old_node = old[:, 0] // before.made_for.topology.workers_per_node
    replicated = before.tables[name].sharding_type == "data_parallel"
    intra = inter = 0.0
    for rank, row, column, rows, columns in new:
        area = float(rows) * columns
        if not area:
            continue
        height = np.minimum(old[:, 1] + old[:, 3], row + rows) - np.maximum(old[:, 1], row)
        width = np.minimum(old[:, 2] + old[:, 4], column + columns) - np.maximum(old[:, 2], column)
        overlap = np.maximum(height, 0) * np.maximum(width, 0).astype(np.float64)
        node = rank // after.made_for.topology.workers_per_node
        gather = np.max if replicated else np.sum
        here = float(gather(overlap * (old[:, 0] == rank), initial=0.0))
        near = float(gather(overlap * (old_node == node), initial=0.0)) - here
        intra += near * size
        inter += (area - here - near) * size
    return Moved(intra, inter)


def _rectangles(plan: Plan, name: str) -> np.ndarray:
    """Rank, row offset, column offset, rows and columns of each shard; int64 [shards, 5]."""
    topology: Topology = plan.made_for.topology
    shards = shards_of(plan.table(name), plan.tables[name], topology)
    return np.array(list(shards), np.int64)
