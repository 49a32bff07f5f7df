"""The steps of a benchmark: kind after kind, on one stream of batches."""

import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from itertools import count, islice
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function

from infnet_dist.batch import RankingBatch
from infnet_dist.data.reader import Reader
from infnet_dist.errors import UserError
from infnet_dist.profiling.counts import StepCounts
from infnet_dist.profiling.instrument import clocked
from infnet_dist.profiling.phases import PhaseClock, StepTimer, typical
from infnet_dist.sharding.optimizers import learning_rate_factors
from infnet_dist.training.meters import TrainMeter
from infnet_dist.training.setup import TrainingSetup
from infnet_dist.training.step import (
    EagerStep,
    PipelinedStep,
    Step,
    StepResult,
    StepSettings,
    make_step,
)

_AHEAD = 2  # batches that a pipelined step reads ahead: its last steps have less to do
_COUNTED_STEPS = 10  # at most
_TRACED_STEPS = 3


class BenchmarkSteps:
    """Trains without evaluations, log lines and checkpoints; every rank makes the same calls.

    Args:
        setup: the run.
        steps: to measure, of each kind.
        warmup: steps before them, at least one.
    """

    def __init__(self, setup: TrainingSetup, *, steps: int, warmup: int) -> None:
        self._setup, self._steps, self._warmup = setup, steps, warmup
        self._device = setup.context.device
        reader = setup.reader("train", shuffle=True)
        training = setup.config.training
        self._total_steps = training.max_steps or training.epochs * reader.num_steps()
        self._batches = _endless(reader)
        self._meter = TrainMeter(len(setup.schema.tasks), self._device)
        self._numbers = count()

    def eager_s(self) -> float:
        """Seconds of an eager step."""
        with closing(self._eager()) as step:
            return self._seconds(step)

    def phases(self) -> tuple[dict[str, float], StepCounts]:
        """Seconds of an eager step by phase, and the counts of some further steps."""
        clock, laps = PhaseClock(self._device), list[Mapping[str, float]]()
        with closing(self._eager()) as step, clocked(step, self._setup.sharded, clock):
            self._measure(step, lambda: laps.append(clock.lap()))
            with StepCounts(clock) as counts:
                for _ in self._train(step, min(self._steps, _COUNTED_STEPS)):
                    counts.steps += 1
        return typical(laps[1:], self._cycle), counts

    def configured_s(self) -> tuple[float, bool]:
        """Seconds of a step as `training.pipeline` asks for it, and whether it is overlapped."""
        with closing(make_step(self._setup)) as step:
            return self._seconds(step), isinstance(step, PipelinedStep)

    def trace(self) -> str | None:
        """Some configured steps of rank 0 in Chrome's format, as JSON; None on other ranks."""
        with closing(make_step(self._setup)) as step:
            taken = self._train(step, self._warmup + _TRACED_STEPS + _AHEAD)
            for _ in islice(taken, self._warmup):
                pass
            recorded = self._recorded(taken) if self._setup.context.is_first else None
            for _ in taken:
                pass
        return recorded

    def close(self) -> None:
        """End the reader."""
        self._batches.close()

    @property
    def _cycle(self) -> int:
        return self._setup.config.training.accumulate_steps

    def _eager(self) -> EagerStep:
        setup = self._setup
        return EagerStep(setup.sharded, setup.context, seed=setup.config.run.seed)

    def _seconds(self, step: Step) -> float:
        timer = StepTimer(self._device)
        self._measure(step, timer.mark)
        return typical([{"step": seconds} for seconds in timer.seconds()], self._cycle)["step"]

    def _measure(self, step: Step, mark: Callable[[], None]) -> None:
        """Train, and call `mark` where a measured step begins or ends."""
        last = self._warmup + self._steps
        for number, _ in enumerate(self._train(step, last + _AHEAD), 1):
            if self._warmup <= number <= last:
                mark()

    def _train(self, step: Step, steps: int) -> Iterator[StepResult]:
        """Train; as in training, the flags of a step are read after the next one."""
        unsettled: StepResult | None = None
        for result in step.over(islice(self._batches, steps), self._step_settings):
            if unsettled is not None:
                self._settle(unsettled)
            unsettled = result
            yield result
        if unsettled is not None:
            self._settle(unsettled)

    def _step_settings(self) -> StepSettings:
        step = next(self._numbers)
        scheduled = min(step, self._total_steps - 1)
        factors = learning_rate_factors(self._setup.config, scheduled, self._total_steps)
        return StepSettings(step, factors)

    def _settle(self, result: StepResult) -> None:
        if result.flags.read().nonfinite_loss:
            raise UserError(
                "a loss isn't finite, and such steps are no measure of others; train the run, "
                "which names the cause"
            )
        self._meter.add(result.loss, result.output.task_loss_K, result.batch, result.wait_s)

    def _recorded(self, taken: Iterator[StepResult]) -> str:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as profiler:
            for number in range(_TRACED_STEPS):
                with record_function(f"step {number}"):
                    next(taken)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            return path.read_text()


def _endless(reader: Reader) -> Generator[RankingBatch, None, None]:
    """The batches of this rank, epoch after epoch."""
    for epoch in count():
        with closing(reader.batches(epoch)) as batches:  # type: ignore[type-var]
            yield from batches
