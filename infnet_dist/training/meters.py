"""Sums between two log lines, and over a run: losses, rows and seconds."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.distributed.context import WorkerContext


@dataclass
class IntervalStats:
    """An interval over all ranks: mean losses per row, rows, and this rank's seconds.

    A task's mean is over the rows whose label is known, NaN without any.
    """

    loss: float
    task_losses: list[float]
    rows: int
    wait_s: float
    seconds: float
    steps: int


@dataclass
class Throughput:
    """Sums of the run's intervals, over all attempts, for rates.

    `seconds` are those of this process; of steps that were lost with an attempt none count.
    """

    rows: int = 0
    seconds: float = 0.0
    steps: int = 0

    def add(self, totals: IntervalStats) -> None:
        """Add an interval."""
        self.rows += totals.rows
        self.seconds += totals.seconds
        self.steps += totals.steps


class TrainMeter:
    """Sums between two log lines, kept on the device: no wait for it within the interval."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self._sums = torch.zeros(1 + num_tasks, dtype=torch.float64, device=device)
        self._known_K = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self.reset()

    def reset(self) -> None:
        """Forget the sums and start the clock."""
        self._sums.zero_()
        self._known_K.zero_()
        self.steps = self.rows = 0
        self._wait_s = 0.0
        self._start = time.perf_counter()

    def exclude(self, seconds: float) -> None:
        """Leave out time in which no step was made."""
        self._start += seconds

    def state(self) -> tuple[float, ...]:
        """This rank's sums, exactly, for a checkpoint.

        Steps, rows, losses, rows known by task, seconds that steps waited, seconds.
        """
        seconds = time.perf_counter() - self._start
        sums = (*self._sums.tolist(), *self._known_K.tolist())
        return (self.steps, self.rows, *sums, self._wait_s, seconds)

    def restore(self, states: Sequence[Sequence[float]], context: WorkerContext) -> None:
        """Continue from the `state` of each rank; rank 0 takes all sums if they were more or fewer.

        Seconds are the mean of all ranks; states of earlier versions lack them.
        """
        if not states:
            return
        end = 2 + len(self._sums) + len(self._known_K)
        if len(states[0]) > end:
            waits, seconds = zip(*(state[end:] for state in states), strict=True)
            self._wait_s = sum(waits) / len(states)
            self.exclude(-sum(seconds) / len(states))
            states = [state[:end] for state in states]
        if len(states) == context.world_size:
            own = list(states[context.rank])
        else:
            own = [sum(s) if context.is_first else 0.0 for s in zip(*states, strict=True)]
        self.steps, self.rows = int(states[0][0]), int(own[1])
        tensor = torch.tensor(own[2:], dtype=torch.float64, device=self._sums.device)
        self._sums.copy_(tensor[: len(self._sums)])
        self._known_K.copy_(tensor[len(self._sums) :])

    def add(
        self, loss: torch.Tensor, task_loss_K: torch.Tensor, batch: RankingBatch, wait_s: float
    ) -> None:
        """Add a step of this rank; `loss` and `task_loss_K` are means over its batch size."""
        self._sums[0] += loss * len(batch.weights_B)
        self._sums[1:] += task_loss_K * len(batch.weights_B)
        self._known_K += (batch.weights_B.unsqueeze(1) * ~batch.labels_BK.isnan()).sum(0)
        self.rows += batch.num_rows
        self._wait_s += wait_s
        self.steps += 1

    def reduce(self, context: WorkerContext) -> IntervalStats:
        """Sum over ranks; per-row means."""
        local = torch.tensor([self.rows, self._wait_s], dtype=torch.float64)
        here = torch.cat([self._sums, self._known_K, local.to(self._sums.device)])
        loss, *tasks, rows, wait_s = context.sum(here).tolist()
        sums, known = tasks[: len(self._known_K)], tasks[len(self._known_K) :]
        return IntervalStats(
            loss=loss / rows,
            task_losses=[s / n if n else math.nan for s, n in zip(sums, known, strict=True)],
            rows=round(rows),
            wait_s=wait_s / context.world_size,
            seconds=max(time.perf_counter() - self._start, 1e-9),
            steps=self.steps,
        )
