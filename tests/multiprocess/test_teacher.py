"""A teacher: its probabilities, the loss against them, and runs that stop and resume."""

import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from infnet_dist import checkpoint
from infnet_dist.batch import RankingBatch
from infnet_dist.config.run import Config, load_config
from infnet_dist.config.teacher import TeacherConfig
from infnet_dist.data.manifest import read_manifest
from infnet_dist.data.reader import Reader
from infnet_dist.data.schema_changes import adapt_schema, missing_inputs
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.errors import CheckpointError, ConfigError, PlanError
from infnet_dist.io.filesystem import Folder
from infnet_dist.lookups import Lookups, table_of
from infnet_dist.model.build import build_train_model
from infnet_dist.model.losses import MultiTaskLoss
from infnet_dist.model.train_model import TrainModel
from infnet_dist.planning.topology import Topology, load_topology
from infnet_dist.sharding.build import fill_tables
from infnet_dist.training.selected_schema import selected_schema
from infnet_dist.training.setup import TrainingSetup, open_for_training
from infnet_dist.training.step import StepSettings, make_step
from infnet_dist.training.teacher import open_teacher
from infnet_dist.training.trainer import train
from infnet_dist.warm_start.source import find_checkpoint
from infnet_dist.warm_start.teacher import common_tasks
from infnet_dist.warm_start.teacher_inputs import TeacherInputs
from tests.multiprocess.test_out_of_vocabulary import ROWS, with_items, with_new
from tests.ranks import run_ranks
from tests.run_files import assert_same, tensors
from tests.runs import make_config, make_tiny_set, stop_one_rank_at_step

FEWER = ["user", "item", "duration", "item_age", "click", "interests", "content"]
CROSSES = {"user_item": {"features": ["user", "item"], "num_embeddings": 50}}
MORE_CROSSES = {"tab_author": {"features": ["tab", "author"], "num_embeddings": 40}, **CROSSES}
TOWER = {"token_dim": 16, "num_hubs": 2}  # not the teacher's
READ = {"batch_size": 32, "shuffle_rows": 1_000}
TASK_WEIGHTS = {"click": 0.5, "like": 2.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with every kind of feature, and weights of rows."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    return make_tiny_set(
        folder, num_tags=12, num_interests=9, content_dim=4, sample_weights=True, num_rows=2_000
    )


@pytest.fixture(scope="module")
def old(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the teacher: fewer features, and two tasks."""
    folder = tmp_path_factory.mktemp("runs")
    config = make_config(
        data,
        folder,
        data={**READ, "features": FEWER, "crosses": CROSSES, "tasks": ["like", "long_view"]},
        training={"max_steps": 25},
        dense_optimizer={"learning_rate": 0.02, "ema_decay": 0.5},
    )
    run_ranks(train, 2, config=config, run_folder=folder / "test" / "teacher")
    return folder / "test" / "teacher"


def student(data: Path, runs: Path, teacher: Any, /, **changes: Any) -> Config:
    training = {"max_steps": 12, "log_every_steps": 4, "task_weights": TASK_WEIGHTS}
    settings = {
        "data": {**READ, "crosses": MORE_CROSSES},
        "model": TOWER | {"dropout": 0.1},
        "training": training | {"teacher": teacher} | changes.pop("training", {}),
        "checkpoint": {"every_steps": 4, "keep_last": 9},
    }
    return make_config(data, runs, **settings | changes)


def unsharded(config: Config, schema: Any, state: Mapping[str, torch.Tensor] | None) -> TrainModel:
    """The model with a checkpoint's weights, or with its initial ones."""
    model = build_train_model(config, schema)
    if state is None:
        fill_tables(model, Lookups(schema, config), seed=config.run.seed)
        return model
    found = {}
    for name in model.state_dict():
        table = table_of(name)
        found[name] = state[f"model.tables.{table}.weight" if table else f"model.{name}"]
    model.load_state_dict(found)
    return model


def logits_of(model: TrainModel, batch: RankingBatch) -> torch.Tensor:
    logits_BK: torch.Tensor = model.model(
        batch.sparse_features,
        batch.weighted_features,
        batch.vectors_BV,
        batch.dense_BN,
        batch.time_gap_BL,
    )
    return logits_BK


def teacher_model(old: Path) -> tuple[TrainModel, Any]:
    """The teacher, unsharded, and its schema."""
    folder = checkpoint.newest(Folder(old / "checkpoints"))
    assert folder is not None
    schema = checkpoint.read_schema(folder, checkpoint.read_manifest(folder))
    config = load_config(str(folder / "config.yaml"))
    return unsharded(config, schema, tensors(old)).eval(), schema


def first_step(
    context: WorkerContext, *, config: Config, folder: Path
) -> tuple[RankingBatch, float]:
    """The batch of the first step, with the teacher's scores, and the loss."""
    setup = TrainingSetup.open(config, context, splits=["train"])
    step = make_step(setup, open_teacher(setup, folder, 0, None))
    batches = islice(setup.reader("train", shuffle=True).batches(), 1)
    (result,) = step.over(batches, lambda: StepSettings(0))
    return result.batch, result.loss.item()


@pytest.mark.parametrize("ranks, pipeline", [(1, "none"), (2, "none"), (2, "sparse_dist")])
def test_scores_and_loss_by_hand(
    data: Path, old: Path, tmp_path: Path, ranks: int, pipeline: str
) -> None:
    """Both models unsharded; the teacher reads the rows by its own schema."""
    teacher = {"source": str(old), "weight": 0.7}
    config = student(data, tmp_path, teacher, model=TOWER, training={"pipeline": pipeline})
    config = config.model_copy(
        update={"tables": config.tables.model_copy(update={"unknown_id_rate": 0.0})}
    )
    found = run_ranks(first_step, ranks, config=config, folder=tmp_path)
    model, trained = teacher_model(old)
    manifest, schema = open_for_training(config)
    pupil = unsharded(config, schema, None)
    tasks = [task.name for task in schema.tasks]
    for rank, (batch, loss) in enumerate(found):
        place = (data, manifest, trained, "train", 32, rank, ranks)
        own = next(Reader(*place, shuffle_rows=1_000).batches())
        with torch.no_grad():
            scores_BK = dict(
                zip((t.name for t in trained.tasks), logits_of(model, own).sigmoid().T, strict=True)
            )
            logits_BK = logits_of(pupil, batch)
        assert batch.teacher_BK is not None and set(scores_BK) == {"like", "long_view"}
        expected = torch.zeros(())
        for k, task in enumerate(tasks):
            targets = [(1.0, batch.labels_BK[:, k])]
            if task in scores_BK:
                assert torch.allclose(batch.teacher_BK[:, k], scores_BK[task], atol=1e-6)
                targets.append((0.7, scores_BK[task]))
            else:
                assert batch.teacher_BK[:, k].isnan().all()
            for weight, target_B in targets:
                loss_B = functional.binary_cross_entropy_with_logits(
                    logits_BK[:, k], target_B, weight=batch.weights_B, reduction="none"
                )
                expected = expected + weight * TASK_WEIGHTS.get(task, 1.0) * loss_B.mean()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        spread = batch.teacher_BK[:, tasks.index("long_view")].std()
        assert spread > 0.01 and len(set(batch.weights_B.tolist())) > 1


def test_a_row_counts_by_its_weight_and_label() -> None:
    """Padding and unknown labels count as little against the teacher as against labels."""
    logits = torch.tensor([[0.3], [-1.0], [2.0]], requires_grad=True)
    labels, weights = torch.tensor([[1.0], [torch.nan], [0.0]]), torch.tensor([2.0, 1.0, 0.0])
    loss, per_task = MultiTaskLoss([3.0], teacher_weight=0.5)(
        logits, labels, weights, torch.tensor([[0.9], [0.2], [0.4]])
    )
    hard, soft = (
        functional.binary_cross_entropy_with_logits(torch.tensor(0.3), torch.tensor(y)) * 2 / 3
        for y in (1.0, 0.9)
    )
    assert per_task.item() == pytest.approx(hard.item())
    assert loss.item() == pytest.approx(3 * (hard + 0.5 * soft).item())
    loss.backward()
    assert logits.grad is not None and logits.grad[1:].count_nonzero() == 0


@pytest.mark.exhaustive
def test_the_inputs_are_those_that_an_evaluation_reads(data: Path, tmp_path: Path) -> None:
    """Every key, column and bucket, also of ids that the vocabulary gained since."""
    grown = with_items(data, tmp_path / "grown", with_new)
    few = make_config(data, tmp_path, data={**READ, "features": FEWER, "crosses": CROSSES})
    trained = selected_schema(few, read_manifest(data).schema_)
    manifest = read_manifest(grown)
    config = make_config(grown, tmp_path, data={**READ, "crosses": MORE_CROSSES})
    here = selected_schema(config, manifest.schema_)
    assert missing_inputs(trained, here, {"item"}) == []
    assert missing_inputs(trained, here) == ["table 'item': rows 81, now 90"]
    inputs = TeacherInputs(trained, here, torch.device("cpu"))
    adapted = adapt_schema(trained, manifest.schema_).schema
    readers = (Reader(grown, manifest, s, "valid", 64, 0, 1).batches() for s in (here, adapted))
    seen = 0
    for batch, expected in zip(*readers, strict=True):
        sparse, weighted, vectors_BV, dense_BN, gaps_BL = inputs(batch)
        seen += int((batch.sparse_features["item"].values() >= ROWS).sum())
        for one, other in (
            (sparse, expected.sparse_features),
            (weighted, expected.weighted_features),
        ):
            assert one is not None and other is not None
            for key in other.keys():
                assert torch.equal(one[key].values(), other[key].values()), key
                assert torch.equal(one[key].lengths(), other[key].lengths())
                weights = other[key].weights_or_none()
                assert weights is None or torch.equal(one[key].weights(), weights)
        assert (
            torch.equal(
                vectors_BV,
                expected.vectors_BV,
            )
            or vectors_BV.isnan().any()
        )
        assert torch.equal(dense_BN, expected.dense_BN)
        assert gaps_BL is not None and torch.equal(gaps_BL, expected.time_gap_BL)
    assert seen and batch.num_rows < 64, "new ids, and padding, were tested"


@pytest.mark.exhaustive
def test_without_weight_there_is_no_teacher(data: Path, old: Path, tmp_path: Path) -> None:
    off, none = (
        student(data, tmp_path, teacher) for teacher in ({"source": str(old), "weight": 0}, None)
    )
    run_ranks(train, 1, config=off, run_folder=tmp_path / "off")
    run_ranks(train, 1, config=none, run_folder=tmp_path / "none")
    assert_same(tmp_path / "off", tmp_path / "none")
    assert not (tmp_path / "off" / "teacher.json").exists()


def test_runs_are_exact_in_both_pipelines_and_after_a_resume(
    data: Path, old: Path, tmp_path: Path
) -> None:
    """Also if the teacher's run has saved again before the resume."""
    runs = tmp_path / "runs"
    shutil.copytree(old, runs / "test" / "teacher")
    eager, pipelined, stopped = (tmp_path / name for name in ("eager", "pipelined", "stopped"))

    def config(pipeline: str) -> Config:
        training = {"pipeline": pipeline, "log_every_steps": 1}  # so that no line is at a save only
        return student(data, runs, {"source": "test/teacher", "steps": 9}, training=training)

    run_ranks(train, 2, config=config("none"), run_folder=eager)
    run_ranks(train, 2, config=config("sparse_dist"), run_folder=pipelined)
    assert_same(eager, pipelined)
    settings = {"config": config("sparse_dist"), "run_folder": stopped}
    assert run_ranks(stop_one_rank_at_step, 2, step=5, **settings)[0]["steps"] < 9
    newer = Folder(runs / "test" / "teacher" / "checkpoints" / "step-00000090")
    newer.put(checkpoint.MANIFEST, b"{}")
    assert find_checkpoint("test/teacher", settings["config"]) == newer
    run_ranks(train, 2, **settings)
    assert_same(stopped, pipelined)


@pytest.mark.exhaustive
def test_after_its_steps_only_labels_count(data: Path, old: Path, tmp_path: Path) -> None:
    """Until then as with a teacher in all steps, then as a run that resumes without one."""
    teacher = {"source": str(old), "steps": 4}
    config = student(data, tmp_path, teacher)
    run_ranks(train, 1, config=config, run_folder=tmp_path / "long")
    always = student(data, tmp_path, str(old))
    run_ranks(train, 1, config=always, run_folder=tmp_path / "always")
    step = "step-00000004"
    a, b = (tensors(tmp_path / name, step) for name in ("long", "always"))
    assert all(torch.equal(a[name], b[name]) for name in b)
    for later in ("step-00000008", "step-00000012"):
        shutil.rmtree(tmp_path / "always" / "checkpoints" / later)
    run_ranks(train, 1, config=student(data, tmp_path, None), run_folder=tmp_path / "always")
    a, b = (tensors(tmp_path / name) for name in ("long", "always"))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_student_comes_nearer_to_its_teacher(data: Path, old: Path, tmp_path: Path) -> None:
    """On valid, after as many steps over the same tables, by the mean distance of logits."""
    distances = {}
    model, trained = teacher_model(old)
    for name, teacher in (("with", {"source": str(old), "weight": 4.0}), ("without", None)):
        config = student(
            data,
            tmp_path,
            teacher,
            checkpoint={"init_from": {"source": str(old), "optimizer_state": False}},
            training={"max_steps": 25},
            dense_optimizer={"learning_rate": 0.01},
        )
        run_ranks(train, 2, config=config, run_folder=tmp_path / name)
        manifest, schema = open_for_training(config)
        pupil = unsharded(config, schema, tensors(tmp_path / name)).eval()
        readers = (
            Reader(data, manifest, s, "valid", 64, 0, 1).batches() for s in (trained, schema)
        )
        places = [[t.name for t in s.tasks].index("long_view") for s in (trained, schema)]
        gaps = []
        with torch.no_grad():
            for theirs, ours in zip(*readers, strict=True):
                gap_B = (
                    logits_of(model, theirs)[:, places[0]] - logits_of(pupil, ours)[:, places[1]]
                )
                gaps.append(gap_B[: ours.num_rows])
        distances[name] = torch.cat(gaps).abs().mean().item()
    assert distances["with"] < 0.9 * distances["without"], distances


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"features": ["user", "item", "click"]}, "feature 'duration' is missing"),
        ({"crosses": {}}, "feature 'user_item' is missing"),
        (
            {"tasks": ["click"]},
            "no binary task of this run: its tasks are like .binary., long_view",
        ),
    ],
)
def test_a_teacher_that_cannot_score_is_refused(
    data: Path, old: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    config = student(
        data,
        tmp_path,
        str(old),
        data={**READ, "crosses": CROSSES, **changes},
        training={"task_weights": {}},
    )
    with pytest.raises(CheckpointError, match=rf"^training\.teacher: .*{message}"):
        run_ranks(train, 2, config=config, run_folder=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name != ".lock"] == []


def test_other_refusals(data: Path, old: Path, tmp_path: Path) -> None:
    other = make_tiny_set(
        tmp_path / "other", seed=5, num_rows=2_000, num_tags=12, num_interests=9, content_dim=4
    )
    cases: list[tuple[Config, type[Exception], str]] = [
        (student(other, tmp_path, str(old)), CheckpointError, "teacher.allow_other_data=true"),
        (student(data, tmp_path, "missing"), CheckpointError, "no complete checkpoint of run"),
        (
            student(
                data,
                tmp_path,
                {"source": str(old), "steps": 25},
                checkpoint={"init_from": {"source": str(old), "progress": True}},
                training={"max_steps": 40},
            ),
            ConfigError,
            r"teacher.steps is 25, but the run starts after step 25",
        ),
    ]
    for config, kind, message in cases:
        with pytest.raises(kind, match=message):
            run_ranks(train, 1, config=config, run_folder=tmp_path / "run")


def test_watch_times_have_no_soft_labels(data: Path) -> None:
    schema = read_manifest(data).schema_
    first, *rest = schema.tasks
    timed = schema.model_copy(
        update={"tasks": (first.model_copy(update={"kind": "watch_time"}), *rest)}
    )
    assert common_tasks(timed, schema) == common_tasks(schema, timed) == [t.name for t in rest]


def test_memory_beside_the_tables_of_the_run() -> None:
    """A plan for what is left has the capacity of all, less what is used."""
    for name in ("h100x8", "cpu"):
        topology = load_topology(name)
        used = topology.capacity / 4
        left = topology.without(used).capacity
        assert (left <= topology.capacity - used + 1).all()
        assert left == pytest.approx(topology.capacity - used, rel=1e-6)


def test_a_teacher_without_room_is_refused(
    data: Path, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's own tables fit."""
    monkeypatch.setattr(
        Topology, "without", lambda self, used: self.model_copy(update={"ddr_gib": 0.001})
    )
    with pytest.raises(PlanError, match=r"training\.teacher"):
        run_ranks(train, 1, config=student(data, tmp_path, str(old)), run_folder=tmp_path / "run")


def test_text_is_the_source() -> None:
    assert TeacherConfig.model_validate("a@best") == TeacherConfig(source="a@best")
