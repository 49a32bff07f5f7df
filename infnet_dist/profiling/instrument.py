"""Puts a clock into a step from outside, for the time of a benchmark: other steps have no trace.

Methods of the step's parts are replaced by ones that tell the clock their phase. In the backward
pass, the autograd nodes that lookups and their exchanges left in the forward pass do it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torchrec.distributed.types import LazyAwaitable, ShardedModule

from infnet_dist.batch import RankingBatch
from infnet_dist.distributed.control import PendingFlags
from infnet_dist.model.train_model import TrainModel
from infnet_dist.profiling import phases
from infnet_dist.profiling.phases import PhaseClock
from infnet_dist.sharding.build import ShardedModel
from infnet_dist.training.meters import TrainMeter
from infnet_dist.training.step import EagerStep

_Nodes = set[torch.autograd.graph.Node]


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Callable[..., Any]], Any]) -> Iterator[None]:
    """Replace a method of an object, or of a class, by `make(method)`; undone at the end."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, make(before))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def clocked(step: EagerStep, sharded: ShardedModel, clock: PhaseClock) -> Iterator[None]:
    """The clock measures the phases of this step."""
    train_model = sharded.model.module
    assert isinstance(train_model, TrainModel)
    dense, update = train_model.model.dense, sharded.dense_update
    places: list[tuple[Any, str, str]] = [
        (RankingBatch, "to", phases.COPY),
        (dense, "forward", phases.TOWER),
        (dense.tokens, "forward", phases.TOKENS),
        (train_model.loss, "forward", phases.TOWER),
        (step, "backward", phases.BACKWARD),
        (update, "_begin_average", phases.ALL_REDUCE),
        (update, "_end_average", phases.ALL_REDUCE),
        (step, "zero_grad", phases.OPTIMIZER),
        (step, "step", phases.OPTIMIZER),
        (PendingFlags, "__init__", phases.FLAGS),
        (PendingFlags, "nonfinite_loss", phases.FLAGS),
        (PendingFlags, "read", phases.FLAGS),
        (TrainMeter, "add", phases.METRICS),
    ]
    with ExitStack() as stack:
        for owner, name, phase in places:
            stack.enter_context(replaced(owner, name, _timed(clock, phase)))
        stack.enter_context(replaced(step, "_timed", _timed_items(clock)))
        stack.enter_context(_clocked_tables(train_model, clock))
        yield


@contextmanager
def _clocked_tables(train_model: TrainModel, clock: PhaseClock) -> Iterator[None]:
    """The clock measures the sharded collections, forward and backward."""
    of_lookups: _Nodes = set()  # autograd nodes of this step

    def looked_up(lookup: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def timed(*args: Any, **kwargs: Any) -> torch.Tensor:
            with clock.within(phases.LOOKUP):
                rows = lookup(*args, **kwargs)
            of_lookups.update(_time_backward([rows], of_lookups, clock, phases.TABLE_UPDATE))
            return rows

        return timed

    def pooled(pooling: Callable[..., Any]) -> Callable[..., Any]:
        def timed(jagged: list[Any], pooled: list[Any], *features: Any) -> Any:
            with clock.within(phases.OUTPUT_DIST):
                jagged, pooled = [[_waited(x) for x in found] for found in (jagged, pooled)]
            rows = [one.values() for found in jagged for one in found.values()]
            rows += [found.values() for found in pooled]
            _time_backward(rows, of_lookups, clock, phases.OUTPUT_DIST_BACKWARD)
            of_lookups.clear()
            with clock.within(phases.POOLING):
                return pooling(jagged, pooled, *features)

        return timed

    with ExitStack() as stack:
        for module in _sharded_modules(train_model):
            # A forward is the exchange of ids, and this method.
            stack.enter_context(replaced(module, "forward", _timed(clock, phases.INPUT_DIST)))
            timed = _timed(clock, phases.OUTPUT_DIST)
            stack.enter_context(replaced(module, "compute_and_output_dist", timed))
            for lookup in module._lookups:
                stack.enter_context(replaced(lookup, "forward", looked_up))
        pooling = train_model.model.sparse.pooling
        stack.enter_context(replaced(pooling, "forward", pooled))
        yield


def _sharded_modules(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, ShardedModule)]


def _timed(clock: PhaseClock, phase: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a method of this phase."""

    def make(method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with clock.within(phase):
                return method(*args, **kwargs)

        return timed

    return make


def _timed_items(clock: PhaseClock) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a method that returns an iterator, whose items are waited for in `WAIT`."""

    def make(method: Callable[..., Iterator[RankingBatch]]) -> Callable[..., Any]:
        def timed(*args: Any) -> Iterator[RankingBatch]:
            items = method(*args)
            while True:
                with clock.within(phases.WAIT):
                    item = next(items, None)
                if item is None:
                    return
                yield item

        return timed

    return make


def _waited(value: Any) -> Any:
    """What a collection returned, once it has arrived."""
    return value.wait() if isinstance(value, LazyAwaitable) else value


def _time_backward(
    outputs: Iterable[torch.Tensor], known: _Nodes, clock: PhaseClock, phase: str
) -> _Nodes:
    """Have the autograd nodes that made `outputs` belong to `phase`, up to `known` ones.

    Returns:
        These nodes. Those that accumulate gradients aren't among them: they outlive the step.
    """
    found: _Nodes = set()
    stack = [output.grad_fn for output in outputs]
    while stack:
        node = stack.pop()
        if node is None or node in found or node in known or hasattr(node, "variable"):
            continue
        found.add(node)
        node.register_prehook(lambda *_: clock.enter(phase))
        node.register_hook(lambda *_: clock.leave())
        stack += [following for following, _ in node.next_functions]
    return found
