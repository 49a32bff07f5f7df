"""`ray_jobs.evaluate` without workers: which checkpoint and files, and what is refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from infnet_dist.config.run import dump_config
from infnet_dist.data.manifest import read_manifest
from infnet_dist.errors import CheckpointError, DataError, UserError
from infnet_dist.io.filesystem import Folder
from ray_jobs import evaluate
from tests.checkpoints import TABLE, whole, write_checkpoint
from tests.runs import make_config, make_tiny_set


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set, a run file and a run with checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("place")
    data = make_tiny_set(folder / "set")
    raw = json.loads((data / "manifest.json").read_text())
    raw["content_hash"] = "ab" * 32  # as `write_checkpoint` says
    (data / "manifest.json").write_text(json.dumps(raw))
    config = make_config(data, folder / "runs", scaling={"num_workers": 1})
    (folder / "run.yaml").write_text(dump_config(config))
    for step in (10, 20):
        save(folder / "runs" / "test" / "first" / "checkpoints", step, folder)
    return folder


def save(folder: Path, step: int, place: Path, **files: str) -> Path:
    schema = read_manifest(place / "set").schema_
    tables = {
        TABLE.format(table.name): whole(torch.zeros(table.num_embeddings, 2))
        for table in schema.tables
    }
    config = (place / "run.yaml").read_text()
    files = {"config.yaml": config, "schema.json": schema.model_dump_json()} | files
    return Path(write_checkpoint(Folder(folder), tables, step=step, files=files).url)


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the job; workers give a result at once."""
    launched: list[dict[str, Any]] = []

    def launch(_: Any, arguments: dict[str, Any], config: Any, *__: Any) -> dict[str, Any]:
        launched.append(arguments)
        metrics = {"valid/auc/click": float(Folder(arguments["path"]).name[-2:]) / 100}
        found = read_manifest(config.data.path).content_hash
        result = {"split": "valid", "rows": 7, "step": 10, "training_set": found}
        return result | {"metrics": metrics, "optimum": {}}

    def run(*arguments: object) -> list[dict[str, Any]]:
        launched.clear()
        words = ["--config", str(place / "run.yaml"), "--launcher", "local"]
        evaluate.main([*words, *map(str, arguments)])
        return launched

    monkeypatch.setattr(evaluate, "launch", launch)
    return run


def other_set(place: Path, folder: Path, **rows: int) -> Path:
    """The training set with other content, and tables of other sizes."""
    shutil.copytree(place / "set", folder)
    raw = json.loads((folder / "manifest.json").read_text())
    raw["content_hash"] = "other"
    for table in raw["schema"]["tables"]:
        table["num_embeddings"] = rows.get(table["name"], table["num_embeddings"])
    (folder / "manifest.json").write_text(json.dumps(raw))
    return folder


def test_a_set_without_valid_needs_data_valid_from(place: Path, tmp_path: Path, run: Any) -> None:
    path = other_set(place, tmp_path / "set")
    raw = json.loads((path / "manifest.json").read_text())
    train = raw["splits"]["train"]
    raw["splits"] = {"train": train}
    (path / "manifest.json").write_text(json.dumps(raw))
    here = ["--set", f"data.path={path}", "--output", str(tmp_path / "result.json")]
    with pytest.raises(DataError, match=r"unknown split 'valid'.*data\.valid_from"):
        run(*here)
    (launched,) = run(*here, "--set", f"data.valid_from={train['time_range_ms'][1]}")
    assert launched["config"].data.valid_from == train["time_range_ms"][1]


def test_no_evaluation_takes_another_s_place(place: Path, tmp_path: Path, run: Any) -> None:
    """Of two checkpoints, of one checkpoint on two training sets, and of the same again."""
    first = place / "runs" / "test" / "first"
    older = first / "checkpoints" / "step-00000010"
    run()
    run("--checkpoint", older)
    run("--checkpoint", older)
    run("--checkpoint", older, "--set", f"data.path={other_set(place, tmp_path / 'other')}")
    found = {path.name: json.loads(path.read_text()) for path in first.glob("evaluation-*")}
    assert {name: result["metrics"]["valid/auc/click"] for name, result in found.items()} == {
        "evaluation-valid-step-00000020.json": 0.2,
        "evaluation-valid-step-00000010.json": 0.1,
        "evaluation-valid-step-00000010-2.json": 0.1,
    }
    assert found["evaluation-valid-step-00000010-2.json"]["training_set"] == "other"


def test_a_checkpoint_of_no_run_is_evaluated_into_the_folder_of_runs(
    place: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not into the current folder, which a Ray job throws away."""
    monkeypatch.chdir(tmp_path)
    alone = save(tmp_path / "alone", 30, place)
    run("--checkpoint", alone)
    assert (place / "runs" / "test" / "evaluation-valid-step-00000030.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["alone"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--checkpoint", "{first}"], ["step-00000010", "step-00000020"]),
        (["--checkpoint", "latest"], ["latest", "--run-id"]),
        (["--run-id", "second"], ["second"]),
        (["--output", "{first}"], ["first", "folder"]),
        (["--output", "{place}/run.yaml/below.json"], ["run.yaml"]),
        (["--output", "{place}/pipe"], ["pipe"]),
        (["--split", "velid"], ["velid", "valid"]),
    ],
)
def test_what_is_wrong_is_said_before_any_worker_starts(
    place: Path, run: Any, arguments: list[str], names: list[str]
) -> None:
    if not (place / "pipe").exists():
        os.mkfifo(place / "pipe")
    known = {"place": place, "first": place / "runs" / "test" / "first"}
    with pytest.raises(UserError) as caught:
        run(*(argument.format(**known) for argument in arguments))
    for name in names:
        assert name in str(caught.value)


@pytest.mark.parametrize("has_schema", [True, False], ids=["", "of an earlier version"])
def test_a_table_that_grew_is_named(
    place: Path, tmp_path: Path, run: Any, has_schema: bool
) -> None:
    checkpoint = place / "runs" / "test" / "first" / "checkpoints" / "step-00000010"
    if not has_schema:
        tables = {
            TABLE.format(table.name): whole(torch.zeros(table.num_embeddings, 2))
            for table in read_manifest(place / "set").schema_.tables
        }
        files = {"config.yaml": (place / "run.yaml").read_text()}
        folder = write_checkpoint(Folder(tmp_path / "old"), tables, step=10, files=files)
        checkpoint = Path(folder.url)
        run("--checkpoint", checkpoint)  # still evaluated on its own set
    grown = other_set(place, tmp_path / "grown", item=90)
    with pytest.raises(CheckpointError, match=r"'item': rows 81, now 90") as caught:
        run("--checkpoint", checkpoint, "--set", f"data.path={grown}")
    assert str(grown) in str(caught.value) or not has_schema


def test_what_a_set_has_otherwise_is_said(
    place: Path, tmp_path: Path, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other = other_set(place, tmp_path / "other")
    with caplog.at_level("INFO", logger="infnet_dist"):
        run("--set", f"data.path={other}")
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [str(other) in warning for warning in warnings] == [True]
    caplog.clear()
    run()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
