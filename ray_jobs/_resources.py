"""How many workers fit a Ray cluster, by the resources that each of them takes."""

from collections.abc import Mapping

from infnet_dist.config.run import ScalingConfig
from ray_jobs._ray_internals import free_resources_by_node


def workers_that_fit(scaling: ScalingConfig) -> int:
    """Workers for which nodes have room beside all that runs there; none on drained nodes."""
    needed = {name: each for name, each in _per_worker(scaling).items() if each}
    if not needed:
        return scaling.num_workers
    return sum(
        min(int(node.get(name, 0.0) // each) for name, each in needed.items())
        for node in free_resources_by_node()
    )


def missing_resources(
    have: Mapping[str, float], scaling: ScalingConfig, num_workers: int
) -> str | None:
    """The resource that the cluster, even when idle, has too little of for the workers."""
    for name, each in _per_worker(scaling).items():
        if num_workers * each > have.get(name, 0.0):
            return (
                f"{num_workers} workers x {each:g} {name} don't fit this Ray cluster, "
                f"which has {have.get(name, 0.0):g} {name}; lower scaling.num_workers or "
                f"scaling.resources_per_worker, or add nodes"
            )
    return None


def _per_worker(scaling: ScalingConfig) -> dict[str, float]:
    return dict(scaling.resources_per_worker) | ({"GPU": 1.0} if scaling.use_gpu else {})
