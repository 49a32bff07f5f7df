"""The train meter: losses, rows and seconds between two log lines."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.distributed.context import WorkerContext


@dataclass
class IntervalStats:
    """Statistics of an interval over all ranks: mean losses per row, rows, this rank's seconds.

    Means are weighted by the rows' weights. A task's mean loss is over the rows whose label is
    known; NaN without any.
    """

    loss: float
    task_losses: list[float]
    rows: int
    wait_s: float
    seconds: float
    steps: int


class TrainMeter:
    """Sums since the last log line, kept on the device: adding to them doesn't synchronise."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self._sums = torch.zeros(1 + num_tasks, dtype=torch.float64, device=device)
        self._weight = torch.zeros(1, dtype=torch.float64, device=device)
        self._known_K = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self.reset()

    def reset(self) -> None:
        """Set the sums to zero and restart the clock."""
        for sums in (self._sums, self._weight, self._known_K):
            sums.zero_()
        self.steps = self.rows = 0
        self._wait_s = 0.0
        self._start = time.perf_counter()

    def exclude(self, seconds: float) -> None:
        """Exclude seconds in which no step was made."""
        self._start += seconds

    def restore(self, states: Sequence[Sequence[float]], context: WorkerContext) -> None:
        """Continue from the sums that a checkpoint of an earlier version holds, by rank.

        Each has steps, rows, losses, rows with a label by task and, if newer, the seconds that
        steps waited and all seconds. Rank 0 takes the sums of all ranks.
        """
        if not states:
            return
        self.steps = int(states[0][0])
        if not context.is_first:
            return
        _, rows, *sums = (math.fsum(values) for values in zip(*states, strict=True))
        first, end = len(self._sums), len(self._sums) + len(self._known_K)
        self.rows = int(rows)
        self._weight += rows
        self._sums += torch.tensor(sums[:first]).to(self._sums)
        self._known_K += torch.tensor(sums[first:end]).to(self._known_K)
        if len(sums) > end:
            self._wait_s, seconds = sums[end:]
            self.exclude(-seconds / len(states))

    def add(
        self, loss: torch.Tensor, task_loss_K: torch.Tensor, batch: RankingBatch, wait_s: float
    ) -> None:
        """Add a step of this rank; `loss` and `task_loss_K` are means over its batch size."""
        self._sums[0] += loss * len(batch.weights_B)
        self._sums[1:] += task_loss_K * len(batch.weights_B)
        self._weight += batch.weights_B.sum(dtype=torch.float64)
        self._known_K += (batch.weights_B.unsqueeze(1) * ~batch.labels_BK.isnan()).sum(0)
        self.rows += batch.num_rows
        self._wait_s += wait_s
        self.steps += 1

    def reduce(self, context: WorkerContext) -> IntervalStats:
        """The statistics over all ranks; every rank calls it."""
        local = torch.tensor([self.rows, self._wait_s], dtype=torch.float64)
        here = torch.cat([self._sums, self._weight, self._known_K, local.to(self._sums.device)])
        loss, *tasks, rows, wait_s = context.sum(here).tolist()
        sums, (weight, *known) = tasks[: len(self._known_K)], tasks[len(self._known_K) :]
        return IntervalStats(
            loss=loss / weight if weight else math.nan,
            task_losses=[s / n if n else math.nan for s, n in zip(sums, known, strict=True)],
            rows=round(rows),
            wait_s=wait_s / context.world_size,
            seconds=max(time.perf_counter() - self._start, 1e-9),
            steps=self.steps,
        )
