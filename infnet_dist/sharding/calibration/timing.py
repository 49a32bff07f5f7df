"""Times of collectives, and of a step's phases on a sharded collection, on the workers at hand.

They are lower quartiles over repeats, since other work on a machine only adds time, and those of
the slowest rank.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from infnet_dist.distributed.context import WorkerContext
from infnet_dist.planning.topology import Topology
from infnet_dist.sharding.calibration.cases import ShardedCase

_FEW_BYTES, _MANY_BYTES = 1_024, 2**24
_REPEATS = 25
_LEAST_MS = 1e-3
_WARM_UP = 3
_LEAST_STEPS, _MOST_STEPS = 5, 40
_CASE_S = 0.5  # aimed at


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
        start = _now(context)
        collective()
        times.append(1000 * (_now(context) - start))
    return float(max(context.gather(statistics.quantiles(times, n=4)[0])))


def _gb_s(size: float, ms: float) -> float:
    return size / max(ms, _LEAST_MS) / 1e6


class Phases(NamedTuple):
    """Milliseconds of a step, on the slowest rank.

    Attributes:
        lookup: forward.
        update: backward into the rows; of data-parallel tables all that follows a lookup.
        exchange: all else: ids, rows and gradients between workers, regrouping, Python.
    """

    lookup: float
    update: float
    exchange: float


def measure_phases(case: ShardedCase, context: WorkerContext) -> Phases:
    """Run steps for about `_CASE_S`; every rank calls it."""
    for batch in case.batches[:_WARM_UP]:
        start = time.perf_counter()
        _step(case, batch, context)
    longest = max(context.gather(time.perf_counter() - start))
    count = min(max(int(_CASE_S / longest), _LEAST_STEPS), _MOST_STEPS)
    found = [_step(case, case.batches[i % len(case.batches)], context) for i in range(count)]
    typical = [statistics.quantiles(values, n=4)[0] for values in zip(*found, strict=True)]
    return Phases(*(max(values) for values in zip(*context.gather(typical), strict=True)))


def _step(case: ShardedCase, batch: Any, context: WorkerContext) -> Phases:
    """One step: the calls of the collection's `forward`, and backward in two parts."""
    collection = case.collection
    context.barrier()
    start = _now(context)
    state = collection.create_context()
    received = collection.input_dist(state, batch).wait().wait()
    before_lookup = _now(context)
    rows = collection.compute(state, received)
    after_lookup = _now(context)
    leaves = [found.detach().requires_grad_() for found in rows]
    outputs = _tensors(collection.output_dist(state, leaves).wait())
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    before_update = _now(context)
    pairs = [
        (found, leaf.grad)
        for found, leaf in zip(rows, leaves, strict=True)
        if found.requires_grad and leaf.grad is not None
    ]
    if pairs:
        torch.autograd.backward([found for found, _ in pairs], [grad for _, grad in pairs])
    case.update_data_parallel()
    end = _now(context)
    lookup, update = after_lookup - before_lookup, end - before_update
    return Phases(1000 * lookup, 1000 * update, 1000 * (end - start - lookup - update))


def _tensors(found: Any) -> list[torch.Tensor]:
    """Rows by feature of a dict of JaggedTensors; or the one tensor of a KeyedTensor."""
    if isinstance(found, dict):
        return [jagged.values() for jagged in found.values()]
    return [found.values()]


def _now(context: WorkerContext) -> float:
    """Seconds, once the device is done with all it was given."""
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)
    return time.perf_counter()
