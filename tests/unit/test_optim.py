"""Learning-rate schedules, by hand."""

import pytest

from infnet_dist.config.run import ScheduleConfig
from infnet_dist.sharding.optimizers import learning_rate_factor


def factors(schedule: ScheduleConfig, steps: int) -> list[float]:
    return [learning_rate_factor(schedule, step, steps) for step in range(steps)]


def test_constant_by_default() -> None:
    assert factors(ScheduleConfig(), 5) == [1.0] * 5


def test_warm_up_reaches_one_after_its_steps_and_never_starts_at_zero() -> None:
    assert factors(ScheduleConfig(warmup_steps=4), 7) == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1, 1]
    )


def test_decay_falls_linearly_over_the_last_share() -> None:
    got = factors(ScheduleConfig(decay_share=0.4), 10)
    assert got == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])


def test_both() -> None:
    got = factors(ScheduleConfig(warmup_steps=1, decay_share=1.0), 4)
    assert got == pytest.approx([0.5, 0.75, 0.5, 0.25])
