"""Sums between two log lines, and over a run: losses, rows and seconds."""

import time
from dataclasses import dataclass

import torch

from infnet_dist.batch import RankingBatch
from infnet_dist.context import WorkerContext


@dataclass
class Totals:
    """An interval over all ranks: mean losses per row, rows, and this rank's seconds."""

    loss: float
    task_losses: list[float]
    rows: int
    wait_s: float
    seconds: float
    steps: int


@dataclass
class Pace:
    """Sums of this process's intervals, for rates."""

    rows: int = 0
    seconds: float = 0.0
    steps: int = 0

    def add(self, totals: Totals) -> None:
        """Add an interval."""
        self.rows += totals.rows
        self.seconds += totals.seconds
        self.steps += totals.steps


class LogInterval:
    """Sums between two log lines, kept on the device: no wait for it within the interval."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self._sums = torch.zeros(1 + num_tasks, dtype=torch.float64, device=device)
        self.restart()

    def restart(self) -> None:
        """Forget the sums and start the clock."""
        self._sums.zero_()
        self.steps = self._rows = 0
        self._wait_s = 0.0
        self._start = time.perf_counter()

    def add(
        self, loss: torch.Tensor, task_loss_K: torch.Tensor, batch: RankingBatch, wait_s: float
    ) -> None:
        """Add a step of this rank; `loss` and `task_loss_K` are means over its batch size."""
        self._sums[0] += loss * len(batch.weights_B)
        self._sums[1:] += task_loss_K * len(batch.weights_B)
        self._rows += batch.num_rows
        self._wait_s += wait_s
        self.steps += 1

    def reduce(self, context: WorkerContext) -> Totals:
        """Sum over ranks; per-row means."""
        local = torch.tensor([self._rows, self._wait_s], dtype=torch.float64)
        *sums, rows, wait_s = context.sum(
            torch.cat([self._sums, local.to(self._sums.device)])
        ).tolist()
        return Totals(
            loss=sums[0] / rows,
            task_losses=[value / rows for value in sums[1:]],
            rows=round(rows),
            wait_s=wait_s / context.world_size,
            seconds=max(time.perf_counter() - self._start, 1e-9),
            steps=self.steps,
        )
