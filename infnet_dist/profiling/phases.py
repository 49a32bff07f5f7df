"""The phases of a step, and the clock that measures them.

The time of a step is divided among its phases without gaps or overlaps: a moment belongs to the
innermost phase that is open, or to `OTHER`. So the phases sum up to the step.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

WAIT = "wait"
COPY = "copy"
INPUT_DIST = "input dist"
LOOKUP = "lookup"
OUTPUT_DIST = "output dist"
POOLING = "pooling"
TOKENS = "tokens"
TOWER = "tower forward"
BACKWARD = "backward"
OUTPUT_DIST_BACKWARD = "output dist backward"
TABLE_UPDATE = "table update"
ALL_REDUCE = "dense all-reduce"
OPTIMIZER = "optimizer"
FLAGS = "control flags"
METRICS = "metrics"
OTHER = "other"

# In the order of a step: what each of them contains.
PHASES = {
    WAIT: "for the next batch of the reader; on GPUs its copy to pinned memory",
    COPY: "of the batch to the device",
    INPUT_DIST: "ids to the ranks that have their rows",
    LOOKUP: "rows of this rank's shards",
    OUTPUT_DIST: "embeddings to the ranks that asked for them",
    POOLING: "embeddings to fields and padded sequences",
    TOKENS: "fields and sequences to tokens",
    TOWER: "tower, heads and loss",
    BACKWARD: "of tower, tokens and pooling; of data-parallel tables their all-reduce, too",
    OUTPUT_DIST_BACKWARD: "gradients of embeddings to the ranks that have the rows",
    TABLE_UPDATE: "backward of the lookup, which updates the rows",
    ALL_REDUCE: "gradients of the dense part, as far as the step waits for it",
    OPTIMIZER: "learning rates, random seed, optimizers of the dense part and data-parallel tables",
    FLAGS: "non-finite loss, save, stop: agreed among ranks, so it waits for the slowest one",
    METRICS: "losses and rows for the log",
    OTHER: "what is left",
}


class PhaseClock:
    """Measures the exclusive seconds of phases; one thread at a time may use it.

    On a GPU it waits for the device wherever a phase begins or ends, so that a phase has the time
    of its kernels. Nothing overlaps then, so that a step takes longer than without the clock.

    Args:
        device: on which the step computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: list[str] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    @property
    def phase(self) -> str:
        """The innermost open phase."""
        return self._open[-1] if self._open else OTHER

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self._charge()
        self._open.append(phase)

    def leave(self) -> None:
        """End the phase that began last."""
        self._charge()
        self._open.pop()

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """The enclosed code is of this phase."""
        self.enter(phase)
        try:
            yield
        finally:
            self.leave()

    def lap(self) -> Mapping[str, float]:
        """Seconds by phase since the last lap."""
        self._charge()
        seconds, self._seconds = self._seconds, defaultdict(float)
        return seconds

    def _charge(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._seconds[self.phase] += now - self._last
        self._last = now


class StepTimer:
    """The seconds of steps, without waiting for the device: on GPUs by events.

    Args:
        device: on which the steps compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []

    def mark(self) -> None:
        """A step ends here, and the next one begins."""
        if self._device.type != "cuda":
            self._times.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def seconds(self) -> list[float]:
        """Seconds between the marks."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            pairs = zip(self._events, self._events[1:], strict=False)
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [b - a for a, b in zip(self._times, self._times[1:], strict=False)]


def typical(steps: Sequence[Mapping[str, float]], cycle: int = 1) -> dict[str, float]:
    """Mean seconds per step by phase, over the middle half of the steps by their duration.

    Medians of phases don't sum up to a step; these means do, and an outlier doesn't change them.

    Args:
        steps: seconds by phase of each step.
        cycle: steps after which their work repeats (`training.accumulate_steps`); incomplete cycles
            at the end are left out.
    """
    cycles = [steps[i : i + cycle] for i in range(0, len(steps) - cycle + 1, cycle)]
    cycles.sort(key=lambda cycle: sum(sum(step.values()) for step in cycle))
    cut = len(cycles) // 4
    middle = [step for cycle in cycles[cut : len(cycles) - cut] for step in cycle]
    names = {name for step in middle for name in step}
    return {name: sum(step.get(name, 0.0) for step in middle) / len(middle) for name in names}
