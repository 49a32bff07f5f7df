"""FTRL-proximal against the paper's algorithm, one coordinate at a time."""

import math

import pytest
import torch

from infnet_dist.sharding.ftrl import FtrlProximal

STEPS = 30


def by_the_paper(gradients: list[float], alpha: float, beta: float, l1: float, l2: float) -> list:
    """The weight before each step and after the last; algorithm 1, "with per-coordinate rates"."""
    z = n = 0.0
    weights = []
    for gradient in [*gradients, None]:
        if abs(z) <= l1:
            w = 0.0
        else:
            w = -(z - math.copysign(1, z) * l1) / ((beta + math.sqrt(n)) / alpha + l2)
        weights.append(w)
        if gradient is not None:
            sigma = (math.sqrt(n + gradient**2) - math.sqrt(n)) / alpha
            z += gradient - sigma * w
            n += gradient**2
    return weights


@pytest.mark.parametrize(
    ("alpha", "beta", "l1", "l2"), [(0.1, 1.0, 0.0, 0.0), (0.5, 0.0, 0.0, 0.0), (0.3, 2, 0.4, 0.1)]
)
def test_equals_a_loop(alpha: float, beta: float, l1: float, l2: float) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(STEPS, 2, 3, generator=generator, dtype=torch.float64)
    gradients[:, 0, 1] = 0.0  # a feature that never occurs
    gradients[::2, 1, 1] = 0.0
    weight = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    optimizer = FtrlProximal([weight], alpha=alpha, beta=beta, l1=l1, l2=l2)
    found = [weight.detach().clone()]
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        found.append(weight.detach().clone())
    for place in [(i, j) for i in range(2) for j in range(3)]:
        loop = by_the_paper([g[place].item() for g in gradients], alpha, beta, l1, l2)
        assert [w[place].item() for w in found] == pytest.approx(loop, rel=1e-9, abs=1e-12)
    assert (torch.stack(found)[:, 0, 1] == 0).all()


def test_l1_makes_weights_exactly_zero() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = FtrlProximal([weight], l1=1.0)
    for _ in range(5):
        weight.grad = torch.tensor([0.1, 3.0])
        optimizer.step()
    assert weight[0] == 0 and weight[1] < 0


def test_parameters_must_begin_at_zero() -> None:
    with pytest.raises(ValueError, match="0 in the beginning"):
        FtrlProximal([torch.nn.Parameter(torch.ones(1))])
