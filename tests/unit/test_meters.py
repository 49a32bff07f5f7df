"""Means between two log lines: per row, and per row whose label is known."""

import math

import pytest
import torch

from infnet_dist.model.losses import MultiTaskLoss
from infnet_dist.training.meters import TrainMeter
from tests.unit.test_reader import make_reader, make_set


class OneRank:
    """The sum over a world of one process."""

    world_size, rank, is_first = 1, 0, True

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


def test_a_task_s_mean_is_over_the_rows_whose_label_is_known(tmp_path) -> None:
    manifest = make_set(tmp_path / "s", 19, rows_per_part=50, row_group_rows=9)
    reader = make_reader(tmp_path / "s", manifest)
    meter = TrainMeter(2, torch.device("cpu"))
    loss = MultiTaskLoss([1.0, 1.0])
    torch.manual_seed(0)
    sums, known = torch.zeros(2), torch.zeros(2)
    for batch in reader.batches():  # 8, 8 and 3 rows
        logits = torch.randn(8, 2)
        batch.labels_BK = torch.randint(0, 2, (8, 2)).float()
        batch.labels_BK[torch.rand(8, 2) < 0.4] = torch.nan
        total, per_task = loss(logits, batch.labels_BK, batch.weights_B)
        meter.add(total, per_task, batch, wait_s=0.0)
        for b in range(batch.num_rows):
            for k in range(2):
                if not batch.labels_BK[b, k].isnan():
                    sign = 2 * batch.labels_BK[b, k] - 1
                    sums[k] += torch.log1p(torch.exp(-sign * logits[b, k]))
                    known[k] += 1
    stats = meter.reduce(OneRank())
    assert stats.rows == 19
    assert stats.task_losses == pytest.approx((sums / known).tolist(), rel=1e-5)
    assert stats.loss == pytest.approx(sums.sum().item() / 19, rel=1e-5)


def test_rows_count_by_their_weights(tmp_path) -> None:
    manifest = make_set(tmp_path / "s", 19, rows_per_part=50, row_group_rows=9)
    meter, loss = TrainMeter(1, torch.device("cpu")), MultiTaskLoss([2.0])
    torch.manual_seed(0)
    total, known, every = 0.0, 0.0, 0.0
    for batch in make_reader(tmp_path / "s", manifest).batches():
        logits = torch.randn(8, 1)
        batch.weights_B *= torch.rand(8)
        batch.labels_BK[2] = torch.nan
        meter.add(*loss(logits, batch.labels_BK, batch.weights_B), batch, wait_s=0.0)
        for weight, label, logit in zip(batch.weights_B, batch.labels_BK, logits, strict=True):
            every += weight.item()
            if not label.isnan():
                total += (weight * torch.log1p(torch.exp((1 - 2 * label) * logit))).item()
                known += weight.item()
    stats = meter.reduce(OneRank())
    assert stats.rows == 19
    assert stats.task_losses == pytest.approx([total / known], rel=1e-5)
    assert stats.loss == pytest.approx(2 * total / every, rel=1e-5)
    meter.reset()
    batch.weights_B.zero_()
    meter.add(*loss(logits, batch.labels_BK, batch.weights_B), batch, wait_s=0.0)
    assert math.isnan(meter.reduce(OneRank()).loss)


def test_a_task_without_a_known_label_has_no_mean(tmp_path) -> None:
    manifest = make_set(tmp_path / "s", 8, rows_per_part=50, row_group_rows=9)
    reader = make_reader(tmp_path / "s", manifest)
    meter = TrainMeter(1, torch.device("cpu"))
    (batch,) = reader.batches()
    batch.labels_BK = torch.full_like(batch.labels_BK, torch.nan)
    total, per_task = MultiTaskLoss([1.0])(torch.zeros(8, 1), batch.labels_BK, batch.weights_B)
    meter.add(total, per_task, batch, wait_s=0.0)
    stats = meter.reduce(OneRank())
    assert math.isnan(stats.task_losses[0])
    assert stats.loss == 0


def test_sums_in_a_checkpoint_of_an_earlier_version() -> None:
    """By rank: steps, rows, losses, known rows and, in later ones, seconds waited and seconds."""
    state = (90.0, 900.0, 450.0, 90.0, 180.0, 3.0, 30.0)
    for states in ([state], [state, state], [state[:5]]):
        meter = TrainMeter(1, torch.device("cpu"))
        meter.restore(states, OneRank())
        stats = meter.reduce(OneRank())
        assert (stats.steps, stats.rows) == (90, 900 * len(states))
        assert (stats.loss, stats.task_losses) == (0.5, [0.5])
        assert stats.seconds == pytest.approx(30.0 if len(states[0]) > 5 else 0.0, abs=1.0)
