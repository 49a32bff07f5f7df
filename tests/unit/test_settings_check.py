"""Settings that contradict one another, that change nothing, or that something else replaces."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infnet_dist.config.changes import changes
from infnet_dist.config.run import Config, dump_config, parse_config
from infnet_dist.errors import ConfigError
from infnet_dist.model.build import build_train_model
from infnet_dist.model.settings_check import check_settings, without_effect
from infnet_dist.schema import CategoricalFeature, Schema, Table, Task
from ray_jobs import train
from ray_jobs._saved_model import with_model_of

SCHEMA = Schema(
    tables=(Table(name="item", num_embeddings=10), Table(name="user", num_embeddings=10)),
    categorical=tuple(CategoricalFeature(name=n, table=n, column=n) for n in ("item", "user")),
    tasks=(
        Task(name="click", column="c"),
        Task(name="like", column="l"),
        Task(name="seconds", column="s", kind="watch_time"),
    ),
    group_column="user",
    time_column="time",
)


def run(**sections: Any) -> Config:
    return parse_config({"data": {"path": "/x"}} | sections)


@pytest.mark.parametrize(
    ("weights", "tasks"),
    [
        ({"click": 0, "like": 0.0, "seconds": 0}, None),
        ({"click": 0}, ["click"]),
        ({"click": 0, "like": 0, "seconds": 3}, ["click", "like"]),
    ],
)
def test_weights_that_train_nothing_are_refused(weights: dict, tasks: list[str] | None) -> None:
    config, schema = run(training={"task_weights": weights}), SCHEMA.select(None, tasks)
    for check in (
        lambda: check_settings(config, schema),
        lambda: build_train_model(config, schema, table_device=torch.device("meta")),
    ):
        with pytest.raises(ConfigError, match=r"training\.task_weights.*click"):
            check()
    check_settings(run(training={"task_weights": weights | {"click": 0.1}}), schema)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"checkpoint": {"keep_best": "valid/auc/like"}}, "checkpoint.keep_best"),
        ({"checkpoint": {"keep_best": "valid/r2/click"}}, "checkpoint.keep_best"),
        ({"checkpoint": {"keep_best": "valid/auc/seconds"}}, "checkpoint.keep_best"),
        ({"scaling": {"resources_per_worker": {"GPU": 1}}}, "resources_per_worker.GPU"),
        (
            {"scaling": {"use_gpu": True, "resources_per_worker": {"GPU": 2}}},
            "resources_per_worker.GPU",
        ),
        ({"scaling": {"num_workers": 2, "min_workers": 3}}, "scaling.min_workers"),
        ({"training": {"precision": "tf32"}}, "training.precision"),
        ({"dense_optimizer": {"first_order": {}}}, "dense_optimizer.first_order"),
    ],
)
def test_contradictions_are_refused(sections: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        check_settings(run(**sections), SCHEMA.select(None, ["click", "seconds"]))


GPU = {"use_gpu": True}


@pytest.mark.parametrize("name", ["adam", "partial_rowwise_adam", "lamb"])
def test_optimizers_that_a_device_lacks_are_refused(name: str) -> None:
    for sections in (
        {"sparse_optimizer": {"name": name}},
        {"tables": {"overrides": {"it*": {"optimizer": name}}}},
    ):
        with pytest.raises(
            ConfigError, match=f"'item'.*{name}.*cpu.*rowwise_adagrad, adagrad, sgd"
        ):
            check_settings(run(**sections), SCHEMA)
        check_settings(run(**sections, scaling=GPU), SCHEMA)
    frozen = {"overrides": {"*": {"trainable": False}}}
    check_settings(run(sparse_optimizer={"name": name}, tables=frozen), SCHEMA)


@pytest.mark.parametrize(
    ("name", "device", "allowed"),
    [
        ("rowwise_adagrad", "cpu", False),
        ("rowwise_adagrad", "cuda", True),
        ("adagrad", "cuda", False),
        ("sgd", "cuda", False),
        ("adam", "cuda", True),
    ],
)
def test_weight_decay_that_a_kernel_would_ignore_is_refused(
    name: str, device: str, allowed: bool
) -> None:
    tables = {"overrides": {"user": {"optimizer": name, "weight_decay": 0.1}}}
    config = run(tables=tables, scaling={"use_gpu": device == "cuda"})
    if allowed:
        check_settings(config, SCHEMA)
        return
    with pytest.raises(ConfigError, match=rf"'user'.*weight_decay.*0\.1.*{name}.*{device}"):
        check_settings(config, SCHEMA)


def test_settings_without_effect_are_named() -> None:
    config = run(
        data={"path": "/x", "batch_size": 10},
        scaling={"num_workers": 1},
        tables={"overrides": {"item": {}, "user": {}, "it*": {}, "us*": {}}},
        training={
            "task_weights": {"click": 2, "like": 2},
            "epochs": 2,
            "ids_only": True,
            "trainable": {"user": 2, "dense.tower": 0.5},
        },
        schedule={"warmup_steps": 20},
        checkpoint={"every_steps": 50, "keep_every_steps": 75},
        ingest={"source": "kuairand", "path": "/elsewhere", "history_length": 9},
    )
    made = {"source": "kuairand", "path": "/raw", "history_length": 50, "refresh": "daily"}
    manifest: Any = SimpleNamespace(split=lambda name: SimpleNamespace(rows=100), source=made)
    found = list(without_effect(config, manifest, SCHEMA.select(["user"], ["click"])))
    assert [line.partition(":")[0] for line in found] == [
        "tables.overrides.item",
        "tables.overrides.it*",
        "training.trainable.dense.tower",
        "training.task_weights.like",
        "schedule.warmup_steps",
        "checkpoint.keep_every_steps",
        "ingest.history_length",
    ]
    small = run(data={"path": "/x", "batch_size": 10}, scaling={"num_workers": 1})
    assert not list(without_effect(small, manifest, SCHEMA))


def test_changes_name_keys_with_both_values() -> None:
    one = run(training={"epochs": 2})
    other = run(model={"name": "onetrans"}, training={"task_weights": {"click": 2.0}})
    found = changes(one, other)
    assert found["training.epochs"] == (2, 1)
    assert found["training.task_weights.click"] == (None, 2.0)
    assert found["model.name"] == ("infnet", "onetrans")
    assert found["model.num_hubs"] == (16, None)
    assert not changes(one, one)


# ------------------------------------------------------------------------------------- evaluation

TRAINED: dict[str, Any] = {
    "tables": {"embedding_dim": 64},
    "model": {"num_blocks": 3},
    "data": {"path": "/x", "tasks": ["click"]},
}


@pytest.mark.parametrize(
    ("override", "sections"),
    [
        ("tables.embedding_dim=32", {"tables": {"embedding_dim": 32}}),
        ("tables={data_type: fp16}", {"tables": {"embedding_dim": 64, "data_type": "fp16"}}),
        ("model.num_blocks=2", {"model": {"num_blocks": 2}}),
        ("model={name: onetrans}", {"model": {"name": "onetrans"}}),
        ("data.tasks=[like]", {"data": {"path": "/x", "tasks": ["like"]}}),
        ("run.seed=5", {"run": {"seed": 5}}),
        ("training.epochs=5", {"training": {"epochs": 5}}),
        ("sparse_optimizer.learning_rate=1", {"sparse_optimizer": {"learning_rate": 1}}),
        ("ingest.num_rows=500", {"ingest": {"source": "synthetic", "num_rows": 500}}),
    ],
)
def test_evaluate_refuses_settings_that_it_would_ignore(override: str, sections: dict) -> None:
    with pytest.raises(ConfigError, match=rf"--set {override.split('=')[0]}".replace(".", r"\.")):
        with_model_of(run(**(TRAINED | sections)), run(**TRAINED), [override], "evaluate")


def test_evaluate_accepts_settings_that_agree_and_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = {
        "scaling": {"num_workers": 1},
        "data": {"path": "/y", "batch_size": 9, "tasks": ["click"]},
    }
    overrides = ["tables.embedding_dim=64", "data.path=/y", "data.batch_size=9"]
    overrides += ["scaling={num_workers: 1}"]
    found = with_model_of(run(**(TRAINED | own)), run(**TRAINED), overrides, "evaluate")
    assert (found.data.path, found.scaling.num_workers) == (Path("/y"), 1)
    assert found.tables.embedding_dim == 64
    assert not caplog.records


def test_evaluate_logs_where_the_run_file_differs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="infnet_dist")
    found = with_model_of(run(training={"epochs": 9}), run(**TRAINED), [], "evaluate")
    assert (found.tables.embedding_dim, found.model.num_blocks) == (64, 3)
    assert found.data.tasks == ("click",)
    named = {record.args[0] for record in caplog.records if isinstance(record.args, tuple)}
    assert named == {"tables.embedding_dim", "model.num_blocks", "data.tasks"}


def test_a_resumed_run_logs_changed_settings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="infnet_dist")
    train._resumed(run(), tmp_path)
    assert not caplog.records, "a new run"
    (tmp_path / "config.yaml").write_text(dump_config(run()))
    train._resumed(run(), tmp_path)
    assert not caplog.records
    train._resumed(run(dense_optimizer={"learning_rate": 0.5}), tmp_path)
    (record,) = caplog.records
    assert isinstance(record.args, tuple)
    assert record.args[1:] == ("dense_optimizer.learning_rate", 0.5, 0.001)


@pytest.mark.parametrize("saved", [None, 0.0, 0.02, "absent"])
def test_a_resumed_run_keeps_its_rate_of_unknown_ids(
    saved: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="infnet_dist")
    text = dump_config(run())
    assert text.count("unknown_id_rate: null\n") == 1
    line = "" if saved == "absent" else f"  unknown_id_rate: {'null' if saved is None else saved}\n"
    (tmp_path / "config.yaml").write_text(text.replace("  unknown_id_rate: null\n", line))
    rate = train._resumed(run(), tmp_path).tables.unknown_id_rate
    assert rate == (0.0 if saved == "absent" else saved), "none were dropped before there was a key"
    assert not caplog.records
    asked = train._resumed(run(tables={"unknown_id_rate": 0.3}), tmp_path)
    assert asked.tables.unknown_id_rate == 0.3
    assert "tables.unknown_id_rate" in caplog.text
