"""Resuming: the same losses, weights and log as without the interruption; each step once."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from infnet_dist import checkpoint
from infnet_dist.checkpoint.manifest import dump_manifest
from infnet_dist.config.run import Config
from infnet_dist.data.epoch_order import epoch_order
from infnet_dist.data.manifest import Ingested, read_manifest, write_manifest
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError, DataError, UserError
from infnet_dist.io.filesystem import Folder
from infnet_dist.model import build
from infnet_dist.model.dense import DenseArch
from infnet_dist.training import run_lock
from infnet_dist.training.evaluation import evaluate_checkpoint
from infnet_dist.training.run_lock import held_by_workers
from infnet_dist.training.trainer import train
from tests.hostile_parquet import forget_fingerprints
from tests.metric_logs import assert_same_log
from tests.ranks import run_ranks
from tests.run_files import assert_same, assert_same_but_for_a_line, records, tensors
from tests.runs import make_config, make_tiny_set, spoil, stop_one_rank_at_step
from tests.wandb_file import read_history

# Dropout, so that random numbers matter; lines of the log that don't meet checkpoints.
SETTINGS = {
    "training": {"log_every_steps": 7},
    "checkpoint": {"every_steps": 10, "keep_last": 9},
    "model": {"dropout": 0.2},
}


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_set(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def whole_of_three(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 3 ranks that nothing disturbed.

    Sums over 2 ranks are the same in any order; with 3 the order shows.
    """
    folder = tmp_path_factory.mktemp("runs")
    run_ranks(train, 3, config=config_of(tiny_set, folder), run_folder=folder / "whole")
    return folder / "whole"


@pytest.fixture(scope="module")
def whole(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 2 ranks that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    run_ranks(train, 2, config=config_of(tiny_set, folder), run_folder=folder / "whole")
    return folder / "whole"


def config_of(data: Path, folder: Path, /, **changes: dict) -> Config:
    return make_config(data, folder, **(SETTINGS | changes))


def die_at_step(context: WorkerContext, *, config: Config, run_folder: Path, step: int) -> dict:
    """Train; rank 1 is killed in that step's backward."""
    from infnet_dist.training.step import Step

    original = Step.forward

    def dying(step_parts, batch):
        if step_parts._settings.step == step and context.rank == 1:
            torch.Tensor.backward = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        return original(step_parts, batch)

    Step.forward = dying
    return train(context, config, run_folder=run_folder)


@pytest.mark.parametrize("step", [3, pytest.param(14, marks=pytest.mark.exhaustive), 20])
def test_a_killed_run_resumes_bit_identically(
    tiny_set: Path, tmp_path: Path, whole_of_three: Path, step: int
) -> None:
    config, run = config_of(tiny_set, tmp_path), tmp_path / "run"
    with pytest.raises(RuntimeError, match=r"worker 1 died \(exit code -9\)"):
        run_ranks(die_at_step, 3, config=config, run_folder=run, step=step)
    run_ranks(train, 3, config=config, run_folder=run)
    assert_same(run, whole_of_three)


FROZEN, COLUMNS = "a frozen and an unused parameter", "tables sharded by columns"


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("ranks", "case"),
    [
        (1, ""),
        (4, ""),
        (3, FROZEN),
        (3, COLUMNS),
        (4, COLUMNS),
        (3, "three tasks under one"),
    ],
)
def test_killed_and_stopped_with_any_number_of_workers(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, case: str
) -> None:
    changes: dict[str, dict] = {}
    if case == FROZEN:
        monkeypatch.setattr(build, "_build_dense", partial(build_partly_frozen, build._build_dense))
    elif case == COLUMNS:
        by_column = {"sharding_types": ["column_wise"]}
        overrides = {"user": by_column, "item": by_column}
        changes["tables"] = {"embedding_dim": 16 if ranks == 4 else 12, "overrides": overrides}
    elif case:
        changes["model"] = {
            "dropout": 0.2,
            "conditional_on": {"like": "click"},
            "first_order": True,
        }
    config, run = config_of(tiny_set, tmp_path, **changes), tmp_path / "run"
    run_ranks(train, ranks, config=config, run_folder=tmp_path / "whole")
    run_ranks(stop_one_rank_at_step, ranks, config=config, run_folder=run, step=3)
    if ranks > 1:
        with pytest.raises(RuntimeError, match=r"worker 1 died \(exit code -9\)"):
            run_ranks(die_at_step, ranks, config=config, run_folder=run, step=13)
    run_ranks(train, ranks, config=config, run_folder=run)
    assert_same_but_for_a_line(run, tmp_path / "whole", step=5)


def build_partly_frozen(build: Callable[..., DenseArch], *args: Any) -> DenseArch:
    dense = build(*args)
    next(dense.tower.parameters()).requires_grad_(False)
    dense.unused = torch.nn.Linear(3, 3)
    return dense


def test_stopped_by_a_signal_it_saves_where_it_is(
    tiny_set: Path, tmp_path: Path, whole: Path
) -> None:
    config, run = config_of(tiny_set, tmp_path), tmp_path / "run"
    summary = run_ranks(stop_one_rank_at_step, 2, config=config, run_folder=run, step=15)[0]
    assert summary["stopped"] and summary["steps"] == 17
    assert summary["checkpoint"].endswith("step-00000017")
    assert summary["examples"] == 17 * 2 * 32
    assert not run_ranks(train, 2, config=config, run_folder=run)[0]["stopped"]
    assert_same_but_for_a_line(run, whole, step=17)


# Every optimizer and state that a CPU has. 25 steps; the dense part is updated each 4.
OPTIMIZERS: dict[str, dict] = {
    "tables": {
        "embedding_dim": 8,
        "overrides": {
            "user": {"sharding_types": ["data_parallel"]},
            "tab": {"sharding_types": ["data_parallel"], "optimizer": "adagrad"},
            "duration": {"sharding_types": ["data_parallel"], "embedding_dim": 6},
            "age_group": {"sharding_types": ["row_wise"], "embedding_dim": 6},
            "item": {"sharding_types": ["row_wise"], "optimizer": "adagrad"},
            "author": {"sharding_types": ["table_wise"], "optimizer": "sgd"},
            "topic": {"sharding_types": ["row_wise"], "trainable": False},
        },
    },
    "model": {"dropout": 0.2, "first_order": True},
    "sparse_optimizer": {"max_gradient_norm": 0.01},
    "dense_optimizer": {
        "max_gradient_norm": 0.5,
        "ema_decay": 0.8,
        "first_order": {"name": "ftrl", "l1": 0.01},
    },
    "schedule": {"warmup_steps": 5, "dense": {"decay_share": 0.5}},
    "training": {"log_every_steps": 7, "accumulate_steps": 4},
}


def test_all_optimizers_resume_bit_identically(tiny_set: Path, tmp_path: Path) -> None:
    """Stopped and killed within accumulations: it saves, and resumes, between two of them."""
    config, run = config_of(tiny_set, tmp_path, **OPTIMIZERS), tmp_path / "run"
    run_ranks(train, 3, config=config, run_folder=tmp_path / "whole")
    summary = run_ranks(stop_one_rank_at_step, 3, config=config, run_folder=run, step=4)[0]
    assert summary["stopped"] and summary["steps"] == 8
    with pytest.raises(RuntimeError, match=r"worker 1 died \(exit code -9\)"):
        run_ranks(die_at_step, 3, config=config, run_folder=run, step=17)
    assert [p.name for p in sorted((run / "checkpoints").iterdir())][:2] == [
        "step-00000008",
        "step-00000012",  # the first update in or after step 10
    ]
    run_ranks(train, 3, config=config, run_folder=run)
    logged = [r["step"] for r in records(run) if "train/loss/total" in r]
    assert logged == [8, 12, 16, 20, 24, 25], "each update that follows 7 steps or a checkpoint"
    assert_same(run, tmp_path / "whole")


def test_stopped_by_a_signal_while_it_starts(tiny_set: Path, tmp_path: Path, whole: Path) -> None:
    config, run = config_of(tiny_set, tmp_path), tmp_path / "run"
    summary = run_ranks(stop_at_start, 2, config=config, run_folder=run)[0]
    assert summary["stopped"] and summary["checkpoint"].endswith("step-00000002")
    run_ranks(train, 2, config=config, run_folder=run)
    assert_same_but_for_a_line(run, whole, step=2)


def stop_at_start(context: WorkerContext, *, config: Config, run_folder: Path) -> dict:
    import infnet_dist.training.trainer as trainer

    original = trainer.checkpoint_folder

    def signalled(*args: Any) -> Folder:
        if context.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    trainer.checkpoint_folder = signalled
    return train(context, config, run_folder=run_folder)


def test_stopped_in_an_evaluation_by_the_stop_file(
    tiny_set: Path, tmp_path: Path, whole: Path
) -> None:
    config, run = config_of(tiny_set, tmp_path), tmp_path / "run"
    summary = run_ranks(stop_in_evaluation, 2, config=config, run_folder=run)[0]
    assert summary["stopped"] and summary["examples"] == 2400, "the epoch is over"
    assert summary["metrics"] == {}
    run_ranks(train, 2, config=config, run_folder=run)
    assert_same(run, whole)


EVERY_17 = {"log_every_steps": 7, "eval_every_steps": 17}


@pytest.fixture(scope="module")
def evaluated(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 2 ranks that is evaluated each 17 steps, without interruption."""
    folder = tmp_path_factory.mktemp("evaluated")
    config = config_of(tiny_set, folder, training=EVERY_17)
    run_ranks(train, 2, config=config, run_folder=folder / "whole")
    return folder / "whole"


@pytest.mark.parametrize(
    "moment",
    [
        "before the checkpoint knows of it",
        pytest.param("soon after", marks=pytest.mark.exhaustive),
    ],
)
def test_an_evaluation_that_is_made_up_for(
    tiny_set: Path, tmp_path: Path, evaluated: Path, moment: str
) -> None:
    """Stopped where one was due; the next attempt evaluates, and is killed."""
    run, dying = tmp_path / "run", die_evaluated if moment.startswith("before") else die_at_step
    config = config_of(tiny_set, tmp_path, training=EVERY_17)
    run_ranks(stop_one_rank_at_step, 2, config=config, run_folder=run, step=15)
    assert not [r for r in records(run) if "valid/auc/click" in r]
    with pytest.raises(RuntimeError, match=r"worker \d died"):
        run_ranks(dying, 2, config=config, run_folder=run, step=18)
    assert [r["step"] for r in records(run)].count(17) == 2, "losses and evaluation"
    run_ranks(train, 2, config=config, run_folder=run)
    assert_same(run, evaluated)
    folder = Folder(run / "checkpoints") / "step-00000017"
    metrics = checkpoint.read_manifest(folder).metrics
    line = next(r for r in records(run) if r["step"] == 17 and "valid/auc/click" in r)
    assert line == {"step": 17, "examples": 17 * 64, **metrics}, "it counts for keep_best"
    tensors(run, folder.name)
    run_ranks(train, 2, config=config, run_folder=run)
    assert_same(run, evaluated)


def die_evaluated(context: WorkerContext, *, config: Config, run_folder: Path, step: int) -> dict:
    """Train; rank 0 is killed right after it has logged an evaluation."""
    import infnet_dist.training.run_log as run_log

    original = run_log.RunLog.evaluation

    def dying(*args, **kwargs):
        original(*args, **kwargs)
        if context.is_first:
            os.kill(os.getpid(), signal.SIGKILL)

    run_log.RunLog.evaluation = dying
    return train(context, config, run_folder=run_folder)


def test_metrics_that_can_t_be_added_to_a_checkpoint(tiny_set: Path, tmp_path: Path) -> None:
    """The store takes no writes: the manifest stays unchanged, and training continues."""
    changes = {"training": {"max_steps": 8}, "checkpoint": {"retry_s": 0}}
    config, run = config_of(tiny_set, tmp_path, **changes), tmp_path / "run"
    run_ranks(stop_one_rank_at_step, 2, config=config, run_folder=run, step=7)
    before = (run / "checkpoints" / "step-00000008" / "manifest.json").read_bytes()
    summary = run_ranks(train_without_room, 2, config=config, run_folder=run)[0]
    assert (run / "checkpoints" / "step-00000008" / "manifest.json").read_bytes() == before
    assert "valid/auc/click" in summary["metrics"]


def train_without_room(context: WorkerContext, *, config: Config, run_folder: Path) -> dict:
    original = Folder.put

    def put(self: Folder, name: str, content: bytes) -> None:
        if name.startswith("manifest.json"):
            self.delete(name)  # as an object store may, where a write fails
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        original(self, name, content)

    Folder.put = put  # type: ignore[method-assign]
    return train(context, config, run_folder=run_folder)


def stop_in_evaluation(context: WorkerContext, *, config: Config, run_folder: Path) -> dict:
    import infnet_dist.training.preemption as stop
    import infnet_dist.training.trainer as trainer

    stop._POLL_S = 0
    stop_file = run_folder / "stop"
    original = trainer.evaluate

    def evaluating(*args, **kwargs):
        if context.is_first:
            stop_file.touch()
        return original(*args, **kwargs)

    trainer.evaluate = evaluating
    return train(context, config, run_folder=run_folder, stop_file=stop_file)


def test_a_damaged_checkpoint_is_skipped_and_replaced(
    tiny_set: Path, tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = config_of(tiny_set, tmp_path, training={"log_every_steps": 7, "max_steps": 20})
    run = tmp_path / "run"
    run_ranks(train, 2, config=short, run_folder=run)
    for path in (run / "checkpoints" / "step-00000020").glob("rank-00001-*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-3] ^= 16
        path.write_bytes(content)
    (run / "checkpoints" / "step-00000030").mkdir()  # left by a save that was killed
    fewer = config_of(tiny_set, tmp_path, training={"log_every_steps": 7, "max_steps": 15})
    run_ranks(train, 2, config=fewer, run_folder=run)
    newest = checkpoint.newest(Folder(run / "checkpoints"))
    assert newest is not None and newest.name == "step-00000015", "not the one of another way"
    shutil.rmtree(newest.url)
    config = config_of(tiny_set, tmp_path)
    run_ranks(train, 2, config=config, run_folder=run)
    assert_same(run, whole)
    manifest = checkpoint.read_manifest(Folder(run / "checkpoints") / "step-00000020")
    there = {p.name for p in (run / "checkpoints" / "step-00000020").iterdir()}
    assert there == {*manifest.files, *manifest.tensor_files, "manifest.json"}, "nothing mixed up"

    for folder in (run / "checkpoints").iterdir():
        (folder / "plan.json").unlink()
    with pytest.raises(CheckpointError, match=r" 4 checkpoints .*plan"):
        run_ranks(train, 2, config=config, run_folder=run)
    assert records(run) == records(whole), "the log isn't touched"


@pytest.mark.exhaustive
def test_the_damaged_do_not_count_among_those_kept(tiny_set: Path, tmp_path: Path) -> None:
    for max_steps, every_steps in ((20, 10), (25, 25)):
        config = make_config(
            tiny_set,
            tmp_path,
            training={"max_steps": max_steps},
            checkpoint={"every_steps": every_steps, "keep_last": 2},
        )
        run_ranks(train, 1, config=config, run_folder=tmp_path / "run")
        kept = sorted(int(p.name[5:]) for p in (tmp_path / "run" / "checkpoints").iterdir())
        assert kept == [10, max_steps]
        (tmp_path / "run" / "checkpoints" / f"step-{max_steps:08d}" / "plan.json").unlink()


def test_what_is_kept(tiny_set: Path, tmp_path: Path) -> None:
    config = make_config(
        tiny_set,
        tmp_path,
        training={"max_steps": 12, "eval_every_steps": 2},
        checkpoint={
            "every_steps": 1,
            "keep_last": 2,
            "keep_every_steps": 5,
            "keep_best": "valid/log_loss/click",
        },
        dense_optimizer={"learning_rate": 1e-2},
    )
    run_ranks(train, 1, config=config, run_folder=tmp_path / "run")
    scores = {r["step"]: r.get("valid/log_loss/click") for r in records(tmp_path / "run")}
    best = min((step for step, v in scores.items() if v is not None), key=lambda s: scores[s])
    kept = {int(p.name[5:]) for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {5, 10, 11, 12, best}


def test_checkpoints_by_the_clock_change_no_weights_and_no_evaluation(
    tiny_set: Path, tmp_path: Path, whole: Path
) -> None:
    often = {"every_minutes": 1e-9, "every_steps": None, "keep_last": 99}
    run = tmp_path / "run"
    run_ranks(train, 2, config=config_of(tiny_set, tmp_path, checkpoint=often), run_folder=run)
    steps = sorted(int(p.name[5:]) for p in (run / "checkpoints").iterdir())
    assert steps == list(range(2, 39)), "the clock is read in a step, and the flag in the next"
    ours, theirs = tensors(run), tensors(whole)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    further = assert_same_log(records(run), records(whole))
    assert sorted({*further, *(r["step"] for r in records(whole))}) == steps, "a line at each save"


@pytest.mark.exhaustive
def test_a_checkpoint_of_a_version_that_did_not_log_at_each_save(
    tiny_set: Path, tmp_path: Path
) -> None:
    """It holds the sums since the last line, which go into the next one, under any world size."""
    config, run = config_of(tiny_set, tmp_path), tmp_path / "run"
    run_ranks(stop_one_rank_at_step, 2, config=config, run_folder=run, step=15)
    folder = Folder(run / "checkpoints") / "step-00000017"
    manifest = checkpoint.read_manifest(folder)
    assert manifest.interval == ()
    tasks = sum("train/log_loss" in key for key in records(run)[0])
    sums = (3.0, 96.0, 96e3, *[96e3] * tasks, *[96.0] * tasks, 0.1, 1.0)  # of steps 15 to 17
    totals = manifest.totals.model_copy(update={"rows": 14 * 64, "steps": 14})
    old = manifest.model_copy(update={"interval": (sums, sums), "totals": totals})
    folder.put("manifest.json", dump_manifest(old))
    summary = run_ranks(train, 3, config=config, run_folder=run)[0]
    found = [r for r in records(run) if "train/loss/total" in r]
    assert [r["step"] for r in found][:5] == [7, 10, 14, 20, 21]
    assert found[3]["examples"] == 17 * 64 + 3 * 96
    assert found[3]["train/loss/total"] == pytest.approx(192e3 / (192 + 288), abs=5)
    assert summary["samples_per_s"] * summary["train_seconds"] == pytest.approx(2400)


def test_a_checkpoint_on_an_object_store_of_any_kind(tiny_set: Path, tmp_path: Path) -> None:
    """fsspec's local file system replaces those that Arrow lacks."""
    url = f"local://{tmp_path}/store"
    config = make_config(
        tiny_set,
        tmp_path,
        training={"max_steps": 6},
        checkpoint={"folder": url, "every_steps": 2},
    )
    summary = run_ranks(train, 2, config=config, run_folder=tmp_path / "runs" / "a")[0]
    assert summary["checkpoint"] == f"{url}/test/a/step-00000006"
    assert not (tmp_path / "runs" / "a" / "checkpoints").exists()
    assert sorted(p.name for p in (tmp_path / "store/test/a").iterdir()) == [
        "step-00000004",
        "step-00000006",
    ]
    again = run_ranks(train, 2, config=config, run_folder=tmp_path / "runs" / "a")[0]
    assert again["metrics"] == pytest.approx(summary["metrics"], abs=0, nan_ok=True)


def test_a_finished_run_keeps_its_summary(tiny_set: Path, tmp_path: Path) -> None:
    """An attempt that finds nothing left to train has no speed of its own to report."""
    run = tmp_path / "run"
    config = make_config(tiny_set, tmp_path, training={"max_steps": 2})
    first = run_ranks(train, 2, config=config, run_folder=run)[0]
    assert first["samples_per_s"] > 0
    written = (run / "summary.json").read_bytes()
    again = run_ranks(train, 1, config=config, run_folder=run)[0]
    assert (run / "summary.json").read_bytes() == written
    assert (again["samples_per_s"], again["num_workers"]) == (first["samples_per_s"], 2)


def test_two_processes_can_t_train_the_same_run(tiny_set: Path, tmp_path: Path) -> None:
    config = make_config(
        tiny_set, tmp_path, training={"max_steps": 2}, scaling={"hang_timeout_s": 9.0}
    )
    before, run_lock._END_S = run_lock._END_S, -8.8
    refused = pytest.raises(UserError, match=str(tmp_path / "run"))
    try:
        with held_by_workers(tmp_path / "run", config.scaling), refused:
            run_ranks(train, 2, config=config, run_folder=tmp_path / "run")
    finally:
        run_lock._END_S = before
    run_ranks(train, 2, config=config, run_folder=tmp_path / "run")


def test_a_batch_whose_loss_is_not_finite(tmp_path: Path, whole: Path) -> None:
    data = make_tiny_set(tmp_path / "data")
    spoil(data, 3e38)  # finite, so that the check of the data lets it pass
    config = config_of(data, tmp_path)
    message = (
        r"in step \d+ .*(nan|inf) on rank \d: .*\[\(\d+, \d+\)\] .*"
        r"training.max_skipped_steps \(now 0\)"
    )
    with pytest.raises(UserError, match=message):
        run_ranks(train, 2, config=config, run_folder=tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        for name, value in tensors(tmp_path / "run", folder.name).items():
            assert value.isfinite().all(), name
    lenient = config_of(data, tmp_path, training={"log_every_steps": 7, "max_skipped_steps": 1})
    summary = run_ranks(train, 2, config=lenient, run_folder=tmp_path / "run")[0]
    assert summary["skipped_steps"] == 1
    assert summary["steps"] == 38 and summary["examples"] == 2400


def test_skipped_rows_count_alike_after_resuming(tmp_path: Path) -> None:
    data = make_tiny_set(tmp_path / "data")
    spoil(data, 3e38)
    training = {"log_every_steps": 7, "max_skipped_steps": 1}
    config = config_of(data, tmp_path, training=training)
    run_ranks(train, 2, config=config, run_folder=tmp_path / "whole")
    run_ranks(stop_one_rank_at_step, 2, config=config, run_folder=tmp_path / "run", step=35)
    manifest = checkpoint.read_manifest(Folder(tmp_path / "run" / "checkpoints" / "step-00000037"))
    assert manifest.progress.skipped == 1
    run_ranks(train, 2, config=config, run_folder=tmp_path / "run")
    assert_same_but_for_a_line(tmp_path / "run", tmp_path / "whole", step=37)


def test_saving_is_retried_while_training_continues(
    tiny_set: Path, tmp_path: Path, whole: Path
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    blocker = run / "checkpoints" / "step-00000010"
    blocker.write_text("in the way")
    run_ranks(train_and_make_room, 2, config=config_of(tiny_set, tmp_path), run_folder=run)
    assert_same(run, whole)
    assert checkpoint.read_manifest(Folder(blocker)).progress.step == 10


def train_and_make_room(context: WorkerContext, *, config: Config, run_folder: Path) -> dict:
    """Train; what is in the way of a checkpoint is removed once saving it has failed."""
    import infnet_dist.checkpoint.writing as writing

    original = writing.write_file

    def making_room(folder: Folder, *args, **kwargs):
        try:
            return original(folder, *args, **kwargs)
        except OSError:
            Path(folder.url).unlink(missing_ok=True)
            raise

    writing.write_file = making_room
    return train(context, config, run_folder=run_folder)


def test_a_store_that_fails_after_the_last_save(tiny_set: Path, tmp_path: Path) -> None:
    config, run = config_of(tiny_set, tmp_path, training={"max_steps": 3}), tmp_path / "run"
    summary = run_ranks(train_and_lose_the_store, 2, config=config, run_folder=run)[0]
    assert summary["checkpoint"] == str(run / "checkpoints" / "step-00000003")


def train_and_lose_the_store(context: WorkerContext, *, config: Config, run_folder: Path) -> dict:
    import infnet_dist.training.trainer as trainer

    original = trainer.Saver.close

    def closing(self) -> None:
        original(self)
        Folder.entries = lambda _: os.listdir("/nowhere")

    trainer.Saver.close = closing
    return train(context, config, run_folder=run_folder)


def damage(part: Path, row_group: int) -> None:
    """Make a row group unreadable."""
    column = pq.ParquetFile(part).metadata.row_group(row_group).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(part.read_bytes())
    content[start : start + 200] = b"\xff" * 200
    part.write_bytes(content)


def test_row_groups_that_could_not_be_read_are_remembered(tmp_path: Path) -> None:
    data = make_tiny_set(tmp_path / "data")
    split = read_manifest(data).split("train")
    blocks = epoch_order(split, epoch=0, seed=0, shuffle_rows=1_000)
    first, last = blocks[0].groups[0], blocks[-1].groups[-1]
    damage(data / first.file, first.index)
    config, run = config_of(data, tmp_path, data={"max_bad_row_groups": 1}), tmp_path / "run"
    run_ranks(stop_one_rank_at_step, 1, config=config, run_folder=run, step=34)
    shutil.copytree(run, tmp_path / "other")
    summary = run_ranks(train, 2, config=config, run_folder=tmp_path / "other")[0]
    assert summary["unreadable_rows"] == {f"{first.file}, row group {first.index}": first.rows}
    damage(data / last.file, last.index)
    with pytest.raises(DataError, match=r"max_bad_row_groups \(now 1\)"):
        run_ranks(train, 1, config=config, run_folder=run)


def test_a_row_group_that_can_t_be_read(tmp_path: Path) -> None:
    data = make_tiny_set(tmp_path / "data")
    damage(data / "train" / "part-00001.parquet", 1)
    with pytest.raises(DataError, match=r"row group 1 .*part-00001.*\(now 0\)"):
        run_ranks(train, 2, config=config_of(data, tmp_path), run_folder=tmp_path / "run")
    lenient = config_of(data, tmp_path, data={"max_bad_row_groups": 1})
    summary = run_ranks(train, 2, config=lenient, run_folder=tmp_path / "run")[0]
    assert summary["unreadable_rows"] == {"train/part-00001.parquet, row group 1": 400}
    assert summary["examples"] == 2400 and summary["steps"] == 38


@pytest.mark.exhaustive
@pytest.mark.parametrize("ranks", [1, 3])
def test_training_continues_alike_under_another_plan(
    tiny_set: Path, tmp_path: Path, ranks: int
) -> None:
    """The rest of the epoch by other ranks and shards, against a copy that keeps its shards."""
    config = config_of(tiny_set, tmp_path, model={"dropout": 0.0})
    run_ranks(stop_one_rank_at_step, 2, config=config, run_folder=tmp_path / "a", step=15)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    tables = {t: {"sharding_types": ["table_wise"]} for t in ("user", "item")}
    tables["author"] = {"sharding_types": ["row_wise"]}
    other = config_of(
        tiny_set,
        tmp_path,
        model={"dropout": 0.0},
        tables={"embedding_dim": 8, "overrides": tables},
    )
    run_ranks(train, ranks, config=config, run_folder=tmp_path / "a")
    run_ranks(train, ranks, config=other, run_folder=tmp_path / "b")
    a, b = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    for name, value in a.items():
        assert torch.allclose(value, b[name], rtol=1e-5, atol=1e-5), name
    for one, two in zip(records(tmp_path / "a"), records(tmp_path / "b"), strict=True):
        assert one["step"] == two["step"]
        assert one.get("train/loss/total") == pytest.approx(two.get("train/loss/total"), abs=1e-5)


def with_schema(data: Path, folder: Path, edit: "Edit") -> Path:
    """A copy of a training set whose manifest describes the same columns otherwise."""
    shutil.copytree(data, folder)
    raw = json.loads((folder / "manifest.json").read_text())
    edit(raw["schema"])
    raw |= {"content_hash": "other", "statistics": None}
    (folder / "manifest.json").write_text(json.dumps(raw))
    return folder


Edit = Callable[[dict[str, Any]], None]


def reorder(schema: dict[str, Any]) -> None:
    """Features and tasks in another order, other statistics: no tensor has another shape."""
    for kind in ("categorical", "sequences", "dense", "tasks"):
        schema[kind].reverse()
    for number in schema["dense"]:
        number |= {"mean": 99.0, "std": 7.0}
        if number["boundaries"]:
            number["boundaries"] = [value + 5 for value in number["boundaries"]]


def add_feature(schema: dict[str, Any]) -> None:
    schema["tables"].append({"name": "M1D", "num_embeddings": 500})
    schema["categorical"].append(
        {"name": "M1D", "table": "M1D", "column": schema["categorical"][0]["column"]}
    )


EDITS: tuple[Edit, ...] = (reorder, add_feature)


def test_a_model_is_evaluated_as_it_was_trained_on_another_set(
    tiny_set: Path, tmp_path: Path, whole: Path
) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    sets = {edit: with_schema(tiny_set, tmp_path / edit.__name__, edit) for edit in EDITS}
    for data in sets.values():
        found = run_ranks(
            evaluate_checkpoint,
            1,
            config=config_of(data, tmp_path),
            path=summary["checkpoint"],
            split="valid",
        )[0]
        assert found["metrics"] == pytest.approx(summary["metrics"], abs=1e-6, nan_ok=True)
        assert found["training_set"] == "other"


@pytest.mark.parametrize(
    ("edit", "names"), [(add_feature, "'M1D'"), (reorder, "'user'.*another order")]
)
def test_training_on_under_another_schema_is_refused(
    tiny_set: Path, tmp_path: Path, whole: Path, edit: Edit, names: str
) -> None:
    """It names what changed, not the shape of some parameter; or it would train on silently."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    log = (run / "metrics.jsonl").read_text()
    data = with_schema(tiny_set, tmp_path / "set", edit)
    with pytest.raises(CheckpointError, match=names):
        run_ranks(train, 1, config=config_of(data, tmp_path), run_folder=run)
    assert (run / "metrics.jsonl").read_text() == log


def test_summary_and_wandb_hold_all_attempts(tiny_set: Path, tmp_path: Path, whole: Path) -> None:
    tracking = {"wandb": "offline"}
    config, run = config_of(tiny_set, tmp_path, tracking=tracking), tmp_path / "run"
    with pytest.raises(RuntimeError, match="worker 1 died"):
        run_ranks(die_at_step, 2, config=config, run_folder=run, step=24)
    data = config.data.model_copy(update={"prefetch_batches": 2})
    other = config.model_copy(update={"data": data})
    summary = run_ranks(train, 2, config=other, run_folder=run)[0]
    assert records(run) == records(whole)

    undisturbed = json.loads((whole / "summary.json").read_text())
    for key in ("steps", "examples", "skipped_steps", "metrics"):
        assert summary[key] == pytest.approx(undisturbed[key], nan_ok=True), key
    trained = summary["samples_per_s"] * summary["train_seconds"]
    assert trained == pytest.approx(summary["examples"]), "rows and seconds of both attempts"
    assert [attempt["after_step"] for attempt in summary["attempts"]] == [0, 20]
    assert summary["started_at"] == summary["attempts"][0]["started_at"]
    texts = [(run / "attempts" / n / "config.yaml").read_text() for n in ("001", "002")]
    assert ["prefetch_batches: 2\n" in text for text in texts] == [False, True]

    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    history = [row for row in read_history(file.parent) if "train/loss/total" in row]
    expected = {r["step"]: r["train/loss/total"] for r in records(whole) if "train/loss/total" in r}
    assert {row["_step"]: row["train/loss/total"] for row in history} == expected
    assert len(history) == len(expected), "each step once"


def test_a_place_that_can_t_be_written_is_an_error_before_training(
    tiny_set: Path, tmp_path: Path
) -> None:
    config = make_config(tiny_set, tmp_path, checkpoint={"folder": "/proc/nowhere"})
    with pytest.raises(CheckpointError, match="/proc/nowhere/test/run"):
        run_ranks(train, 2, config=config, run_folder=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_place_that_can_t_be_written_now_does_not_end_a_resumed_run(
    tiny_set: Path, tmp_path: Path
) -> None:
    for max_steps in (4, 8):
        config = make_config(tiny_set, tmp_path, training={"max_steps": max_steps})
        summary = run_ranks(train, 1, config=config, run_folder=tmp_path / "run")[0]
        assert summary["steps"] == max_steps
        (tmp_path / "run" / "checkpoints" / "probe").mkdir(exist_ok=True)  # in the way


def replace_at_step(
    context: WorkerContext, *, config: Config, run_folder: Path, step: int, other: Path
) -> dict:
    """Train; in that step rank 0 puts `other` in the place of the training set."""
    from infnet_dist.training.step import Step

    original = Step.forward

    def replacing(step_parts, batch):
        if step_parts._settings.step == step and context.is_first:
            config.data.path.rename(config.data.path.with_name("away"))
            other.rename(config.data.path)
        return original(step_parts, batch)

    Step.forward = replacing
    return train(context, config, run_folder=run_folder)


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", [3, 37])  # early, and in the last of the epoch
def test_a_set_that_is_replaced_while_it_is_trained(tmp_path: Path, step: int) -> None:
    data = make_tiny_set(tmp_path / "data")
    other = make_tiny_set(tmp_path / "other", seed=1)
    config = config_of(data, tmp_path, training={"epochs": 3})
    run, settings = tmp_path / "run", {"config": config, "step": step, "other": other}
    with pytest.raises(DataError, match=str(data)):
        run_ranks(replace_at_step, 2, run_folder=run, **settings)
    newest = checkpoint.newest(Folder(run / "checkpoints"))
    assert newest is None or checkpoint.read_manifest(newest).progress.epoch < 2
    if newest is None:
        return
    with pytest.raises(CheckpointError, match="training set"):
        run_ranks(train, 2, config=config, run_folder=run)
    data.rename(other)
    data.with_name("away").rename(data)
    assert run_ranks(train, 2, config=config, run_folder=run)[0]["examples"] == 3 * 2400


@pytest.mark.exhaustive
def test_a_set_that_grew_between_epochs(tmp_path: Path) -> None:
    from tests.unit.test_unknown_ids import with_coverage

    data, more = make_tiny_set(tmp_path / "data"), make_tiny_set(tmp_path / "more", num_rows=4_500)
    run, first = tmp_path / "run", config_of(data, tmp_path)
    assert run_ranks(train, 2, config=first, run_folder=run)[0]["examples"] == 2400
    config = config_of(more, tmp_path, training={"epochs": 2, "log_every_steps": 7})
    with pytest.raises(CheckpointError, match=read_manifest(data).content_hash[:12]):
        run_ranks(train, 2, config=config, run_folder=run)
    grown = with_coverage(read_manifest(more), item=(1.0, 0.2))  # a new run would drop items
    ingested = Ingested(
        **{"generation": 2, "last_time_ms": 0, "boundary_ms": 0, "files": (), "unreadable": {}},
        **{"quarantined": {}, "left_out": {}, "grew_from": (read_manifest(data).content_hash,)},
    )
    write_manifest(more, grown.model_copy(update={"ingested": ingested}))
    rows = 2400 + grown.split("train").rows
    assert run_ranks(train, 2, config=config, run_folder=run)[0]["examples"] == rows
    lines = [r for r in records(run) if "train/loss/total" in r]
    assert all(
        later["examples"] - line["examples"] == (later["step"] - line["step"]) * 64
        for line, later in pairwise(lines)
        if later["step"] not in (38, lines[-1]["step"])  # the last of an epoch is padded
    )
    newest = checkpoint.newest(Folder(run / "checkpoints"))
    saved = checkpoint.read_manifest(newest)
    assert saved.order.content_hash == grown.content_hash
    assert saved.unknown_id_rates and set(saved.unknown_id_rates.values()) == {0.0}


def lie_about_ids(folder: Path) -> None:
    """Put an id outside of its table where the footer says that there is none."""
    from tests.unit.test_value_checks import write_lying

    path = folder / "train" / "part-00001.parquet"
    good = pq.read_table(path)
    ids = good["item_id"].to_pylist()
    ids[777] = 81
    place = good.schema.get_field_index("item_id")
    bad = good.set_column(place, good.schema.field(place), pa.array(ids))
    write_lying(path, good, bad, row_group_size=500)
    forget_fingerprints(folder)


def test_an_id_outside_of_its_table_that_footers_do_not_show(tmp_path: Path) -> None:
    data = make_tiny_set(tmp_path / "data")
    lie_about_ids(data)
    config = config_of(data, tmp_path)
    message = r"part-00001\.parquet, row group 1, column 'item_id': got 81, .*'item'.* 80"
    with pytest.raises(DataError, match=message):
        run_ranks(train, 2, config=config, run_folder=tmp_path / "run")
