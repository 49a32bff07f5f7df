"""Figures of a plan for its review: time, bytes by kind, tier and table, and the bottleneck."""

from typing import Any

import numpy as np

from infnet_dist.io.filesystem import size_text
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.topology import TIERS

_MIN_MS = 1e-9  # avoids a division by 0


def facts(plan: Plan) -> dict[str, Any]:
    """Figures of a plan as a JSON object; bytes and milliseconds."""
    topology = plan.made_for.topology
    step_rows = plan.made_for.tables.batch_size * topology.world_size
    return {
        "topology": topology.name,
        "device": topology.device,
        "world_size": topology.world_size,
        "num_nodes": topology.num_nodes,
        "tables": len(plan.tables),
        **_bytes(plan),
        "bottleneck_ms": plan.bottleneck_ms,
        "exchange_ms": plan.exchange_ms,
        "lower_bound_ms": plan.lower_bound_ms,
        "over_lower_bound": plan.bottleneck_ms / max(plan.lower_bound_ms, _MIN_MS) - 1,
        "output_bytes": int(sum(map(plan.output_bytes, plan.tables))),
        "samples_per_s": 1000 * step_rows / max(plan.bottleneck_ms, _MIN_MS),
        "time_balance": _balance(plan.ranks.time_ms),
        "binds": bottleneck_of(plan),
        "own_states": plan.own_states,
        "excluded": list(plan.excluded),
    }


def _bytes(plan: Plan) -> dict[str, Any]:
    """Bytes of the tables by kind, by tier and by table."""
    stored, memory = np.array(plan.ranks.stored_bytes, np.float64), plan.memory
    by_table = {name: plan.bytes_of(name) for name in plan.tables}
    total = sum(found.stored for found in by_table.values())
    cached = sum(found.cached for found in by_table.values())
    outside = sum(found.stored for found in by_table.values() if found.outside_hbm)
    saves_copies = plan.made_for.tables.background_save
    return {
        "stored_bytes": int(stored.sum()),
        "stored_bytes_per_rank": list(plan.ranks.stored_bytes),
        "outside_hbm_bytes": outside,
        "outside_hbm_share": outside / max(total, 1),
        "cached_bytes": cached,
        "buffer_bytes": max(int(plan.ranks.memory.sum() - stored.sum()) - cached, 0),
        "save_copy_bytes": int(plan.save_copy_bytes.sum()) if saves_copies else 0,
        "memory": {
            tier: {
                "max_bytes": int(memory[:, i].max()),
                "mean_bytes": int(memory[:, i].mean()),
                "capacity_bytes": int(capacity),
                "balance": _balance(memory[:, i]),
            }
            for i, (tier, capacity) in enumerate(
                zip(TIERS, plan.made_for.topology.capacity, strict=True)
            )
            if memory[:, i].max() > 0
        },
        "bytes_by_table": {
            name: {
                "kind": plan.table(name).kind,
                "optimizer": plan.table(name).optimizer,
                "stored_bytes": found.stored,
                "tier": found.tier,
                "cached_bytes": found.cached,
                "buffer_bytes_per_rank": found.buffers_per_rank,
                "output_bytes": int(plan.output_bytes(name)),
            }
            for name, found in sorted(by_table.items())
        },
    }


def byte_facts(known: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each figure in bytes: of all ranks, then of the fullest rank."""
    ranks = known["world_size"]
    found = [
        ("rows and optimizer state", f"{size_text(known['stored_bytes'])}, all ranks"),
        (
            "buffers of inputs and outputs",
            f"{size_text(known['buffer_bytes'])}, all ranks; "
            f"{size_text(known['buffer_bytes'] / ranks)} per rank (mean)",
        ),
    ]
    found.append(
        (
            "exchange of outputs",
            f"{size_text(known['output_bytes'])} a step, all ranks, forward and backward",
        )
    )
    if known["outside_hbm_bytes"]:
        found.append(
            (
                "outside of HBM (UVM, SSD)",
                f"{size_text(known['outside_hbm_bytes'])} of the rows and optimizer state, "
                f"{known['outside_hbm_share']:.0%}; {size_text(known['cached_bytes'])} of caches",
            )
        )
    if known["save_copy_bytes"]:
        found.append(
            (
                "copies for background saves, in ddr",
                f"{size_text(known['save_copy_bytes'])}, all ranks (checkpoint.background)",
            )
        )
    for tier, used in known["memory"].items():
        found.append(
            (
                f"{tier}, fullest rank",
                f"{size_text(used['max_bytes'])} of {size_text(used['capacity_bytes'])} after the "
                f"reserve ({used['max_bytes'] / max(used['capacity_bytes'], 1):.0%}); balance "
                f"{used['balance']:.3f}",
            )
        )
    return found


def bottleneck_of(plan: Plan) -> str:
    """One line on what limits the plan's speed."""
    time = plan.ranks.time_ms
    busiest = int(time.argmax())
    lookup = plan.ranks.lookup_ms[busiest]
    kind = "lookup" if lookup > time[busiest] / 2 else "comms"
    share = max(lookup, time[busiest] - lookup) / max(time[busiest], 1e-12)
    memory = plan.memory / np.maximum(plan.made_for.topology.capacity, 1.0)
    tier = int(memory.max(axis=0).argmax())
    full = f"{TIERS[tier]} of the fullest rank is {memory.max():.0%} full"
    if plan.bottleneck_ms <= 1.02 * plan.lower_bound_ms:
        return f"total work: within 2 % of the lower bound ({kind} {share:.0%}); {full}"
    return f"rank {busiest}, {share:.0%} {kind}; {full}"


def _balance(values: np.ndarray) -> float:
    return float(values.max() / max(values.mean(), 1e-12))
