"""The two executions of a step: the same losses and weights, and neither waits for the device."""

import traceback
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.distributed.types import ShardedModule

from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.sharding.build import build_sharded_model
from infnet_dist.training.step import EagerStep, PipelinedStep, Step, StepSettings
from infnet_dist.training.trainer import train
from tests.mixed import ROWS, SCHEMA, config_of, make_batch
from tests.ranks import run_ranks
from tests.run_files import assert_same, assert_same_but_for_a_line
from tests.runs import make_config, make_tiny_set, spoil, stop_one_rank_at_step

SETTINGS: dict[str, Any] = {
    "checkpoint": {"every_steps": 10, "keep_last": 9},
    "model": {"dropout": 0.2},
}
TRAINING = {"log_every_steps": 7, "eval_every_steps": 11, "max_skipped_steps": 1}


@pytest.fixture(scope="module")
def spoiled_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set with a row whose loss isn't finite."""
    folder = make_tiny_set(tmp_path_factory.mktemp("data") / "tiny")
    spoil(folder, 3e38)
    return folder


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_pipelined_runs_equal_eager_ones(spoiled_set: Path, tmp_path: Path, ranks: int) -> None:
    """With evaluations, checkpoints and a skipped batch in mid-epoch, a stop and a resume."""

    def config(pipeline: str) -> Config:
        training = TRAINING | {"pipeline": pipeline}
        return make_config(spoiled_set, tmp_path, training=training, **SETTINGS)

    eager, pipelined, stopped = (tmp_path / name for name in ("eager", "pipelined", "stopped"))
    summary = run_ranks(train, ranks, config=config("none"), run_folder=eager)[0]
    assert summary["skipped_steps"] == 1
    run_ranks(train, ranks, config=config("sparse_dist"), run_folder=pipelined)
    assert_same(pipelined, eager)
    settings = {"config": config("sparse_dist"), "run_folder": stopped}
    assert run_ranks(stop_one_rank_at_step, ranks, step=15, **settings)[0]["steps"] == 17
    run_ranks(train, ranks, **settings)
    assert_same_but_for_a_line(stopped, eager, step=17)


@pytest.mark.parametrize("kind", [EagerStep, PipelinedStep])
def test_a_step_never_waits_for_the_device(kind: type[Step]) -> None:
    for losses, modules, pipelined in run_ranks(steps_without_waiting, 2, kind=kind):
        assert len(losses) == 5
        assert pipelined == (modules if kind is PipelinedStep else 0)


def steps_without_waiting(
    context: WorkerContext, *, kind: type[Step]
) -> tuple[list[float], int, int]:
    """Losses; how many collections there are, and how many are pipelined."""
    types = {"sharding_types": ["row_wise"]}  # autograd of data-parallel tables is all C++
    sharded = build_sharded_model(config_of(overrides=dict.fromkeys(ROWS, types)), SCHEMA, context)
    assert sharded.masks_updates
    step, numbers = kind(sharded, context, seed=0), count()
    batches = iter([make_batch(100 * i + context.rank) for i in range(5)])
    over = step.over(batches, lambda: StepSettings(next(numbers)))
    results = [next(over)]  # TorchRec checks the first batch
    pipeline = getattr(step, "_pipeline", None)
    pipelined = len(pipeline._pipelined_modules) if pipeline else 0
    with Waits():
        results += over
    modules = [m for m in sharded.model.module.modules() if isinstance(m, ShardedModule)]
    return [result.loss.item() for result in results], len(modules), pipelined


class Waits(TorchDispatchMode):
    """Fails where our code calls an operation that would make the host wait for a GPU.

    fbgemm and TorchRec read counters and sizes that are on the CPU beside GPUs as well.
    """

    WAITING = (
        torch.ops.aten._local_scalar_dense,
        torch.ops.aten.is_nonzero,
        torch.ops.aten.equal,
        torch.ops.aten.nonzero,
        torch.ops.aten.masked_select,
        torch.ops.aten._unique2,
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in self.WAITING:
            assert not calls_itself(("infnet_dist", "tests"), ("fbgemm_gpu", "torchrec")), func
        return func(*args, **(kwargs or {}))


def calls_itself(ours: tuple[str, ...], libraries: tuple[str, ...]) -> bool:
    """Whether the code nearest to here is ours, not a library's."""
    for frame in reversed(traceback.extract_stack()[:-2]):
        parts = Path(frame.filename).parts
        if "site-packages" in parts and {*parts} & {*libraries}:
            return False
        if "site-packages" not in parts and {*parts} & {*ours}:
            return True
    return False


def test_what_waits_is_noticed() -> None:
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Waits():
        torch.ones(1).item()
