"""Times of a step's phases on a sharded collection, without a tower."""

import statistics
import time
from typing import Any, NamedTuple

import torch

from infnet_dist.distributed.context import WorkerContext
from infnet_dist.sharding.calibration.cases import ShardedCase

_WARM_UP = 3
_LEAST_STEPS, _MOST_STEPS = 5, 40
_CASE_S = 1.0  # aimed at


class Phases(NamedTuple):
    """Milliseconds of a step, on the slowest rank.

    They are lower quartiles over steps: other work on a machine only adds time.

    Attributes:
        lookup: forward.
        update: backward into the rows; of data-parallel tables all that follows a lookup.
        exchange: all else: ids, rows and gradients between workers, regrouping, Python.
    """

    lookup: float
    update: float
    exchange: float


def measure_phases(case: ShardedCase, context: WorkerContext) -> Phases:
    """Run steps for about a second; every rank calls it."""
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
    start = now(context)
    state = collection.create_context()
    received = collection.input_dist(state, batch).wait().wait()
    before_lookup = now(context)
    rows = collection.compute(state, received)
    after_lookup = now(context)
    leaves = [found.detach().requires_grad_() for found in rows]
    outputs = _tensors(collection.output_dist(state, leaves).wait())
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    before_update = now(context)
    pairs = [
        (found, leaf.grad)
        for found, leaf in zip(rows, leaves, strict=True)
        if found.requires_grad and leaf.grad is not None
    ]
    if pairs:
        torch.autograd.backward([found for found, _ in pairs], [grad for _, grad in pairs])
    case.update_data_parallel()
    end = now(context)
    lookup, update = after_lookup - before_lookup, end - before_update
    return Phases(1000 * lookup, 1000 * update, 1000 * (end - start - lookup - update))


def _tensors(found: Any) -> list[torch.Tensor]:
    """Rows by feature of a dict of JaggedTensors; or the one tensor of a KeyedTensor."""
    if isinstance(found, dict):
        return [jagged.values() for jagged in found.values()]
    return [found.values()]


def now(context: WorkerContext) -> float:
    """Seconds, once the device is done with all it was given."""
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)
    return time.perf_counter()
