"""Checkpoints: complete or absent, loadable under any plan and world size, resumable."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from infnet_dist import checkpoint
from infnet_dist.config.run import Config
from infnet_dist.config.tables import TablesConfig
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.planner import make_plan
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.planning.topology import this_topology
from infnet_dist.training.evaluation import evaluate_checkpoint
from infnet_dist.training.setup import TrainingSetup, open_training_set
from infnet_dist.training.trainer import train
from tests.ranks import run_ranks
from tests.runs import make_config, make_tiny_set

OTHER_PLAN = {
    "embedding_dim": 8,
    "overrides": {
        "user": {"sharding_types": ["table_wise"]},
        "item": {"sharding_types": ["table_wise"]},
        "author": {"sharding_types": ["row_wise"]},
    },
}


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_set(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def trained(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, dict]:
    """A finished run of 2 ranks: its config, checkpoint and summary."""
    folder = tmp_path_factory.mktemp("runs")
    config = make_config(tiny_set, folder)
    summary = run_ranks(train, 2, config=config, run_folder=folder / "run")[0]
    return config, Path(summary["checkpoint"]), summary


@pytest.fixture(scope="module")
def state(trained: tuple[Config, Path, dict]) -> dict:
    """All state of the checkpoint, as the 2 ranks that saved it load it."""
    config, path, _ = trained
    return run_ranks(loaded_state, 2, config=config, path=path)[0]


def loaded_state(context: WorkerContext, *, config: Config, path: Path) -> dict:
    """All state after loading `path`, gathered on rank 0."""
    setup = TrainingSetup.open(config, context, splits=[])
    manifest = checkpoint.load(Folder(path), setup.sharded, context)
    whole: dict[str, torch.Tensor] = {}

    def collect(prefix: str, values: dict) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                collect(f"{prefix}/{name}", value)
            elif isinstance(value, ShardedTensor):
                sharded[f"{prefix}/{name}"] = value
            elif isinstance(value, torch.Tensor):
                whole[f"{prefix}/{name}"] = value.detach().clone()

    sharded: dict = {}
    collect("model", setup.sharded.model.state_dict())
    collect("optimizer", setup.sharded.optimizer.state_dict()["state"])
    # A rank that owns no shard of a table may not know its optimizer state: take the union.
    for pieces in context.gather({n: local_pieces(s) for n, s in sharded.items()}):
        for name, (size, shards) in pieces.items():
            tensor = whole.setdefault(name, torch.zeros(size))
            for offsets, part in shards:
                tensor[tuple(slice(o, o + n) for o, n in zip(offsets, part.shape, strict=True))] = (
                    part
                )
    return {"progress": manifest.progress, "state": whole}


def local_pieces(value: ShardedTensor) -> tuple[list[int], list]:
    shards = [(s.metadata.shard_offsets, s.tensor.detach().clone()) for s in value.local_shards()]
    return list(value.size()), shards


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("other_plan", [False, True])
def test_loads_under_any_world_size_and_plan(
    trained: tuple[Config, Path, dict], state: dict, world_size: int, other_plan: bool
) -> None:
    config, path, summary = trained
    raw = config.model_dump() | ({"tables": OTHER_PLAN} if other_plan else {})
    raw["scaling"] = {"num_workers": world_size}
    config = Config.model_validate(raw)
    other = run_ranks(loaded_state, world_size, config=config, path=path)[0]
    assert other["progress"] == state["progress"]
    assert other["progress"].epoch == 1 and other["progress"].consumed == ()
    assert other["state"].keys() == state["state"].keys()
    assert sum("momentum1" in name for name in state["state"]) == 7  # one per table
    for name, value in state["state"].items():
        assert torch.equal(value, other["state"][name]), name

    result = run_ranks(evaluate_checkpoint, world_size, config=config, path=path, split="valid")[0]
    for name, value in summary["metrics"].items():
        assert result["metrics"][name] == pytest.approx(value, abs=1e-6, nan_ok=True)
    assert result["optimum"].keys() == result["metrics"].keys()


def test_loaded_weights_are_the_trained_ones(
    trained: tuple[Config, Path, dict], state: dict
) -> None:
    fresh = run_ranks(fresh_tables, 2, config=trained[0])[0]
    for name, value in fresh.items():
        assert not torch.equal(value, state["state"][f"model/{name}"]), name


def fresh_tables(context: WorkerContext, *, config: Config) -> dict[str, torch.Tensor]:
    setup = TrainingSetup.open(config, context, splits=[])
    return {
        name: value.detach().clone()
        for name, value in setup.sharded.model.state_dict().items()
        if name.startswith("model.dense.tokens")
    }


@pytest.mark.parametrize(
    ("first_ranks", "second_ranks"),
    [(1, 2), (2, 3), pytest.param(2, 2, marks=pytest.mark.exhaustive)],
)
def test_a_stopped_run_resumes(
    tiny_set: Path, tmp_path: Path, first_ranks: int, second_ranks: int
) -> None:
    config = make_config(tiny_set, tmp_path, training={"log_every_steps": 1})
    stopped = make_config(tiny_set, tmp_path, training={"log_every_steps": 1, "max_steps": 17})
    half = run_ranks(train, first_ranks, config=stopped, run_folder=tmp_path / "halves")[0]
    rest = run_ranks(train, second_ranks, config=config, run_folder=tmp_path / "halves")[0]
    assert half["steps"] == 17
    assert half["examples"] == 17 * first_ranks * 32
    assert rest["examples"] == 2400, "each row of the epoch once"
    if first_ranks == second_ranks:
        whole = run_ranks(train, first_ranks, config=config, run_folder=tmp_path / "whole")[0]
        assert rest["steps"] == whole["steps"]
        assert losses(tmp_path / "halves") == losses(tmp_path / "whole")  # bit for bit
        assert rest["metrics"] == pytest.approx(whole["metrics"], abs=0, nan_ok=True)


def losses(run_folder: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["train/loss/total"] for r in records if "train/loss/total" in r}


def test_incomplete_and_damaged(trained: tuple[Config, Path, dict], tmp_path: Path) -> None:
    _, path, _ = trained
    folder = tmp_path / "checkpoints"
    good = folder / path.name
    shutil.copytree(path, good)
    assert checkpoint.read_manifest(Folder(good)).progress.step > 0

    incomplete = folder / "step-99999999"
    shutil.copytree(path, incomplete)
    (incomplete / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-99999999 .*manifest.json"):
        checkpoint.read_manifest(Folder(incomplete))
    assert checkpoint.newest(Folder(folder)) == Folder(good), (
        "an incomplete folder doesn't exist for the loader"
    )

    data = next(good.glob("*.safetensors"))
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"damaged.*{data.name}"):
        checkpoint.read_manifest(Folder(good))
    (good / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoint.read_manifest(Folder(good))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.read_manifest(Folder(folder / "step-00000001"))
    assert checkpoint.newest(Folder(tmp_path / "nowhere")) is None


def test_checkpoint_of_another_model(trained: tuple[Config, Path, dict]) -> None:
    config, path, _ = trained
    raw = config.model_dump()
    raw["tables"]["embedding_dim"] = 16
    other = Config.model_validate(raw)
    before = sorted((p.name, p.stat().st_size) for p in path.iterdir())
    with pytest.raises(CheckpointError, match=r"config.yaml"):
        run_ranks(evaluate_checkpoint, 2, config=other, path=path, split="valid")
    assert before == sorted((p.name, p.stat().st_size) for p in path.iterdir())


def test_checkpoint_with_more_blocks_than_the_model(trained: tuple[Config, Path, dict]) -> None:
    config, path, _ = trained
    raw = config.model_dump()
    raw["model"]["num_blocks"] = 3
    with pytest.raises(CheckpointError, match=r"\d+ tensors more and \d+ fewer"):
        run_ranks(
            evaluate_checkpoint, 2, config=Config.model_validate(raw), path=path, split="valid"
        )


def test_column_wise_weights_can_be_evaluated_under_any_plan(
    tiny_set: Path, tmp_path: Path
) -> None:
    columns = {"overrides": {"user": {"sharding_types": ["column_wise"]}}, "embedding_dim": 256}
    short = {"max_steps": 3}
    config = make_config(tiny_set, tmp_path, tables=columns, training=short)
    summary = run_ranks(train, 2, config=config, run_folder=tmp_path / "run")[0]
    rows = {"overrides": {"user": {"sharding_types": ["row_wise"]}}, "embedding_dim": 256}
    other = make_config(tiny_set, tmp_path, tables=rows, training=short)
    path = Path(summary["checkpoint"])
    result = run_ranks(evaluate_checkpoint, 2, config=other, path=path, split="valid")[0]
    assert result["metrics"] == pytest.approx(summary["metrics"], abs=1e-6, nan_ok=True)
    (line,) = checkpoint.differences_from(Folder(path), planned(other))
    assert "'user'" in line and "2 column shards" in line and "1 in the plan" in line


def planned(config: Config) -> Plan:
    schema = open_training_set(config)[1]
    return make_plan(tables_of_run(config, schema), this_topology("cpu", 2, 2))


def test_a_plan_is_checked_against_the_tensors(trained: tuple[Config, Path, dict]) -> None:
    config, path, _ = trained
    plan = planned(config)
    assert checkpoint.differences_from(Folder(path), plan) == []
    tables = plan.made_for.tables.replace("user", num_embeddings=17)
    tables = tables.model_copy(update={"tables": tables.tables[:-1]})
    other = plan.model_copy(
        update={"made_for": plan.made_for.model_copy(update={"tables": tables})}
    )
    missing, changed = sorted(
        checkpoint.differences_from(Folder(path), other), key=lambda x: "user" in x
    )
    assert "missing in the plan" in missing
    assert "in the checkpoint, 17 x 8 fp32 in the plan" in changed
    wanted = config.model_copy(
        update={
            "tables": TablesConfig.model_validate(
                config.tables.model_dump() | {"overrides": {"item": {"optimizer": "adagrad"}}}
            )
        }
    )
    (line,) = checkpoint.differences_from(Folder(path), planned(wanted))
    assert all(part in line for part in ("'item'", "rowwise_adagrad", " adagrad "))


@pytest.mark.parametrize("every_steps", [2, 3])
def test_the_last_step_is_evaluated_whenever_it_was_saved(
    tiny_set: Path, tmp_path: Path, every_steps: int
) -> None:
    config = make_config(
        tiny_set, tmp_path, training={"max_steps": 4}, checkpoint={"every_steps": every_steps}
    )
    summary = run_ranks(train, 2, config=config, run_folder=tmp_path / "run")[0]
    assert "valid/auc/click" in summary["metrics"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4
    again = run_ranks(train, 2, config=config, run_folder=tmp_path / "run")[0]
    assert again["metrics"] == pytest.approx(summary["metrics"], abs=0, nan_ok=True)


def test_a_run_that_can_t_resume_changes_nothing(tiny_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = make_config(tiny_set, tmp_path, training={"max_steps": 4})
    run_ranks(train, 2, config=config, run_folder=run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    wider = make_config(tiny_set, tmp_path, model={"token_dim": 16})
    smaller = make_config(make_tiny_set(tmp_path / "small", num_rows=1_500), tmp_path)
    reseeded = make_config(tiny_set, tmp_path, run={"seed": 7})
    for other, message in (
        (wider, r"config\.yaml"),
        (smaller, "step 4 .*training set"),
        (reseeded, "step 4 .*run.seed .*0.*7"),
    ):
        with pytest.raises(CheckpointError, match=message):
            run_ranks(train, 2, config=other, run_folder=run)
        assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_no_room_for_a_checkpoint(tiny_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = make_config(
        tiny_set,
        tmp_path,
        training={"max_steps": 4},
        checkpoint={"every_steps": 2, "retry_s": 0},
    )
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-00000004").write_text("in the way")
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        run_ranks(train, 2, config=config, run_folder=run)
    assert checkpoint.newest(Folder(run / "checkpoints")).name == "step-00000002"

    (run / "checkpoints" / "step-00000004").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    (run / "checkpoints" / "step-00000002").write_text("in the way, for a while")
    summary = run_ranks(train, 2, config=config, run_folder=run)[0]
    assert Path(summary["checkpoint"]).name == "step-00000004", "training continued"


def test_only_the_newest_are_kept(tiny_set: Path, tmp_path: Path) -> None:
    config = make_config(
        tiny_set,
        tmp_path,
        training={"max_steps": 9},
        checkpoint={"every_steps": 2, "keep_last": 3},
    )
    run_ranks(train, 2, config=config, run_folder=tmp_path / "run")
    names = [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert names == ["step-00000006", "step-00000008", "step-00000009"]
