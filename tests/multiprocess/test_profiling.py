"""Phases, bytes and FLOPs of a step, on ranks, against counts by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_dist.batch import BatchRows, RankingBatch
from infnet_dist.config.run import Config, DataConfig
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.profiling import phases
from infnet_dist.profiling.benchmark import benchmark
from infnet_dist.profiling.counts import StepCounts
from infnet_dist.profiling.instrument import clocked
from infnet_dist.profiling.phases import PHASES, PhaseClock
from infnet_dist.profiling.result import BenchmarkResult
from infnet_dist.schema import (
    CategoricalFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
)
from infnet_dist.sharding.build import build_sharded_model
from infnet_dist.training.step import EagerStep, StepSettings
from tests.ranks import run_ranks
from tests.runs import make_config, make_tiny_set

# One table of each home: a field by table-wise sharding, a history by rows.
ROWS, WIDTH, TOKEN, BATCH, LENGTH, TASKS = 20, 8, 4, 3, 2, 2
SCHEMA = Schema(
    tables=(Table(name="user", num_embeddings=ROWS), Table(name="item", num_embeddings=ROWS)),
    categorical=(CategoricalFeature(name="user", table="user", column="user"),),
    sequences=(
        SequenceFeature(
            name="click",
            attributes=(SequenceAttribute(name="item", table="item", column="items"),),
            max_length=LENGTH,
        ),
    ),
    tasks=(Task(name="click", column="click"), Task(name="like", column="like")),
    group_column="user",
    time_column="time",
)
# By rank the items of each row; rank 0 has the rows of items 0 to 9, rank 1 those of 10 to 19.
HISTORIES = [[[1, 12], [13], []], [[2, 3], [14, 19], [9]]]
SENT_IDS = [2, 3]  # to the other rank
INT64, FLOAT32 = 8, 4


def small_config() -> Config:
    types = {"user": ["table_wise"], "item": ["row_wise"]}
    return Config(
        data=DataConfig(path=Path("unused"), batch_size=BATCH),
        tables={
            "embedding_dim": WIDTH,
            "overrides": {name: {"sharding_types": one} for name, one in types.items()},
        },
        model={
            "name": "stack",
            "token_dim": TOKEN,
            "sequence": {"name": "none"},
            "interaction": {"name": "linear"},
            "head": {"name": "linear"},
        },
    )


def batch_of(rank: int) -> RankingBatch:
    users, history = [[5], [6], [7]], HISTORIES[rank]
    lists = {"user": users, "click.item": history}
    assert set(SCHEMA.unweighted_keys) == set(lists)
    ordered = [lists[key] for key in SCHEMA.unweighted_keys]
    return RankingBatch(
        sparse_features=KeyedJaggedTensor(
            keys=list(SCHEMA.unweighted_keys),
            values=torch.tensor([i for rows in ordered for row in rows for i in row]),
            lengths=torch.tensor([len(row) for rows in ordered for row in rows]),
            stride=BATCH,
        ),
        weighted_features=None,
        vectors_BV=torch.empty(BATCH, 0),
        dense_BN=torch.empty(BATCH, 0),
        time_gap_BL=torch.zeros(BATCH, LENGTH, dtype=torch.uint8),
        labels_BK=torch.zeros(BATCH, TASKS),
        weights_B=torch.ones(BATCH),
        group_B=torch.zeros(BATCH, dtype=torch.int64),
        truth_BK=torch.full((BATCH, TASKS), torch.nan),
        rows=BatchRows(epoch=0, intervals=((0, BATCH),)),
    )


def counted(context: WorkerContext) -> dict[str, Any]:
    sharded = build_sharded_model(small_config(), SCHEMA, context)
    step, clock = EagerStep(sharded, context, seed=0), PhaseClock(context.device)
    step.train(batch_of(context.rank), StepSettings(0))
    with clocked(step, sharded, clock), StepCounts(clock) as counts:
        step.train(batch_of(context.rank), StepSettings(1))
    step.close()
    replaced = [m for m in sharded.model.modules() if "forward" in vars(m)]
    assert not replaced, "the model is as it was"
    return {
        "sent": {phase: n for phase, n in counts.sent_bytes.items() if n},
        "flops": {phase: n for phase, n in counts.flops.items() if n},
        "owner": sharded.plan.tables["user"].places[0],
    }


def test_bytes_and_flops_are_those_counted_by_hand() -> None:
    for rank, found in enumerate(run_ranks(counted, 2)):
        owns, other = found["owner"] == rank, 1 - rank
        numbers = 2 * 3 * INT64  # both collections: of lengths and ids, and the batch size
        lengths = BATCH * INT64
        to_owner = lengths + BATCH * INT64
        # Tokens, norm, head; TASKS biases take as much as 4, so that parameters are aligned.
        parameters = (WIDTH + 1) * TOKEN + 2 * TOKEN + TOKEN * TASKS + 4
        sent = {
            phases.INPUT_DIST: numbers + lengths + SENT_IDS[rank] * INT64 + (not owns) * to_owner,
            phases.OUTPUT_DIST: (SENT_IDS[other] + owns * BATCH) * WIDTH * FLOAT32,
            phases.OUTPUT_DIST_BACKWARD: (SENT_IDS[rank] + (not owns) * BATCH) * WIDTH * FLOAT32,
            phases.ALL_REDUCE: parameters * FLOAT32,  # 2 (W - 1) / W is 1 for 2 ranks
            phases.FLAGS: 4 * 4,  # nonfinite loss, save, stop, publish
        }
        assert found["sent"] == sent
        tokens, head = 2 * BATCH * WIDTH * TOKEN, 2 * BATCH * TOKEN * TASKS
        assert found["flops"] == {
            phases.TOKENS: tokens,
            phases.TOWER: head,
            phases.BACKWARD: 2 * (tokens + head),  # gradients of inputs and weights
        }


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_set(tmp_path_factory.mktemp("data") / "tiny")


def test_a_benchmark_measures_all_phases_of_every_rank(tiny_set: Path, tmp_path: Path) -> None:
    """With accumulation, so that not every step reduces gradients."""
    config = make_config(tiny_set, tmp_path / "runs", training={"accumulate_steps": 2})
    found = run_ranks(benchmark, 2, config=config, steps=4, warmup=2, trace=True)
    result: BenchmarkResult = found[0][0]
    assert result == found[1][0]
    assert result.pipelined
    assert (result.world_size, len(result.ranks), result.counted_steps) == (2, 2, 4)
    for rank in result.ranks:
        assert list(rank.phases) == list(PHASES)
        assert all(phase.ms > 0 for phase in rank.phases.values())
        total = sum(phase.ms for phase in rank.phases.values())
        assert total == pytest.approx(rank.phases_step_ms)
        assert sum(phase.share for phase in rank.phases.values()) == pytest.approx(1)
        assert all(ms > 0 for ms in (*rank.reader_ms.values(), rank.eager_step_ms, rank.step_ms))
        assert rank.overlap == pytest.approx(rank.eager_step_ms / rank.step_ms)
        assert rank.flops == sum(phase.flops for phase in rank.phases.values())
        peak = rank.peak_flops_per_s["float32"]
        assert peak and rank.mfu == pytest.approx(rank.flops / peak / rank.step_ms * 1000)
    (_, trace), (_, nothing) = found
    assert nothing is None
    events = json.loads(trace)["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"step 0", "step 1", "step 2"} <= names
    assert any(str(name).startswith("## start_sparse_data_dist") for name in names)
    assert not (tmp_path / "runs").exists()
