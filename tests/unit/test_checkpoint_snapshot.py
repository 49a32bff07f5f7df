"""A snapshot: rows are copied before they change, within a limit, and dropped when written."""

import random
import threading
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from infnet_dist.checkpoint import files, snapshot
from infnet_dist.checkpoint.shards import LocalShard
from infnet_dist.checkpoint.snapshot import Snapshot, ids_by_table, kernel_tables, shard_key

ROWS, WIDTHS = (50, 7, 1), (8, 4, 12)
FEATURES = [0, 0, 1, 2]  # the table of each
BATCH = 3
OPTIMIZERS = [
    EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    EmbOptimType.EXACT_ADAGRAD,
    EmbOptimType.EXACT_SGD,
]


def make_kernel(
    optimizer: EmbOptimType = EmbOptimType.EXACT_ADAGRAD,
    precision: SparseType = SparseType.FP32,
    pooling: PoolingMode = PoolingMode.SUM,
) -> SplitTableBatchedEmbeddingBagsCodegen:
    widths = WIDTHS if pooling != PoolingMode.NONE else (8,) * len(WIDTHS)
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [
            (rows, width, EmbeddingLocation.HOST, ComputeDevice.CPU)
            for rows, width in zip(ROWS, widths, strict=True)
        ],
        feature_table_map=FEATURES,
        optimizer=optimizer,
        weights_precision=precision,
        pooling_mode=pooling,
        learning_rate=0.1,
    )
    for weight in kernel.split_embedding_weights():
        weight.uniform_(-1, 1)
    return kernel


def shards_of(kernel: SplitTableBatchedEmbeddingBagsCodegen) -> list[LocalShard]:
    """All tensors of a kernel, as shards that begin at row 100 of their tables."""
    named = {f"w{i}": tensor for i, tensor in enumerate(kernel.split_embedding_weights())}
    for i, states in enumerate(kernel.split_optimizer_states()):
        named |= {f"s{i}-{number}": tensor for number, tensor in enumerate(states)}
    return [
        LocalShard(
            name,
            (100 + len(tensor), *tensor.shape[1:]),
            (100, *(0 for _ in tensor.shape[1:])),
            tensor,
            replicated=False,
        )
        for name, tensor in named.items()
    ]


def make_step(
    kernel: SplitTableBatchedEmbeddingBagsCodegen, generator: torch.Generator, *, most_ids: int = 4
) -> None:
    """A lookup of random ids, some of them out of range, and its update."""
    lengths = torch.randint(0, most_ids + 1, (len(FEATURES) * BATCH,), generator=generator)
    rows = torch.tensor([ROWS[table] for table in FEATURES for _ in range(BATCH)])
    ids = (
        torch.rand(int(lengths.sum()), generator=generator) * rows.repeat_interleave(lengths)
    ).long()
    ids[torch.rand(len(ids), generator=generator) < 0.02] = 10**6
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    kernel(indices=ids, offsets=offsets).sum().backward()


def small(part_bytes: int = 300, limit_bytes: int = 2**26) -> mock._patch:
    return mock.patch.multiple(
        snapshot, _PART_BYTES=part_bytes, _LEAST_LIMIT_BYTES=limit_bytes, SAVE_COPY_SHARE=0
    )


def read_all(taken: Snapshot) -> Iterator[tuple[LocalShard, int, torch.Tensor]]:
    """All blocks of 5 rows, released part by part; some parts are read twice."""
    for number, part in enumerate(taken.parts()):
        for _ in range(1 + number % 2):
            for shard in part:
                for start in range(0, len(shard.tensor), 5):
                    stop = min(start + 5, len(shard.tensor))
                    yield shard, start, taken.read(shard, start, stop)
        taken.release(part)


class Assembled:
    """Blocks that were read, put together and compared with the shards as they were."""

    def __init__(self, shards: list[LocalShard]) -> None:
        self.before = {shard.name: shard.tensor.clone() for shard in shards}
        self.found = {name: torch.full_like(t, torch.nan) for name, t in self.before.items()}

    def add(self, shard: LocalShard, start: int, block: torch.Tensor) -> None:
        first = shard.offsets[0] - 100 + start
        self.found[shard.name][first : first + len(block)] = block

    def is_equal(self) -> bool:
        return all(torch.equal(self.found[name], value) for name, value in self.before.items())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("precision", "pooling"),
    [
        (SparseType.FP32, PoolingMode.SUM),
        (SparseType.FP16, PoolingMode.MEAN),
        (SparseType.FP32, PoolingMode.NONE),
    ],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_blocks_are_those_of_the_snapshot(
    optimizer: EmbOptimType, precision: SparseType, pooling: PoolingMode, seed: int
) -> None:
    kernel = make_kernel(optimizer, precision, pooling)
    generator, dice = torch.Generator().manual_seed(seed), random.Random(seed)
    make_step(kernel, generator)
    shards = shards_of(kernel)
    tables, others = kernel_tables(shards, [kernel])
    assert not others and sum(len(table.shards) for table in tables) == len(shards)
    assembled = Assembled(shards)
    with small():
        taken = Snapshot(tables, others)
    for shard, start, block in read_all(taken):
        assembled.add(shard, start, block)
        for _ in range(dice.randrange(3)):
            make_step(kernel, generator)
    taken.close()
    taken.detach()
    assert assembled.is_equal()
    changed = [not torch.equal(assembled.before[s.name], s.tensor) for s in shards if s.nbytes]
    assert all(changed)
    assert not kernel._forward_pre_hooks


@pytest.mark.parametrize("copies", [True, False])
def test_a_row_may_change_while_its_block_is_read(copies: bool) -> None:
    """A step after a block was found, and before it is copied; without copies it would show."""
    kernel, generator = make_kernel(), torch.Generator().manual_seed(0)
    shards = shards_of(kernel)
    assembled = Assembled(shards)

    def rows_while_training(shard: LocalShard, start: int, stop: int) -> torch.Tensor:
        rows = files.rows_of(shard, start, stop)
        make_step(kernel, generator)
        return rows

    with small():
        taken = Snapshot(*kernel_tables(shards, [kernel]))
    if not copies:
        taken.detach()
    with mock.patch.object(snapshot, "rows_of", rows_while_training):
        for shard, start, block in read_all(taken):
            assembled.add(shard, start, block)
    assert assembled.is_equal() == copies


def test_copies_take_no_more_than_their_limit() -> None:
    """Steps wait for the writer, which reads slowly; the two run in threads of their own."""
    kernel, generator = make_kernel(), torch.Generator().manual_seed(0)
    shards = shards_of(kernel)
    tables, others = kernel_tables(shards, [kernel])
    assembled = Assembled(shards)
    limit = sum(ROWS) + 6 * (4 + 2 * 4 * 8)  # 6 rows of the first table, their state and number
    with small(limit_bytes=limit):
        taken = Snapshot(tables, others)
    stepped = threading.Semaphore(0)

    def write() -> None:
        for shard, start, block in read_all(taken):
            assembled.add(shard, start, block)
            stepped.acquire(timeout=0.05)
        taken.close()

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(40):
        make_step(kernel, generator, most_ids=1)
        stepped.release()
    writer.join()
    assert assembled.is_equal()
    assert sum(ROWS) < taken.most_bytes <= limit
    assert taken.waited_s > 0


def test_a_step_that_needs_more_than_the_limit_waits_until_all_is_written() -> None:
    kernel, generator = make_kernel(), torch.Generator().manual_seed(0)
    shards = shards_of(kernel)
    assembled = Assembled(shards)
    with small(limit_bytes=0):
        taken = Snapshot(*kernel_tables(shards, [kernel]))
    step = threading.Thread(target=make_step, args=(kernel, generator))
    step.start()
    for shard, start, block in read_all(taken):
        assembled.add(shard, start, block)
    step.join()
    assert assembled.is_equal()
    assert taken.most_bytes == sum(ROWS)


def test_a_save_that_is_given_up_lets_steps_continue() -> None:
    kernel, generator = make_kernel(), torch.Generator().manual_seed(0)
    with small(limit_bytes=0):
        taken = Snapshot(*kernel_tables(shards_of(kernel), [kernel]))
    step = threading.Thread(target=make_step, args=(kernel, generator))
    step.start()
    taken.close()
    step.join()
    make_step(kernel, generator)


def test_an_evaluation_copies_nothing() -> None:
    kernel, generator = make_kernel(), torch.Generator().manual_seed(0)
    taken = Snapshot(*kernel_tables(shards_of(kernel), [kernel]))
    with torch.no_grad():
        offsets = torch.arange(len(FEATURES) * BATCH + 1)
        kernel(indices=torch.zeros(len(offsets) - 1, dtype=torch.int64), offsets=offsets)
    assert taken.most_bytes == sum(ROWS)
    make_step(kernel, generator)
    assert taken.most_bytes > sum(ROWS)


def test_what_belongs_to_no_kernel_is_told_apart() -> None:
    kernel = make_kernel()
    dense = LocalShard("dense", (3,), (0,), torch.zeros(3), replicated=True)
    empty = LocalShard("empty", (0, 4), (0, 0), torch.zeros(0, 4), replicated=False)
    shards = [*shards_of(kernel), dense, empty]
    tables, others = kernel_tables(shards, [kernel])
    assert others == [dense, empty]
    taken = Snapshot(tables, others)
    assert {shard_key(s) for part in taken.parts() for s in part} == set(map(shard_key, shards))
    assert all(len(part) == 2 for part in taken.parts()[:3])  # rows and their state
    taken.close()
    taken.detach()


def test_ids_of_batches_of_different_sizes() -> None:
    lengths = torch.tensor([1, 2, 0, 3, 1])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    found = ids_by_table([4, 1, 4], torch.arange(7), offsets, [[1, 1], [1, 0], [2, 0]])
    assert [(table, ids.tolist()) for table, ids in found] == [(4, [0, 1, 2]), (4, [3, 4, 5, 6])]


def test_an_id_out_of_range_changes_row_0() -> None:
    kernel = make_kernel()
    shards = shards_of(kernel)
    assembled = Assembled(shards)
    taken = Snapshot(*kernel_tables(shards, [kernel]))
    offsets = torch.tensor([0, 1, *[1] * (len(FEATURES) * BATCH - 1)])
    kernel(indices=torch.tensor([ROWS[0]]), offsets=offsets).sum().backward()
    assert not torch.equal(shards[0].tensor[0], assembled.before["w0"][0])
    for shard, start, block in read_all(taken):
        assembled.add(shard, start, block)
    assert assembled.is_equal()
