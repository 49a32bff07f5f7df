"""The multi-task loss against a loop, with weights, padding, and split over ranks."""

import math

import pytest
import torch

from infnet_dist.model.losses import MultiTaskLoss


def test_against_a_loop() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), torch.randint(0, 2, (5, 3)).float()
    weights = torch.tensor([1.0, 0.25, 3.0, 0.0, 0.0])
    loss, per_task = MultiTaskLoss([1.0, 0.5, 2.0])(logits, labels, weights)
    expected = [0.0, 0.0, 0.0]
    for b in range(3):  # rows 3 and 4 are padding
        for k in range(3):
            p = 1 / (1 + math.exp(-logits[b, k]))
            expected[k] -= weights[b].item() * math.log(p if labels[b, k] else 1 - p) / 5
    assert per_task.tolist() == pytest.approx(expected, abs=1e-6)
    by_hand = expected[0] + 0.5 * expected[1] + 2 * expected[2]
    assert loss.item() == pytest.approx(by_hand, abs=1e-6)


def test_each_real_row_weighs_the_same_whatever_rank_it_is_on() -> None:
    """Gradients averaged over 2 ranks: 4 + 1 real rows as 3 + 2."""
    torch.manual_seed(1)
    logits, labels = torch.randn(5, 1, requires_grad=True), torch.tensor([[1.0]] * 5)
    loss = MultiTaskLoss([1.0])

    def mean_gradient(first: int) -> torch.Tensor:
        total = torch.zeros(())
        for rows in (range(first), range(first, 5)):
            padded = torch.cat([logits[list(rows)], torch.zeros(4 - len(rows), 1)])
            target = torch.cat([labels[list(rows)], torch.zeros(4 - len(rows), 1)])
            weights = torch.tensor([1.0] * len(rows) + [0.0] * (4 - len(rows)))
            total = total + loss(padded, target, weights)[0] / 2
        return torch.autograd.grad(total, logits)[0]

    torch.testing.assert_close(mean_gradient(4), mean_gradient(3))


def test_an_unknown_label_leaves_its_task_out_of_the_row() -> None:
    torch.manual_seed(3)
    logits = torch.randn(6, 2, requires_grad=True)
    labels = torch.randint(0, 2, (6, 2)).float()
    labels[4, 1] = 2.5
    unknown = torch.zeros(6, 2, dtype=torch.bool)
    unknown[1, 0] = unknown[1, 1] = unknown[3, 1] = True
    loss = MultiTaskLoss([1.0, 0.5], [False, True])
    _, by_row = zip(*(loss(logits[[b]], labels[[b]], torch.ones(1)) for b in range(6)), strict=True)
    expected = (torch.stack(by_row) * ~unknown).sum(0) / 6
    value, per_task = loss(logits, labels.masked_fill(unknown, torch.nan), torch.ones(6))
    torch.testing.assert_close(per_task, expected)
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient == 0, unknown)


def test_huge_logits_stay_finite_and_padding_gets_no_gradient() -> None:
    logits = torch.tensor([[1e4], [-1e4], [3.0]], requires_grad=True)
    loss, _ = MultiTaskLoss([1.0])(logits, torch.ones(3, 1), torch.tensor([1.0, 1.0, 0.0]))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert logits.grad[2].item() == 0.0


def test_watch_time_is_the_weighted_logistic_loss() -> None:
    torch.manual_seed(2)
    logits, times = torch.randn(6, 2), 3 * torch.rand(6, 2)
    times[:, 0] = (times[:, 0] > 1.5).float()
    loss = MultiTaskLoss([1.0, 1.0], [False, True])
    _, per_task = loss(logits, times, torch.ones(6))
    expected = 0.0
    for z, t in zip(logits[:, 1].tolist(), times[:, 1].tolist(), strict=True):
        p, label = 1 / (1 + math.exp(-z)), t / (1 + t)
        expected -= (1 + t) * (label * math.log(p) + (1 - label) * math.log(1 - p)) / 6
    assert per_task[1].item() == pytest.approx(expected, rel=1e-5)
    alone = MultiTaskLoss([1.0])(logits[:, :1], times[:, :1], torch.ones(6))[1]
    assert per_task[0].item() == pytest.approx(alone.item())


def test_the_prediction_of_a_watch_time_is_its_mean() -> None:
    """The z of least loss for all rows together is the log of the mean time."""
    times = torch.tensor([[0.0], [0.2], [1.0], [7.0]])
    logit = torch.zeros((), requires_grad=True)
    loss = MultiTaskLoss([1.0], [True])
    optimizer = torch.optim.LBFGS([logit], max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(logit.expand(4, 1), times, torch.ones(4))[0]
        value.backward()
        return value

    optimizer.step(closure)
    assert math.exp(logit.item()) == pytest.approx(8.2 / 4, rel=1e-4)
