"""Whether a plan's bytes fit the workers that it is loaded on, with the copy that saves take."""

from infnet_dist.errors import PlanError
from infnet_dist.io.filesystem import size_text
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.topology import TIERS, Topology


def overfull(plan: Plan, topology: Topology, *, background_save: bool) -> list[str]:
    """Tiers of which the plan asks more than a worker has there; one line each.

    Args:
        plan: of as many workers as `topology`.
        topology: the workers.
        background_save: whether checkpoints are written from a copy in host memory.
    """
    lines, memory, capacity = (
        [],
        plan.memory_for(background_save=background_save),
        topology.capacity,
    )
    for i, tier in enumerate(TIERS):
        rank = int(memory[:, i].argmax())
        if memory[rank, i] <= capacity[i]:
            continue
        copy = plan.ranks.stored_bytes[rank] if tier == "ddr" and background_save else 0
        copied = (
            f" ({size_text(copy)} of it for the copy that a background save takes; "
            "checkpoint.background=false does without)"
            if copy
            else ""
        )
        lines.append(
            f"{tier} of rank {rank} needs {size_text(memory[rank, i])}{copied} but has "
            f"{size_text(capacity[i])} after the reserve"
        )
    return lines


def check_budget(plan: Plan, topology: Topology, *, background_save: bool) -> None:
    """Check that the plan fits `topology`, less the shares that the plan's own topology reserves.

    Raises:
        PlanError: names the memory, what it needs and what it has.
    """
    own = plan.made_for.topology
    reserves = {name: getattr(own, name) for name in ("reserve", "ddr_reserve", "worker_gib")}
    found = overfull(plan, topology.model_copy(update=reserves), background_save=background_save)
    if found:
        raise PlanError(
            f"the plan doesn't fit these workers: {'; '.join(found)}; use more workers, or plan "
            "smaller tables"
        )
