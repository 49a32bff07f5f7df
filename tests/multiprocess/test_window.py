"""Training on a window while logs are added: the run reads what it began with."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from infnet_dist import checkpoint
from infnet_dist.config.run import Config
from infnet_dist.data.manifest import Manifest, read_manifest
from infnet_dist.errors import CheckpointError
from infnet_dist.ingest.logs.pipeline import ingest_logs
from infnet_dist.ingest.logs.stages.runner import one_by_one
from infnet_dist.io.filesystem import Folder
from infnet_dist.training.trainer import train
from tests.multiprocess.test_resume import die_at_step
from tests.ranks import run_ranks
from tests.run_files import assert_same
from tests.runs import make_config
from tests.unit.raw_logs import DAY_MS, START_MS, make_rows, settings, write_logs

ROWS = make_rows(7, rows=1_500, users=40, items=600, days=5)


def write_day(folder: Path, day: int) -> None:
    """Write the logs of a day (from 1)."""
    number = [(row["time_ms"] - START_MS) // DAY_MS + 1 for row in ROWS]
    rows = [row for row, found in zip(ROWS, number, strict=True) if found == day]
    write_logs(folder / "logs" / str(day), rows, files=1)


def add_day(folder: Path, day: int) -> Manifest:
    """Ingest the logs of a day (from 1), which are valid; what was valid becomes train."""
    return add_undivided(folder, day, valid_from=f"2026-01-{day:02}")


def add_undivided(folder: Path, day: int, valid_from: str | None = None) -> Manifest:
    """Ingest the logs of a day; without `valid_from` all rows are train."""
    write_day(folder, day)
    config = settings(folder / "logs", valid_from=valid_from)
    manifest = ingest_logs(config, folder / "set", one_by_one, lambda *_: None)
    assert manifest is not None
    return manifest


@pytest.fixture(scope="module")
def three_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two days are of generation 1 in one ingest, the third is valid."""
    folder = tmp_path_factory.mktemp("data")
    for day in (1, 2):
        write_day(folder, day)
    manifest = add_day(folder, 3)
    assert {part.generation for part in manifest.split("train").parts} == {1}
    return folder


@pytest.fixture
def four_days(three_days: Path, tmp_path: Path) -> Path:
    """Generation 2 of train is the third day, the fourth is valid."""
    shutil.copytree(three_days / "set", tmp_path / "set")
    shutil.copytree(three_days / "logs", tmp_path / "logs", copy_function=shutil.copy2)
    manifest = read_manifest(tmp_path / "set")  # with the paths of these logs
    text = (tmp_path / "set/manifest.json").read_text().replace(str(three_days), str(tmp_path))
    (tmp_path / "set/manifest.json").write_text(text)
    grown = add_day(tmp_path, 4)
    found = {part.file: part.generation for part in grown.split("train").parts}
    valid = [part.file for part in manifest.split("valid").parts]
    assert {file for file, generation in found.items() if generation == 2} == {*valid}
    return tmp_path


def config_of(folder: Path, **data: Any) -> Config:
    return make_config(
        folder / "set",
        folder,
        data={"batch_size": 16, "shuffle_rows": 100, **data},
        tables={"embedding_dim": 8},
        model={"dropout": 0.2, "name": "infnet", "token_dim": 8, "num_hubs": 4},
        training={"log_every_steps": 3, "epochs": 2},
        checkpoint={"every_steps": 4, "keep_last": 9},
    )


NEW, SHARE = {"window": "new"}, {"window": "new", "replay_share": 0.25}


@pytest.mark.parametrize(
    ("data", "step"),
    [
        (SHARE, 6),
        pytest.param(SHARE, 19, marks=pytest.mark.exhaustive),
        pytest.param(NEW, 6, marks=pytest.mark.exhaustive),
        pytest.param({"window": {"generations": [2]}}, 6, marks=pytest.mark.exhaustive),
        pytest.param({"window": {"last_days": 1.5}}, 6, marks=pytest.mark.exhaustive),
        pytest.param({}, 6, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_that_was_killed_goes_on_although_logs_were_added(
    four_days: Path, data: dict, step: int
) -> None:
    """Bit-identically; the added logs have new ids, so that the tables of a new run are larger."""
    config = config_of(four_days, **data)
    whole, run = four_days / "whole", four_days / "run"
    run_ranks(train, 2, config=config, run_folder=whole)
    with pytest.raises(RuntimeError, match="worker 1 died"):
        run_ranks(die_at_step, 2, config=config, run_folder=run, step=step)
    before, after = read_manifest(four_days / "set"), add_day(four_days, 5)
    assert before.schema_.table("item") != after.schema_.table("item")
    assert {p.generation for p in after.split("train").parts} == {1, 2, 3}
    run_ranks(train, 2, config=config, run_folder=run)
    assert_same(run, whole)
    saved = checkpoint.read_manifest(checkpoint.newest(Folder(run / "checkpoints")))
    assert saved.order.content_hash == before.content_hash
    assert saved.order.generations[-1] == 2


def test_another_window_is_another_run(four_days: Path) -> None:
    config, run = config_of(four_days, window="new"), four_days / "run"
    run_ranks(train, 1, config=config, run_folder=run)
    other = config_of(four_days, window={"generations": [1]})
    with pytest.raises(CheckpointError, match=r"data\.window"):
        run_ranks(train, 1, config=other, run_folder=run)


@pytest.mark.exhaustive
@pytest.mark.parametrize("window", [None, {"from": "2026-01-02T06:00:00"}])
def test_a_set_divided_as_it_is_read_resumes_although_logs_were_added(
    tmp_path: Path, window: dict | None
) -> None:
    """Bit-identically in mid-epoch; at another time it would be another run."""
    for day in (1, 2, 3):
        before = add_undivided(tmp_path, day)
    assert before.splits.keys() == {"train"}
    config = config_of(tmp_path, valid_from="2026-01-03T12:00:00", window=window)
    whole, run = tmp_path / "whole", tmp_path / "run"
    run_ranks(train, 2, config=config, run_folder=whole)
    with pytest.raises(RuntimeError, match="worker 1 died"):
        run_ranks(die_at_step, 2, config=config, run_folder=run, step=6)
    assert add_undivided(tmp_path, 4).split("train").rows > before.split("train").rows
    other = config_of(tmp_path, valid_from="2026-01-03T18:00:00", window=window)
    with pytest.raises(CheckpointError, match=r"data\.valid_from"):
        run_ranks(train, 2, config=other, run_folder=run)
    run_ranks(train, 2, config=config, run_folder=run)
    assert_same(run, whole)
