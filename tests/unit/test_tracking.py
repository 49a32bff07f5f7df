"""CompositeTracker: what is written, and that W&B can fail without stopping a run."""

import json
import logging
import re
import resource
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from infnet_dist.config.run import TrackingConfig
from infnet_dist.errors import DataError
from infnet_dist.tracking.tracker import (
    JsonlTracker,
    NullTracker,
    make_tracker,
    plot_curves,
    send_report,
)
from infnet_dist.tracking.wandb_run import WandbRun, wandb_mode
from infnet_dist.training.wandb_sync import rebuild
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
    tracker = WandbRun(
        TrackingConfig(), folder=tmp_path, run_id="r1", settings={"run": {"seed": 1}}
    )
    tracker.log({"valid/auc/click": 0.75}, step=2, examples=20)
    place = tracker.finish()
    assert place is not None
    assert Path(place).is_relative_to(tmp_path)
    assert list(Path(place).glob("run-r1.wandb"))


def test_the_last_step_is_in_the_file_if_finishing_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = WandbRun(OFFLINE, folder=tmp_path, run_id="r1", settings={})
    tracker.log({"valid/auc/click": 0.75}, step=2, examples=20)
    finish = tracker._run.finish

    def too_long() -> None:
        finish()
        raise TimeoutError

    monkeypatch.setattr(tracker._run, "finish", too_long)
    place = tracker.finish()
    assert [row["valid/auc/click"] for row in read_history(Path(place))] == [0.75]


OFFLINE = TrackingConfig(wandb="offline")


def attempt(folder: Path, first: int, last: int) -> str:
    """Log steps `first` to `last`, as an attempt does; W&B's folder."""
    tracker = make_tracker(OFFLINE, folder=folder, run_id="test-run", settings={})
    for step in range(first, last + 1):
        values = {"train/loss/total": 1 / step, "valid/auc/click": float("nan")}
        tracker.log(values, step=step, examples=10 * step)
        tracker.log({"valid/mae_s/watch": float(step)}, step=step, examples=10 * step)
    place = tracker.finish()
    assert place is not None
    return place


def losses(folder: str | Path) -> list[tuple[int, float]]:
    """Step and loss of each row of a W&B folder, in order."""
    history = read_history(Path(folder))
    assert all(row["valid/mae_s/watch"] == row["_step"] for row in history)
    return [(int(row["_step"]), row["train/loss/total"]) for row in history]


def test_the_last_of_several_offline_folders_holds_each_step_once(tmp_path: Path) -> None:
    """As `wandb sync FOLDER` sends it; the log is cut back to a checkpoint between attempts."""
    log = tmp_path / "metrics.jsonl"
    for first, last in ((1, 4), (3, 6), (7, 8)):
        if log.exists():
            kept = log.read_text().splitlines(keepends=True)[: 2 * (first - 1)]
            log.write_text("".join(kept))
        place = attempt(tmp_path, first, last)
        assert losses(place) == [(step, 1 / step) for step in range(1, last + 1)]
    found = list((tmp_path / "wandb").glob("*/run-test-run.wandb"))
    folders = {path.parent.resolve() for path in found}  # one is a link, wandb's latest-run
    assert folders == {Path(place)}, "what `wandb sync RUN_FOLDER/wandb` takes"
    assert len(list((tmp_path / "wandb" / "replaced").iterdir())) == 2, "nothing is deleted"


def test_a_killed_run_can_be_uploaded_whole(tmp_path: Path) -> None:
    """W&B's own file lacks what was logged in the second before the kill; the log doesn't."""
    run = tmp_path / "test" / "run"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("data: {path: /x}\nrun: {name: test}\n")
    shutil.rmtree(attempt(run, 1, 5))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6}\n7\n{"step": 6, "exam')  # killed here
    (run / "summary.json").write_text('{"steps": 5, "wandb": "/replaced"}')
    place = rebuild(run)
    assert json.loads((run / "summary.json").read_text()) == {"steps": 5, "wandb": place}
    assert losses(place) == [(step, 1 / step) for step in range(1, 6)]
    assert Path(place, "run-test-run.wandb").exists(), "the id that its attempts had"


def test_what_is_no_run_or_is_being_trained_is_not_uploaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        rebuild(tmp_path)
    (tmp_path / "config.yaml").write_text("data: {path: /x}\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        rebuild(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "examples": 1, "a/b": 1.0}\n')
    with FileLock(tmp_path / ".lock"), pytest.raises(DataError, match=str(tmp_path)):
        rebuild(tmp_path)
    assert not (tmp_path / "wandb").exists()


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
