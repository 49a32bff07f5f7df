"""A save in the background holds the state of its step, whatever the steps after it change."""

import os
import threading
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from infnet_dist.checkpoint import (
    CheckpointMetadata,
    SavedProgress,
    Saver,
    Throughput,
    files,
    load,
    snapshot,
    writing,
)
from infnet_dist.checkpoint.manifest import DataOrder
from infnet_dist.checkpoint.shards import LocalShard, ModelState
from infnet_dist.checkpoint.snapshot import ShardKey, Snapshot, kernel_tables, shard_key
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.io.filesystem import Folder
from infnet_dist.sharding.build import ShardedModel, build_sharded_model
from infnet_dist.sharding.optimizers import kernels_of, learning_rate_factors
from infnet_dist.training.step import train_step
from tests.mixed import ROWS, SCHEMA, config_of, make_batch
from tests.ranks import run_ranks

READS = 12  # of blocks, which a step precedes
OPTIMIZERS = {"user": "sgd", "item": "adagrad", "tag": "adagrad"}
BY_NODE = {"tag": "table_row_wise", "user": "grid_shard", "place": "table_wise"}
# By case: ranks, workers per node, sharding types where they aren't row-wise, data types.
CASES = {
    "rows": (2, None, {}, {"topic": "fp16", "item": "fp16", "tag": "fp16"}),
    "columns": (2, None, {"user": "column_wise", "item": "column_wise", "tag": "column_wise"}, {}),
    "tables": (3, None, dict.fromkeys(ROWS, "table_wise"), {}),
    "copies": (2, None, {"user": "data_parallel", "tag": "data_parallel"}, {}),
    "nodes": (4, 2, BY_NODE, {}),
}
EXHAUSTIVE = pytest.mark.exhaustive


@pytest.mark.parametrize(
    "case", ["rows", "columns", "tables", "copies", pytest.param("nodes", marks=EXHAUSTIVE)]
)
def test_a_save_holds_the_state_of_its_step(case: str, tmp_path: Path) -> None:
    ranks, workers_per_node, types, data_types = CASES[case]
    types = dict.fromkeys(ROWS, "row_wise") | types
    overrides = {name: {"sharding_types": [kind]} for name, kind in types.items()}
    for name, optimizer in OPTIMIZERS.items():
        overrides[name]["optimizer"] = optimizer
    for name, data_type in data_types.items():
        overrides[name]["data_type"] = data_type
    config = config_of(
        overrides=overrides,
        sparse_optimizer={"name": "rowwise_adagrad", "learning_rate": 0.05},
        dense_optimizer={"ema_decay": 0.9},
    )
    copied = run_ranks(
        save_and_train, ranks, config=config, workers_per_node=workers_per_node, folder=tmp_path
    )
    assert sum(copied) > 0


def save_and_train(
    context: WorkerContext, *, config: Config, workers_per_node: int | None, folder: Path
) -> int:
    """Train on while a checkpoint is written; load it and compare; returns the bytes copied."""
    if workers_per_node:
        os.environ["LOCAL_WORLD_SIZE"] = str(workers_per_node)
        context = replace(context, local_world_size=workers_per_node)
    sharded = build_sharded_model(config, SCHEMA, context)
    shards, kernels = ModelState(sharded).shards(), kernels_of(sharded.sparse_optimizer)
    _, others = kernel_tables(shards, kernels)
    assert all(shard.replicated or not shard.nbytes for shard in others)
    make_step(sharded, config, context, 0)
    before = values_of(shards)

    turns = threading.Semaphore(0)
    read, reads = Snapshot.read, iter(range(READS))

    def wait_and_read(self: Snapshot, shard: LocalShard, start: int, stop: int) -> torch.Tensor:
        if next(reads, None) is not None:
            turns.acquire()
        return read(self, shard, start, stop)

    with (
        mock.patch.object(Snapshot, "read", wait_and_read),
        mock.patch.object(files, "BLOCK_BYTES", 64),
        mock.patch.object(writing, "BLOCK_BYTES", 64),
        mock.patch.object(files, "_FILE_BYTES", 256),
        mock.patch.object(snapshot, "_PART_BYTES", 256),
    ):
        saver = Saver(Folder(folder), sharded, config, context)
        order = DataOrder(content_hash="x", seed=0, shuffle_rows=1)
        saver.save(CheckpointMetadata(SavedProgress(step=1), order, {}, {}, Throughput()))
        taken = saver._snapshot
        assert taken is not None
        slots = taken.most_bytes
        for step in range(1, READS + 1):
            make_step(sharded, config, context, step)
            turns.release()
        saver.wait()
        saver.close()
    after = values_of(shards)
    changed = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert len(changed) > len(before) / 2
    load(Folder(folder / "step-00000001"), sharded, context)
    for key, value in values_of(shards).items():
        assert torch.equal(value, before[key]), key
    return taken.most_bytes - slots


def make_step(sharded: ShardedModel, config: Config, context: WorkerContext, step: int) -> None:
    batch = make_batch(100 * step + context.rank)
    train_step(sharded, batch, learning_rate_factors(config, step, 1000), step=step, seed=0)


def values_of(shards: list[LocalShard]) -> dict[ShardKey, torch.Tensor]:
    return {shard_key(shard): shard.tensor.clone() for shard in shards}
