"""Which checkpoint `checkpoint.init_from.source` names."""

import os
from pathlib import Path

import pytest
import torch

from infnet_dist.config.run import Config, dump_config
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.warm_start.source import find_checkpoint
from tests.checkpoints import whole, write_checkpoint
from tests.runs import make_config

METRIC = "valid/auc/click"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Runs daily/monday (steps 5, 10, 15), daily/tuesday (5), elsewhere/one (7)."""
    for run, step, auc, age_s in (
        ("daily/monday", 5, 0.6, 300),
        ("daily/monday", 10, 0.8, 200),
        ("daily/monday", 15, 0.7, 50),
        ("daily/tuesday", 5, 0.5, 100),
    ):
        save(tmp_path / "runs" / run / "checkpoints", step, auc, age_s, config_of(tmp_path))
    save(tmp_path / "store" / "elsewhere" / "one", 7, 0.9, 10, config_of(tmp_path))
    (tmp_path / "runs" / "daily" / "wednesday" / "checkpoints" / "step-00000099").mkdir(
        parents=True
    )
    return tmp_path


def save(folder: Path, step: int, auc: float, age_s: int, config: Config) -> None:
    files, metrics = {"config.yaml": dump_config(config)}, {METRIC: auc}
    tensors = {"model.x": whole(torch.zeros(2))}
    made = write_checkpoint(Folder(folder), tensors, step=step, files=files, metrics=metrics)
    time_s = 1_700_000_000 - age_s
    os.utime(Path(made.url) / "manifest.json", (time_s, time_s))


def config_of(place: Path, **checkpoint: object) -> Config:
    return make_config(place / "set", place / "runs", checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("daily", "runs/daily/monday/checkpoints/step-00000015"),  # saved last
        ("daily@5", "runs/daily/monday/checkpoints/step-00000005"),
        ("daily/tuesday", "runs/daily/tuesday/checkpoints/step-00000005"),
        ("daily/monday@best", "runs/daily/monday/checkpoints/step-00000010"),
        ("daily/monday@newest", "runs/daily/monday/checkpoints/step-00000015"),
        ("elsewhere/one", "store/elsewhere/one/step-00000007"),
        ("{place}/runs/daily/monday", "runs/daily/monday/checkpoints/step-00000015"),
        ("{place}/runs/daily/monday@10", "runs/daily/monday/checkpoints/step-00000010"),
        ("{place}/store/elsewhere/one@7", "store/elsewhere/one/step-00000007"),
        (
            "{place}/runs/daily/monday/checkpoints/step-00000005",
            "runs/daily/monday/checkpoints/step-00000005",
        ),
        ("file://{place}/runs/daily/monday@5", "runs/daily/monday/checkpoints/step-00000005"),
    ],
)
def test_a_source_names_one_checkpoint(place: Path, source: str, found: str) -> None:
    config = config_of(place, keep_best=METRIC, folder=str(place / "store"))
    url = find_checkpoint(source.format(place=place), config).url
    assert url.removeprefix("file://") == str(place / found)


def test_a_path_may_be_relative(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("INFNET_ROOT", raising=False)
    config = config_of(place, init_from="./runs/daily/tuesday")
    assert config.checkpoint.init_from is not None
    assert config.checkpoint.init_from.source == str(place / "runs" / "daily" / "tuesday")


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("weekly", ["'weekly'", "runs"]),
        ("daily/friday", ["'daily/friday'"]),
        ("daily/wednesday", ["no complete checkpoint"]),
        ("runs/daily/monday", ["'runs/daily/monday'", "NAME/RUN-ID"]),
        ("daily/monday@6", ["step-00000006", "5, 10, 15"]),
        ("daily/monday@best", ["keep_best"]),
        ("{place}/runs/daily/monday/checkpoints/step-00000005@5", ["@5"]),
        ("{place}/nowhere", ["nowhere"]),
    ],
)
def test_what_names_none(place: Path, source: str, names: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(source.format(place=place), config_of(place))
    for name in ["checkpoint.init_from", *names]:
        assert name in str(caught.value)
