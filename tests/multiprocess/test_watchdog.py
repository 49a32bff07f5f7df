"""A rank that hangs ends the run soon, and is named."""

import os
import signal
import time
from pathlib import Path

import pytest

from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.distributed.watchdog import RankStatus, verdict_of
from infnet_dist.training.trainer import train
from tests.ranks import run_ranks
from tests.runs import make_config, make_tiny_set


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_set(tmp_path_factory.mktemp("data") / "tiny")


def hang(context: WorkerContext, *, config: Config, run_folder: Path, rank: int, how: str) -> dict:
    """Train; one rank hangs in step 5."""
    from infnet_dist.training.step import Step

    original = Step.forward

    def hanging(step_parts, batch):
        if step_parts._settings.step == 4 and context.rank == rank:
            if how == "sleeps":
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGSTOP)
        return original(step_parts, batch)

    Step.forward = hanging
    return train(context, config, run_folder=run_folder, verdict_file=run_folder / "words")


@pytest.mark.parametrize(
    ("rank", "how"),
    [
        (1, "sleeps"),
        (0, "is stopped"),
        pytest.param(0, "sleeps", marks=pytest.mark.matrix),
        pytest.param(1, "is stopped", marks=pytest.mark.matrix),
    ],
)
def test_the_rank_that_hangs_is_named(tiny_set: Path, tmp_path: Path, rank: int, how: str) -> None:
    config = make_config(tiny_set, tmp_path, scaling={"hang_timeout_s": 4, "num_workers": 2})
    with pytest.raises(RuntimeError, match=r"died \(exit code 75\)"):
        run_ranks(hang, 2, config=config, run_folder=tmp_path / "run", rank=rank, how=how)
    words = (tmp_path / "run" / "words").read_text()
    assert words.startswith(f"rank {rank} hangs in step 5"), words


def test_verdicts() -> None:
    before = {0: RankStatus(7, 3, 12, "training", 40), 1: RankStatus(7, 3, 12, "training", 39)}
    later = {rank: status._replace(reports=9) for rank, status in before.items()}
    assert verdict_of(before, later).startswith("rank 1 hangs in step 12 (training): the others")
    stopped = later | {0: before[0]}
    assert verdict_of(before, stopped) == (
        "rank 0 hangs in step 12: its process is stopped or cut off"
    )
    same = {rank: status._replace(reports=9, collectives=40) for rank, status in before.items()}
    assert verdict_of(before, same).startswith("all ranks hang in step 12 (training), at the same")
    reading = later | {1: RankStatus(9, 3, 11, "reading", 60)}
    assert verdict_of(before, reading).startswith("rank 1 hangs in step 11 (reading): the others")


def test_slow_is_not_hanging(tiny_set: Path, tmp_path: Path) -> None:
    config = make_config(
        tiny_set, tmp_path, training={"max_steps": 4}, scaling={"hang_timeout_s": 3}
    )
    summary = run_ranks(slow, 2, config=config, run_folder=tmp_path / "run")[0]
    assert summary["steps"] == 4


def slow(context: WorkerContext, *, config: Config, run_folder: Path) -> dict:
    from infnet_dist.training.step import Step

    original = Step.forward

    def waiting(step_parts, batch):
        time.sleep(1.5 * context.rank)
        return original(step_parts, batch)

    Step.forward = waiting
    return train(context, config, run_folder=run_folder)


def test_slow_metrics_are_no_hang(tiny_set: Path, tmp_path: Path) -> None:
    """Only rank 0 computes them, one after the other; the others wait for it."""
    changes = {"training": {"max_steps": 1}, "scaling": {"hang_timeout_s": 3}}
    config = make_config(tiny_set, tmp_path, **changes)
    summary = run_ranks(evaluate_slowly, 2, config=config, run_folder=tmp_path / "run")[0]
    assert "valid/auc/click" in summary["metrics"]


def evaluate_slowly(context: WorkerContext, *, config: Config, run_folder: Path) -> dict:
    import infnet_dist.evaluation.metrics as metrics

    original = metrics.auc

    def slow_auc(*args):
        time.sleep(1.5)
        return original(*args)

    metrics.auc = slow_auc
    return train(context, config, run_folder=run_folder)
