"""All ranks fail together and at once, and the local launcher raises the root error."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from infnet_dist import checkpoint
from infnet_dist.config.run import Config
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import DataError, PlanError, UserError
from infnet_dist.evaluation.metrics import MetricState
from infnet_dist.io.filesystem import Folder
from infnet_dist.training.setup import TrainingSetup
from infnet_dist.training.trainer import train
from tests.ranks import run_ranks
from tests.runs import make_config, make_tiny_set
from tests.unit.test_split_checks import rewrite, set_value


def fail_on_one(context: WorkerContext, *, culprit: int) -> str:
    def action() -> None:
        if context.rank == culprit:
            raise DataError("row 7 is bad")

    try:
        context.together(action)
    except UserError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("culprit", [0, 2])
def test_an_error_on_one_rank_is_an_error_on_all(culprit: int) -> None:
    assert run_ranks(fail_on_one, 3, culprit=culprit) == ["row 7 is bad"] * 3


def fail_on_first(context: WorkerContext) -> str:
    assert context.on_first(lambda: f"from rank {context.rank}") == "from rank 0"

    def action() -> None:
        raise DataError("row 7 is bad")

    try:
        context.on_first(action)
    except DataError as error:
        return str(error)
    return "no error"


def test_all_ranks_get_the_result_or_the_error_of_rank_0() -> None:
    assert run_ranks(fail_on_first, 3) == ["row 7 is bad"] * 3


def crash(context: WorkerContext, *, how: str) -> None:
    if context.rank == 1:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"user": DataError("bad row"), "bug": KeyError("missing")}[how]
    context.barrier()


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("user", DataError, "bad row"),
        ("bug", RuntimeError, "worker 1: KeyError: 'missing'"),
        ("kill", RuntimeError, r"worker 1 died \(exit code -9\)"),
    ],
)
def test_the_root_error_comes_first(how: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        run_ranks(crash, 2, how=how)


def score(context: WorkerContext, *, parts: list[dict[str, torch.Tensor]]) -> dict:
    state = MetricState(["a", "b"])
    state.update(**parts[context.rank])
    return state.compute(context, "valid")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_metrics_do_not_depend_on_the_number_of_ranks(ranks: int) -> None:
    rng = np.random.default_rng(ranks)
    rows = 101
    logits = torch.from_numpy(rng.normal(size=(rows, 2)).round(1)).float()
    labels = torch.from_numpy(rng.integers(0, 2, (rows, 2))).float()
    whole = {
        "logits_BK": logits,
        "labels_BK": labels,
        "truth_BK": torch.full((rows, 2), 0.5),
        "group_B": torch.from_numpy(rng.integers(0, 9, rows)),
        "weights_B": torch.ones(rows),
    }
    parts = [{k: v[rank::ranks] for k, v in whole.items()} for rank in range(ranks)]
    results = run_ranks(score, ranks, parts=parts)
    assert all(result == results[0] for result in results)
    for k, task in enumerate("ab"):
        expected = roc_auc_score(labels[:, k], logits[:, k])
        assert results[0]["model"][f"valid/auc/{task}"] == pytest.approx(expected, abs=1e-12)
    assert results[0]["optimum"]["valid/auc/a"] == pytest.approx(0.5)


@pytest.fixture
def tiny_set(tmp_path: Path) -> Path:
    return make_tiny_set(tmp_path / "tiny")


def open_and_catch(context: WorkerContext, *, config: Config) -> str:
    try:
        TrainingSetup.open(config, context, splits=["train", "valid"])
    except UserError as error:
        return str(error)
    return "no error"


def test_bad_id_in_one_part_stops_all_ranks_before_training(tiny_set: Path, tmp_path: Path) -> None:
    # part 1 is checked by rank 1 alone
    import tests.unit.test_split_checks as check

    original, check.PART = check.PART, "train/part-00001.parquet"
    try:
        rewrite(tiny_set, "item_id", set_value(3, 5_000))
    finally:
        check.PART = original
    config = make_config(tiny_set, tmp_path)
    messages = run_ranks(open_and_catch, 2, config=config)
    assert messages[0] == messages[1]
    assert "train/part-00001.parquet" in messages[0]


def test_plan_for_another_world(tiny_set: Path, tmp_path: Path) -> None:
    config = make_config(tiny_set, tmp_path, training={"max_steps": 1})
    run_ranks(train, 2, config=config, run_folder=tmp_path / "run")
    plan = tmp_path / "run" / "plan.json"
    planned = make_config(tiny_set, tmp_path, sharding={"plan": str(plan)})
    with pytest.raises(PlanError, match=r"world_size .*2.*3"):
        run_ranks(train, 3, config=planned, run_folder=tmp_path / "other")
    wider = Config.model_validate(planned.model_dump() | {"tables": {"embedding_dim": 16}})
    with pytest.raises(PlanError, match=r"'author' .*13 x 8 fp32.*13 x 16 fp32"):
        run_ranks(train, 2, config=wider, run_folder=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_loss_that_is_not_finite_stops_all_and_is_never_saved(
    tiny_set: Path, tmp_path: Path
) -> None:
    config = make_config(
        tiny_set,
        tmp_path,
        training={"log_every_steps": 5},
        checkpoint={"every_steps": 4},
        sparse_optimizer={"learning_rate": 1e30},
    )
    message = r"in step [23] .*(nan|inf) on rank 0: .*training.max_skipped_steps \(now 0\)"
    with pytest.raises(UserError, match=message):
        run_ranks(train, 2, config=config, run_folder=tmp_path / "run")
    assert checkpoint.newest(Folder(tmp_path / "run" / "checkpoints")) is None
