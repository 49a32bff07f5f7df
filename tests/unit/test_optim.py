"""Learning-rate schedules, by hand; the step count of kernels."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from infnet_dist.config.run import ScheduleConfig
from infnet_dist.sharding.optimizers import learning_rate_factor, set_step


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


def test_overrides_of_a_part() -> None:
    schedule = ScheduleConfig.model_validate(
        {"warmup_steps": 4, "dense": {"warmup_steps": 0, "decay_share": 0.4}}
    )
    assert schedule.of("sparse") == ScheduleConfig(warmup_steps=4)
    assert schedule.of("dense") == ScheduleConfig(decay_share=0.4)


@pytest.mark.parametrize(
    ("kind", "counts"), [(EmbOptimType.ADAM, True), (EmbOptimType.EXACT_ROWWISE_ADAGRAD, False)]
)
def test_kernels_that_count_steps_get_the_count(kind: EmbOptimType, counts: bool) -> None:
    """fbgemm counts forward passes of evaluations too, and its count isn't in checkpoints."""
    kernel = SimpleNamespace(optimizer=kind, iter=torch.tensor([9]), iter_cpu=torch.tensor([9]))
    fused: Any = KeyedOptimizer({}, {}, [])
    fused._emb_module = kernel
    set_step(CombinedOptimizer([CombinedOptimizer([fused])]), 5)
    expected = 5 if counts else 9
    assert (kernel.iter.item(), kernel.iter_cpu.item()) == (expected, expected)
