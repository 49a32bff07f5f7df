"""The throughput of whole steps that follows from a plan: lookups, dense part, its all-reduce."""

import math
from typing import NamedTuple

from infnet_dist.planning.plan import Plan
from infnet_dist.planning.topology import Topology

_BUCKET_BYTES = 25 * 2**20  # of DistributedDataParallel, each all-reduced by itself


class DensePart(NamedTuple):
    """A model without its tables.

    Attributes:
        ms: milliseconds of a step on one worker that has a core or GPU of its own: forward,
            backward and optimizer.
        parameters: float32, all-reduced in each step.
    """

    ms: float
    parameters: int = 0


class StepEstimate(NamedTuple):
    """Milliseconds of a step's parts, one after the other; a run may overlap some of them."""

    lookups_ms: float
    dense_ms: float
    all_reduce_ms: float

    @property
    def ms(self) -> float:
        """Milliseconds of the step."""
        return sum(self)


def estimate_step(plan: Plan, dense: DensePart) -> StepEstimate:
    """The step of a model whose tables are placed by `plan`."""
    topology = plan.made_for.topology
    measured, workers = topology.measured, topology.workers_per_node
    sharing = measured.sharing(workers) if measured else 1.0
    slowdown = measured.slowdown(workers) if measured else 1.0
    size = 4 * dense.parameters
    buckets = math.ceil(size / _BUCKET_BYTES)
    all_reduce = topology.all_reduce_ms(size) + buckets * topology.latency_ms
    return StepEstimate(plan.bottleneck_ms, dense.ms * sharing, all_reduce * slowdown)


def assumptions(topology: Topology) -> list[str]:
    """What the estimates of a topology rest on, one line each."""
    measured = topology.measured
    if measured is None:
        return [f"{topology.name}: bandwidths and formulas, not measured (infnet plan calibrate)"]
    made_with = measured.made_with
    lines = [
        f"{topology.name}: measured on {measured.num_nodes * measured.workers_per_node} workers of "
        f"{measured.num_nodes} nodes ({', '.join(made_with.values())})"
    ]
    if topology.num_nodes > 1 and measured.num_nodes == 1:
        lines.append(
            f"{topology.name}: links between nodes weren't measured: "
            f"{topology.inter_node_gb_s:g} GB/s a worker"
        )
    if topology.world_size > measured.num_nodes * measured.workers_per_node:
        lines.append(
            f"{topology.name}: a collective takes {topology.collective_ms:.3g} ms x log2(workers), "
            "whatever its bytes"
        )
    return lines
