"""A save in the background holds the state of its step, whatever the steps after it change."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from infnet_dist.checkpoint import (
    CheckpointMetadata,
    SavedProgress,
    Saver,
    files,
    snapshot,
    writing,
)
from infnet_dist.checkpoint.manifest import DataOrder
from infnet_dist.checkpoint.shards import LocalShard, ModelState
from infnet_dist.checkpoint.snapshot import ShardKey, Snapshot, kernel_tables, shard_key
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.sharding.build import ShardedModel, build_sharded_model
from infnet_dist.sharding.optimizers import kernels_of
from infnet_dist.training.step import EagerStep, PipelinedStep, Step, StepSettings
from infnet_dist.training.trainer import train
from tests.mixed import ROWS, SCHEMA, config_of, make_batch
from tests.ranks import run_ranks
from tests.run_files import tensors
from tests.runs import make_config, make_tiny_set, stop_one_rank_at_step

READS = 12  # of blocks, each after another step
FP16 = dict.fromkeys(("topic", "item", "tag"), "fp16")
COLUMNS = dict.fromkeys(("user", "item", "topic"), "column_wise")
BY_NODE = {"tag": "table_row_wise", "user": "grid_shard", "place": "table_wise"}
ORDER = DataOrder(content_hash="x", seed=0, shuffle_rows=1)


class Case(NamedTuple):
    """How a model is spread, and how its steps are executed."""

    ranks: int
    types: Mapping[str, str] = MappingProxyType({})  # where they aren't row-wise
    data_types: Mapping[str, str] = MappingProxyType({})
    step: type[Step] = PipelinedStep
    workers_per_node: int | None = None


CASES = {
    "rows": Case(2, data_types=FP16),
    "one worker": Case(1, step=EagerStep),
    "columns": Case(2, COLUMNS),
    "tables": Case(3, dict.fromkeys(ROWS, "table_wise")),
    "copies": Case(2, {"user": "data_parallel", "tag": "data_parallel"}),
    "nodes": Case(4, BY_NODE, workers_per_node=2),
}


def config_for(case: Case) -> Config:
    """All optimizers that CPUs have, in most cases for several tables, and a weight average."""
    overrides: dict = {name: {"sharding_types": ["row_wise"]} for name in ROWS}
    for name, kind in case.types.items():
        overrides[name]["sharding_types"] = [kind]
    for name, data_type in case.data_types.items():
        overrides[name]["data_type"] = data_type
    for name, optimizer in {"user": "sgd", "item": "adagrad", "tag": "adagrad"}.items():
        overrides[name]["optimizer"] = optimizer
    if case.types == COLUMNS:  # row-wise Adagrad can't train a row of 12 floats cut in two
        overrides["topic"]["embedding_dim"] = 16
    return config_of(
        overrides=overrides,
        sparse_optimizer={"name": "rowwise_adagrad", "learning_rate": 0.05},
        dense_optimizer={"ema_decay": 0.9},
    )


@pytest.mark.parametrize(
    "name", [*list(CASES)[:-1], pytest.param("nodes", marks=pytest.mark.exhaustive)]
)
def test_a_save_equals_one_that_training_waits_for(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    found = run_ranks(
        save_twice, case.ranks, config=config_for(case), case=case, folder=tmp_path, copies=True
    )
    assert sum(copied for copied, _ in found) > 0
    assert all(changed for _, changed in found)
    waited, continued = (tensors(tmp_path / kind) for kind in ("waited", "continued"))
    assert_equal(waited, continued)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def test_it_would_differ_without_the_copies(tmp_path: Path) -> None:
    case = CASES["rows"]
    run_ranks(
        save_twice, case.ranks, config=config_for(case), case=case, folder=tmp_path, copies=False
    )
    waited, continued = (tensors(tmp_path / kind) for kind in ("waited", "continued"))
    tables = [key for key in waited if "tables" in key]
    assert any(not torch.equal(waited[key], continued[key]) for key in tables)


def save_twice(
    context: WorkerContext, *, config: Config, case: Case, folder: Path, copies: bool
) -> tuple[int, bool]:
    """Save while training waits, then while it continues.

    Returns:
        The bytes of rows that were copied, and whether training changed most shards.
    """
    if case.workers_per_node:
        os.environ["LOCAL_WORLD_SIZE"] = str(case.workers_per_node)
        context = replace(context, local_world_size=case.workers_per_node)
    sharded = build_sharded_model(config, SCHEMA, context)
    shards = ModelState(sharded).shards()
    _, others = kernel_tables(shards, kernels_of(sharded.sparse_optimizer))
    assert all(shard.replicated or not shard.nbytes for shard in others)

    numbers = count()
    batches = iter([make_batch(100 * step + context.rank) for step in range(READS + 4)])
    steps = case.step(sharded, context, seed=0).over(batches, lambda: StepSettings(next(numbers)))
    next(steps)
    next(steps)
    waiting = config.checkpoint.model_copy(update={"background": False})
    saver = saver_of(folder / "waited", sharded, config, context, checkpoint=waiting)
    saver.save(metadata(2))
    saver.wait()
    saver.close()
    before = {shard_key(shard): shard.tensor.clone() for shard in shards}
    with small_blocks(), reads_between_steps() as release, copying(copies):
        saver = saver_of(folder / "continued", sharded, config, context)
        saver.save(metadata(2))
        taken = saver._state
        assert taken is not None
        marks = taken.most_bytes
        for _ in steps:
            release()
        release(READS)
        saver.wait()
        saver.close()
    changed = [shard for shard in shards if not torch.equal(before[shard_key(shard)], shard.tensor)]
    return taken.most_bytes - marks, len(changed) > len(shards) / 2


def saver_of(
    folder: Path, sharded: ShardedModel, config: Config, context: WorkerContext, **changes: object
) -> Saver:
    config = config.model_copy(update=changes)
    return Saver(Folder(folder / "checkpoints"), sharded, config, context)


def metadata(step: int) -> CheckpointMetadata:
    return CheckpointMetadata(SavedProgress(step=step), ORDER, {})


@contextmanager
def small_blocks() -> Iterator[None]:
    """Files of several blocks, and tables of several files."""
    with (
        mock.patch.object(files, "BLOCK_BYTES", 64),
        mock.patch.object(writing, "BLOCK_BYTES", 64),
        mock.patch.object(files, "_FILE_BYTES", 4096),
        mock.patch.object(snapshot, "_PART_BYTES", 512),
    ):
        yield


@contextmanager
def reads_between_steps() -> Iterator[Callable[..., None]]:
    """Each of the first blocks is read only after a call of the yielded function."""
    turns, reads, read = threading.Semaphore(0), iter(range(READS)), Snapshot.read

    def wait_and_read(self: Snapshot, shard: LocalShard, start: int, stop: int) -> torch.Tensor:
        if next(reads, None) is not None:
            turns.acquire()
        return read(self, shard, start, stop)

    with mock.patch.object(Snapshot, "read", wait_and_read):
        yield turns.release


@contextmanager
def copying(copies: bool) -> Iterator[None]:
    """Whether rows are copied before they change."""
    patch = mock.patch.object(Snapshot, "_copy", lambda self, rows, ids: None)
    if copies:
        yield
    else:
        with patch:
            yield


def test_a_failed_save_frees_its_copies_and_the_next_one_succeeds(tmp_path: Path) -> None:
    for copied, hooks in run_ranks(
        fail_then_save, 2, config=config_for(CASES["rows"]), folder=tmp_path
    ):
        assert copied > 0
        assert hooks == 0


def fail_then_save(context: WorkerContext, *, config: Config, folder: Path) -> tuple[int, int]:
    """The disk of rank 1 is full in the first save; returns bytes copied in it, and hooks left."""
    sharded = build_sharded_model(config, SCHEMA, context)
    step = EagerStep(sharded, context, seed=0)
    no_retries = config.checkpoint.model_copy(update={"retry_s": 0.0})
    saver = saver_of(folder, sharded, config, context, checkpoint=no_retries)
    trained, write_file = threading.Event(), writing.write_file

    def write_or_fail(*arguments: Any) -> Any:
        trained.wait()
        if context.rank:
            raise OSError(28, "No space left on device")
        return write_file(*arguments)

    with mock.patch.object(writing, "write_file", write_or_fail):
        saver.save(metadata(0))
        taken = saver._state
        assert taken is not None
        marks = taken.most_bytes
        step.train(make_batch(context.rank), StepSettings(0))
        trained.set()
        with pytest.raises(CheckpointError, match="No space left"):
            saver.wait()
    assert not taken._rows and not taken._places
    copied = taken.most_bytes - marks
    before = {shard_key(s): s.tensor.clone() for s in ModelState(sharded).shards()}
    saver.save(metadata(1))
    step.train(make_batch(context.rank), StepSettings(1))
    saver.wait()
    saver.close()
    if context.is_first:
        compare(before, tensors(folder, "step-00000001"))
    hooks = [len(kernel._forward_pre_hooks) for kernel in kernels_of(sharded.sparse_optimizer)]
    return copied, sum(hooks)


def compare(shards: dict[ShardKey, torch.Tensor], saved: dict[str, torch.Tensor]) -> None:
    """A rank's shards with the tensors of a checkpoint."""
    for (name, offsets), value in shards.items():
        sides = zip(offsets, value.shape, strict=True)
        assert torch.equal(saved[name][tuple(slice(o, o + n) for o, n in sides)], value), name


def test_a_run_stopped_in_mid_save_resumes_like_one_that_waits(tmp_path: Path) -> None:
    data = make_tiny_set(tmp_path / "data", num_rows=1_000)

    def config(*, background: bool) -> Config:
        checkpoint = {"background": background, "every_steps": 5, "keep_last": 99}
        return make_config(data, tmp_path, checkpoint=checkpoint, training={"max_steps": 10})

    waited, continued = tmp_path / "waited", tmp_path / "continued"
    run_ranks(train, 2, config=config(background=False), run_folder=waited)
    settings = {"config": config(background=True), "run_folder": continued}
    assert run_ranks(stop_in_mid_save, 2, **settings)[0]["steps"] == 8
    run_ranks(train, 2, **settings)
    for step in (5, 10):
        name = f"step-{step:08d}"
        assert_equal(tensors(waited, name), tensors(continued, name))


def stop_in_mid_save(context: WorkerContext, *, config: Config, run_folder: Path) -> dict:
    """Train; nothing of step 5 is written until step 8, the last one, begins."""
    last, read, begin = threading.Event(), Snapshot.read, Step.zero_grad

    def wait_and_read(self: Snapshot, shard: LocalShard, start: int, stop: int) -> torch.Tensor:
        last.wait()
        return read(self, shard, start, stop)

    def note(self: Step) -> None:
        begin(self)
        if self._settings.step == 7:
            last.set()

    with (
        mock.patch.object(Snapshot, "read", wait_and_read),
        mock.patch.object(Step, "zero_grad", note),
    ):
        return stop_one_rank_at_step(context, config=config, run_folder=run_folder, step=6)
