"""Latency and bandwidth of collectives between the workers at hand."""

import math
import statistics
from collections.abc import Callable

import torch
import torch.distributed as dist

from infnet_dist.distributed.context import WorkerContext
from infnet_dist.planning.topology import Topology
from infnet_dist.sharding.calibration.phases import now

_FEW_BYTES, _MANY_BYTES = 1_024, 2**24
_REPEATS = 25
_LEAST_MS = 1e-3


def measure_links(topology: Topology, context: WorkerContext) -> Topology:
    """The topology with measured bandwidths and latency; every rank calls it.

    What the workers at hand don't have keeps its figure: one worker no links, one node no links to
    others.
    """
    ranks, local = topology.world_size, topology.workers_per_node
    if ranks == 1:
        return topology

    def all_to_all_ms(size: int, group: dist.ProcessGroup | None = None) -> float:
        given = torch.zeros(size // 4, device=context.device)
        taken = torch.empty_like(given)
        return _typical_ms(lambda: dist.all_to_all_single(taken, given, group=group), context)

    latency = all_to_all_ms(_FEW_BYTES * ranks)
    many = _MANY_BYTES // (4 * ranks * local) * (4 * ranks * local)
    found = {"collective_ms": latency / math.log2(ranks)}
    within = topology.intra_node_gb_s
    if local > 1:
        nodes = [
            dist.new_group(list(range(node * local, (node + 1) * local)))
            for node in range(topology.num_nodes)
        ]
        ms = all_to_all_ms(many, nodes[context.rank // local])
        within = _gb_s(many * (local - 1) / local, ms - latency)
        found["intra_node_gb_s"] = within
    if topology.num_nodes > 1:
        ms = all_to_all_ms(many) - many * (local - 1) / ranks / (within * 1e6)
        found["inter_node_gb_s"] = _gb_s(many * (ranks - local) / ranks, ms - latency)
    data = torch.zeros(many // 4, device=context.device)
    ms = _typical_ms(lambda: dist.all_reduce(data), context)
    found["all_reduce_gb_s"] = _gb_s(2 * many * (ranks - 1) / ranks, ms - latency)
    return topology.model_copy(update=found)


def _typical_ms(collective: Callable[[], object], context: WorkerContext) -> float:
    """Milliseconds on the slowest rank, the lower quartile over repeats."""
    times = []
    for _ in range(_REPEATS):
        context.barrier()
        start = now(context)
        collective()
        times.append(1000 * (now(context) - start))
    return float(max(context.gather(statistics.quantiles(times, n=4)[0])))


def _gb_s(size: float, ms: float) -> float:
    return size / max(ms, _LEAST_MS) / 1e6
