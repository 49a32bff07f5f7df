"""Rows and gradients exchanged in half the bytes, against the exchange in float32."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.sharding.build import build_sharded_model
from infnet_dist.training.step import EagerStep, StepSettings
from tests.mixed import ROWS, SCHEMA, config_of, make_batch
from tests.ranks import run_ranks

HALVES = {"fp16": "float16", "bf16": "bfloat16"}


def losses_and_floats(
    context: WorkerContext, *, config: Config
) -> tuple[list[float], dict[str, int]]:
    """Losses of 8 steps; elements that all-to-alls sent, by data type."""
    sharded = build_sharded_model(config, SCHEMA, context)
    sent: dict[str, int] = {}
    all_to_all = dist.all_to_all_single

    def counted(output: torch.Tensor, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        name = str(input.dtype).removeprefix("torch.")
        sent[name] = sent.get(name, 0) + input.numel()
        return all_to_all(output, input, *args, **kwargs)

    eager, losses = EagerStep(sharded, context, seed=0), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_to_all_single", counted)
        for step in range(8):
            batch = make_batch(100 * step + context.rank)
            loss = eager.train(batch, StepSettings(step)).loss
            losses.append(context.sum(loss).item() / context.world_size)
    return losses, sent


def config_with(**qcomms: dict[str, str]) -> Config:
    types = {"sharding_types": ["row_wise"]}
    return config_of(overrides=dict.fromkeys(ROWS, types), sharding=qcomms)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_halves_train_almost_alike(precision: str) -> None:
    settings = {"forward_precision": precision, "backward_precision": precision}
    whole, sent = run_ranks(losses_and_floats, 2, config=config_with())[0]
    halves = config_with(sequence_qcomms=settings, bag_qcomms=settings)
    rounded, sent_halves = run_ranks(losses_and_floats, 2, config=halves)[0]
    weights = 265  # of weighted bags, which stay float32
    assert set(sent) == {"int64", "float32"} and sent["float32"] > 10 * weights
    assert sent_halves == {
        "int64": sent["int64"],
        "float32": weights,
        HALVES[precision]: sent["float32"] - weights,
    }
    assert rounded != whole
    assert rounded == pytest.approx(whole, abs={"fp16": 1e-3, "bf16": 1e-2}[precision])


def test_each_kind_of_collection_has_its_own() -> None:
    settings = {"forward_precision": "bf16"}
    _, sent = run_ranks(losses_and_floats, 2, config=config_with(sequence_qcomms=settings))[0]
    assert {"float32", "bfloat16"} <= {*sent}, "gradients and bags are float32"


def test_one_worker_rounds_nothing() -> None:
    settings = {"forward_precision": "bf16", "backward_precision": "bf16"}
    plain = run_ranks(losses_and_floats, 1, config=config_with())
    assert plain == run_ranks(losses_and_floats, 1, config=config_with(sequence_qcomms=settings))
