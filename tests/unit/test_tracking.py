"""Trackers: what is written, and that W&B can fail without stopping a run."""

import json
import logging
import resource
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from infnet_dist.config import TrackingConfig
from infnet_dist.tracking import (
    JsonlTracker,
    NullTracker,
    WandbTracker,
    make_tracker,
    plot_curves,
    send_report,
    wandb_mode,
)
from tests.wandb_file import read_history


def test_jsonl_is_readable_after_each_call_and_appends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log({"valid/auc/click": 0.5, "valid/gauc/click": float("nan")}, step=3, examples=30)
    assert json.loads(path.read_text()) == {
        "step": 3,
        "examples": 30,
        "valid/auc/click": 0.5,
        "valid/gauc/click": None,
    }
    tracker.finish()
    again = JsonlTracker(path)
    again.log({"a/b": 1.0}, step=4, examples=40)
    again.finish()
    assert len(path.read_text().splitlines()) == 2


def test_lines_without_room_are_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel refuses to let files grow beyond 100 bytes, as if the disk were full."""
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log({"a/b": 0.0}, step=0, examples=0)
    whole = path.read_text()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        for step in range(1, 9):
            tracker.log({"a/b": 1 / 3}, step=step, examples=step)
        within = path.read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert within.startswith(whole)
    assert within.endswith("}\n"), "no half lines"
    assert len(within.splitlines()) < 8
    tracker.finish()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*range(9)]
    assert len([r for r in caplog.records if "its lines are kept" in r.message]) == 1


class BrokenRun:
    """A W&B run whose disk is full."""

    offline = True
    url = None
    dir = "/nowhere/run/files"

    def log(self, *_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    def finish(self) -> None:
        raise OSError("no space left on device")


@pytest.mark.parametrize("where", ["init", "log"])
def test_a_failing_wandb_is_warned_about_once_and_left_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    def init(**_: Any) -> BrokenRun:
        if where == "init":
            raise RuntimeError("server unreachable")
        return BrokenRun()

    fake = types.ModuleType("wandb")
    fake.init, fake.Settings = init, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with caplog.at_level(logging.WARNING, logger="infnet_dist"):
        tracker = make_tracker(TrackingConfig(), folder=tmp_path, run_id="r", settings={})
        for step in range(5):
            tracker.log({"a/b": 1.0}, step=step, examples=step)
        assert tracker.finish() is None
    assert len([r for r in caplog.records if "W&B failed" in r.message]) == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5, "the log goes on"


def test_wandb_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert wandb_mode("auto") == "online"
    (tmp_path / "netrc").write_text("machine example.com login user password x\n")
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb_mode("auto") == "online"
    assert wandb_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("auto") == "disabled"
    assert wandb_mode("online") == "online"


def test_disabled_and_null(tmp_path: Path) -> None:
    tracker = make_tracker(
        TrackingConfig(wandb="disabled"), folder=tmp_path, run_id="r", settings={}
    )
    tracker.log({"a/b": 1.0}, step=1, examples=1)
    assert tracker.finish() is None
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    null = NullTracker()
    null.log({"a/b": 1.0}, step=1, examples=1)
    assert null.finish() is None


def test_an_offline_run_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = WandbTracker(
        TrackingConfig(), folder=tmp_path, run_id="r1", settings={"run": {"seed": 1}}
    )
    tracker.log({"valid/auc/click": 0.75}, step=2, examples=20)
    place = tracker.finish()
    assert place is not None
    assert Path(place).is_relative_to(tmp_path)
    assert list(Path(place).glob("run-r1.wandb"))


def test_curves(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "m.jsonl")
    for step in (1, 2):
        tracker.log({"valid/auc/a": 0.5, "valid/auc/b": float("nan")}, step=step, examples=step)
    tracker.log({"perf/samples_per_s": 9.0}, step=2, examples=2)
    tracker.finish()
    plot_curves(tmp_path / "m.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "empty.jsonl").write_text("")
    plot_curves(tmp_path / "empty.jsonl", tmp_path / "empty.png")
    assert (tmp_path / "empty.png").exists()


def test_a_report_goes_to_wandb(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<p>a page to be found again</p>")
    place = send_report(
        TrackingConfig(wandb="offline"),
        folder=tmp_path,
        run_id="ingest-1",
        settings={},
        scores={"train/rows": 7.0},
        pages=[page],
    )
    sent = list(Path(place).rglob("*.html"))
    assert ["a page to be found again" in path.read_text() for path in sent] == [True]
    history = {k: v for record in read_history(Path(place)) for k, v in record.items()}
    assert history["train/rows"] == 7.0
