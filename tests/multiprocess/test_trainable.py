"""Frozen and slowed parts of a sharded model: bitwise unchanged, or changed by the factor."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from infnet_dist.checkpoint.shards import ModelState
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.distributed.control import ControlFlags
from infnet_dist.errors import ConfigError
from infnet_dist.sharding.build import ShardedModel, build_sharded_model
from infnet_dist.training.step import EagerStep, PipelinedStep, Step, StepSettings
from infnet_dist.training.trained_parts import trained_parts
from infnet_dist.training.trainer import train
from tests.mixed import ROWS, SCHEMA, config_of, make_batch
from tests.ranks import run_ranks
from tests.run_files import assert_same_but_for_a_line, tensors
from tests.runs import make_config, make_tiny_set, stop_one_rank_at_step

# Each optimizer of a CPU, sharded and data-parallel, in both homes, a half-precision table.
OVERRIDES: dict[str, dict[str, Any]] = {
    "user": {"sharding_types": ["data_parallel"]},
    "tag": {"sharding_types": ["data_parallel"], "optimizer": "adagrad"},
    "place": {"sharding_types": ["row_wise"], "data_type": "fp16"},
    "cross": {"sharding_types": ["row_wise"], "embedding_dim": 8},
    "topic": {"sharding_types": ["row_wise"], "optimizer": "sgd"},
    "item": {"sharding_types": ["row_wise"], "optimizer": "adagrad"},
    "author": {"sharding_types": ["table_wise"]},
}
ONE_HALF = ("user", "place", "item", "dense.tower")
OTHER_HALF = ("tag", "cross", "topic", "author", "dense.tokens", "dense.first_order")
DENSE: dict[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.1, "ema_decay": 0.5, "first_order": {"name": "ftrl"}},
    "adagrad": {"weight_decay": 0.1},
    "sgd": {"weight_decay": 0.1, "momentum": 0.9, "max_gradient_norm": 0.5},
}
State = dict[tuple[str, tuple[int, ...]], torch.Tensor]  # by tensor and place


def is_of(part: str, tensor: str) -> bool:
    """Whether a tensor in a checkpoint is of a table or module."""
    return f".tables.{part}." in tensor or f".{part}." in tensor


def state_of(sharded: ShardedModel) -> State:
    return {(s.name, s.offsets): s.tensor.clone() for s in ModelState(sharded).shards()}


def train_steps(
    sharded: ShardedModel, context: WorkerContext, kind: type[Step], steps: int
) -> None:
    step, numbers = kind(sharded, context, seed=0), count()
    batches = iter([make_batch(100 * i + context.rank) for i in range(steps)])
    for _ in step.over(batches, lambda: StepSettings(next(numbers))):
        pass
    step.close()


def build_from(config: Config, context: WorkerContext, begin: State) -> ShardedModel:
    sharded = build_sharded_model(config, SCHEMA, context)
    state = ModelState(sharded)
    for shard in state.shards():
        shard.tensor.copy_(begin[shard.name, shard.offsets])
    state.load_state_dict()
    return sharded


def continue_trained(
    context: WorkerContext, *, before: Config, after: Config, kind: type[Step]
) -> dict[str, State]:
    """Three steps, and from there: one under the same config, and one and five under another."""
    sharded = build_sharded_model(before, SCHEMA, context)
    train_steps(sharded, context, kind, 3)
    begin = state_of(sharded)
    found = {"begin": begin}
    for name, config, steps in (("all", before, 1), ("one", after, 1), ("five", after, 5)):
        other = build_from(config, context, begin)
        train_steps(other, context, kind, steps)
        found[name] = state_of(other)
    return found


def mixed(**sections: Any) -> Config:
    config = config_of(overrides=OVERRIDES, **sections)
    return config.model_copy(
        update={"model": config.model.model_copy(update={"first_order": True})}
    )


@pytest.mark.parametrize("frozen", [ONE_HALF, OTHER_HALF])
@pytest.mark.parametrize(
    ("ranks", "kind", "dense"),
    [
        (1, EagerStep, "adamw"),
        (2, EagerStep, "adagrad"),
        (2, PipelinedStep, "adamw"),
        pytest.param(1, PipelinedStep, "sgd", marks=pytest.mark.exhaustive),
        (2, EagerStep, "sgd"),
    ],
)
def test_frozen_parts_keep_every_bit(
    ranks: int, kind: type[Step], dense: str, frozen: tuple[str, ...]
) -> None:
    options = {"name": dense, "learning_rate": 0.01} | DENSE[dense]
    sections = {"dense_optimizer": options}
    before = mixed(**sections)
    after = mixed(**sections, training={"trainable": dict.fromkeys(frozen, 0)})
    moved = set()
    for found in run_ranks(continue_trained, ranks, before=before, after=after, kind=kind):
        for (name, offsets), value in found["begin"].items():
            place, is_same = (name, offsets), torch.equal(found["five"][name, offsets], value)
            if any(is_of(part, name) for part in frozen):
                assert is_same, f"frozen: {name}"
            elif name.startswith("model.") and not options.get("max_gradient_norm"):
                # Autograd rounds otherwise where weights of the tower need no gradient.
                torch.testing.assert_close(
                    found["one"][place], found["all"][place], rtol=0, atol=1e-5
                )
            if not is_same:
                moved.add(name)
    for part in {*ONE_HALF, *OTHER_HALF} - set(frozen):
        assert any(is_of(part, name) for name in moved), f"{part} is trained"


def test_half_the_factor_is_half_the_step() -> None:
    """Of SGD from rows that are 0, exactly, since a step is then the product alone."""
    tables = {
        name: options | {"optimizer": "sgd", "initialization": "zeros"}
        for name, options in OVERRIDES.items()
        if name != "place"  # in fp16 a half may round
    }
    steps = []
    for factor in (1.0, 0.5):
        config = config_of(overrides=tables, training={"trainable": {"*": factor}})
        steps.append(run_ranks(rows_after_a_step, 2, config=config))
    for whole, half in zip(*steps, strict=True):
        for place in (place for place in whole if not is_of("place", place[0])):
            assert whole[place].any()
            assert torch.equal(whole[place], 2 * half[place]), place


def rows_after_a_step(context: WorkerContext, *, config: Config) -> State:
    sharded = build_sharded_model(config, SCHEMA, context)
    train_steps(sharded, context, EagerStep, 1)
    tables = ModelState(sharded, with_optimizer=False).shards()
    return {(s.name, s.offsets): s.tensor.clone() for s in tables if ".tables." in s.name}


def test_only_ids_are_trained_and_no_dense_gradient_is_exchanged() -> None:
    for exchanged, moved, lines in run_ranks(train_ids_only, 2):
        assert max(exchanged, default=0) <= len(ControlFlags()), "control flags alone"
        assert moved == {"tables": True, "dense": False}
        (line,) = lines
        assert line.startswith("frozen: ") and "tables" not in line
        numbers = line.removeprefix("frozen: ").split(" of ")
        assert numbers[0] == numbers[1].split()[0], "all dense parameters"


def train_ids_only(context: WorkerContext) -> tuple[list[int], dict[str, bool], list[str]]:
    """Sizes of all-reduces from Python, which parts moved, and what is logged."""
    config = config_of(overrides=OVERRIDES, training={"ids_only": True})
    sharded = build_sharded_model(config, SCHEMA, context)
    begin, original, sizes = state_of(sharded), dist.all_reduce, []

    def counted(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        sizes.append(tensor.numel())
        return original(tensor, *args, **options)

    dist.all_reduce = counted
    train_steps(sharded, context, EagerStep, 2)
    dist.all_reduce = original
    end = state_of(sharded)
    same = {
        part: [torch.equal(end[place], begin[place]) for place in begin if part in place[0]]
        for part in ("tables", "dense")
    }
    moved = {part: not all(equal) for part, equal in same.items()}
    return sizes, moved, trained_parts(sharded)


def test_what_is_logged() -> None:
    overrides = {"topic": {"trainable": False}}
    trainable = {"user": 0, "item": 0.5, "dense": 0.1}
    config = config_of(overrides=overrides, training={"trainable": trainable})
    frozen, slowed = run_ranks(logged, 1, config=config)[0]
    total = sum(ROWS.values())
    assert frozen == f"frozen: 2 of 7 tables ({ROWS['user'] + ROWS['topic']} of {total} rows)"
    assert f"1 of 7 tables ({ROWS['item']} of {total} rows), " in slowed
    assert not run_ranks(logged, 1, config=config_of())[0]


def logged(context: WorkerContext, *, config: Config) -> list[str]:
    return trained_parts(build_sharded_model(config, SCHEMA, context))


@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"trainable": {"itm": 0}}, "'itm'.*'item'"),
        ({"trainable": {"dense.towr": 0}}, "'dense.towr'.*'dense.tower'"),
        ({"trainable": {"*": 0}}, "nothing would be trained"),
        ({"trainable": {"[a-z]*": 0}, "ids_only": True}, "training.ids_only"),
        ({"trainable": {"dense.first_order": 0.5}}, "dense_optimizer.first_order.alpha"),
    ],
)
def test_factors_that_are_refused(training: dict[str, Any], named: str) -> None:
    config = mixed(training=training, dense_optimizer={"first_order": {"name": "ftrl"}})
    with pytest.raises(ConfigError, match=named):
        run_ranks(logged, 1, config=config)


# --------------------------------------------------------------------------------------- resuming


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_set(tmp_path_factory.mktemp("data") / "tiny")


@pytest.mark.exhaustive
def test_a_partly_frozen_run_resumes_bit_identically(tiny_set: Path, tmp_path: Path) -> None:
    training = {"log_every_steps": 7, "trainable": {"dense.tower": 0.5, "*blocks.0*": 0, "item": 0}}
    dense = {"ema_decay": 0.8, "weight_decay": 0.1}
    config = make_config(tiny_set, tmp_path, training=training, dense_optimizer=dense)
    run_ranks(train, 3, config=config, run_folder=tmp_path / "whole")
    stopped = {"config": config, "run_folder": tmp_path / "run"}
    run_ranks(stop_one_rank_at_step, 3, step=9, **stopped)
    run_ranks(train, 3, **stopped)
    assert_same_but_for_a_line(tmp_path / "run", tmp_path / "whole", step=11)


@pytest.mark.exhaustive
def test_another_part_may_be_frozen_in_the_next_attempt(tiny_set: Path, tmp_path: Path) -> None:
    """What the second attempt freezes is as the first one left it, optimizer state and all."""
    run = tmp_path / "run"
    configs = [
        make_config(tiny_set, tmp_path, training={"trainable": trainable})
        for trainable in ({"dense.tower": 0, "user": 0}, {"dense.tokens": 0, "item": 0})
    ]
    run_ranks(stop_one_rank_at_step, 2, config=configs[0], run_folder=run, step=9)
    first = tensors(run)
    run_ranks(train, 2, config=configs[1], run_folder=run)
    second = tensors(run)
    same = {name for name in first if torch.equal(first[name], second[name])}
    for part, is_frozen in {"dense.tokens": 1, "item": 1, "dense.tower": 0, "user": 0}.items():
        of_part = {name for name in first if is_of(part, name)}
        assert of_part
        assert of_part <= same if is_frozen else of_part - same, part
