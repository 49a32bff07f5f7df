"""The throughput of whole steps that follows from a plan: lookups, dense part, its all-reduce."""

from typing import NamedTuple

from infnet_dist.planning.plan import Plan
from infnet_dist.planning.topology import Topology

_COLLECTIVES = 2  # of a step beside the exchanges: the dense part's gradients, the control flags


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
    """Milliseconds of a step's parts, one after the other."""

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
    all_reduce = topology.all_reduce_ms(4 * dense.parameters) + _COLLECTIVES * topology.latency_ms
    return StepEstimate(plan.bottleneck_ms, dense.ms * sharing, all_reduce * slowdown)


def assumptions(topology: Topology) -> list[str]:
    """What the estimates of a topology rest on, one line each."""
    name, measured = topology.name, topology.measured
    if measured is None:
        return [f"{name}: bandwidths and formulas, not measured (infnet plan calibrate)"]
    workers = measured.num_nodes * measured.workers_per_node
    lines = [
        f"{name}: costs measured on {workers} workers of {measured.num_nodes} nodes "
        f"({', '.join(measured.made_with.values())})"
    ]
    if topology.num_nodes > 1 and measured.num_nodes == 1:
        lines.append(
            f"{name}: links between nodes weren't measured: "
            f"{topology.inter_node_gb_s:g} GB/s a worker"
        )
    if topology.world_size > workers:
        lines.append(
            f"{name}: a collective takes {topology.collective_ms:.3g} ms x log2(workers), "
            "whatever its bytes; those come on top"
        )
    if (sharing := measured.sharing(topology.workers_per_node)) > 1:
        lines.append(
            f"{name}: {topology.workers_per_node} workers share {measured.cores} cores, all times "
            f"x {sharing / measured.sharing(measured.workers_per_node):.3g}"
        )
    return lines
