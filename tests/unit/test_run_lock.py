"""A run is trained by one driver; whether another one waits depends on its heartbeat alone."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from infnet_dist.config.run import ScalingConfig
from infnet_dist.errors import ConfigError, UserError
from infnet_dist.training import run_lock
from infnet_dist.training.run_lock import held_by_driver, held_by_workers

SCALING = ScalingConfig(hang_timeout_s=0.3, timeout_s=0.5)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "_BEAT_S": 0.05,
        "_SILENT_S": 0.3,
        "_END_S": 0.1,
        "_POLL_S": 0.01,
    }.items():
        monkeypatch.setattr(run_lock, name, seconds)


def record(folder: Path, **changes: object) -> Path:
    """The record of a driver on another host."""
    path = folder / ".driver.json"
    holder = {"host": "elsewhere", "pid": 4711, "since": "2026-11-28 09:00:00", "job": "job-1"}
    path.write_text(json.dumps(holder | changes))
    return path


def test_a_second_driver_is_refused_at_once_and_sees_the_holder(tmp_path: Path) -> None:
    patient = ScalingConfig(hang_timeout_s=300.0)
    with held_by_driver(tmp_path, patient, job="raysubmit_first"):
        began = time.monotonic()
        with pytest.raises(UserError) as refused, held_by_driver(tmp_path, patient):
            raise AssertionError("held twice")
        assert time.monotonic() - began < 5
    for word in ("raysubmit_first", str(os.getpid()), socket.gethostname(), str(tmp_path)):
        assert word in str(refused.value)
    with held_by_driver(tmp_path, patient):
        assert json.loads((tmp_path / ".driver.json").read_text())["job"] is None
    assert not (tmp_path / ".driver.json").exists()


def test_the_run_of_a_killed_driver_is_free_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "_SILENT_S", 30.0)
    pid = os.fork()
    if pid == 0:
        with held_by_driver(tmp_path, SCALING):
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(0)
    wait_until((tmp_path / "held").exists)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    began = time.monotonic()
    with held_by_driver(tmp_path, SCALING):
        assert time.monotonic() - began < run_lock._SILENT_S


def test_a_silent_holder_is_waited_for_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is stopped, or its node is lost."""
    record(tmp_path)
    with FileLock(tmp_path / ".driver.lock"):
        began = time.monotonic()
        with pytest.raises(UserError, match=r"job-1.* 4711 on elsewhere") as refused:
            with held_by_driver(tmp_path, SCALING):
                raise AssertionError("held twice")
        assert time.monotonic() - began > SCALING.hang_timeout_s
    assert "no heartbeat" in str(refused.value)
    assert "4711" in caplog.text


def test_a_silent_holder_that_ends_leaves_the_run(tmp_path: Path) -> None:
    record(tmp_path)
    lock = FileLock(tmp_path / ".driver.lock", thread_local=False)
    lock.acquire()
    threading.Timer(0.2, lock.release).start()
    with held_by_driver(tmp_path, ScalingConfig(hang_timeout_s=60.0)):
        assert not lock.is_locked


@pytest.mark.parametrize("lives", [True, False])
def test_storage_whose_locks_other_hosts_don_t_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    if lives:
        monkeypatch.setattr(run_lock, "_SILENT_S", 30.0)  # a busy machine delays a heartbeat
    path = record(tmp_path)
    with beating(path if lives else tmp_path / "other"):
        if lives:
            with pytest.raises(UserError, match="elsewhere"), held_by_driver(tmp_path, SCALING):
                raise AssertionError("held twice")
            assert json.loads(path.read_text())["host"] == "elsewhere"
            return
        with held_by_driver(tmp_path, SCALING):
            assert json.loads(path.read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize("words", ["", "{", "[]", '{"pid": 1}', '{"host": 1, "x": 2}'])
def test_a_record_that_can_t_be_read_keeps_nobody_away(tmp_path: Path, words: str) -> None:
    (tmp_path / ".driver.json").write_text(words)
    with held_by_driver(tmp_path, SCALING):
        pass


@pytest.mark.parametrize("below", ["", "below"])
def test_a_folder_that_can_t_be_made_is_named(tmp_path: Path, below: str) -> None:
    place = tmp_path / "run"
    place.write_text("a file where the folder should be")
    for folder in (place / below, Path("/proc/1/none") / below):
        with pytest.raises(ConfigError) as refused, held_by_driver(folder, SCALING):
            raise AssertionError("held")
        assert str(folder) in str(refused.value) and "INFNET_ROOT" in str(refused.value)


def test_workers_of_an_earlier_attempt_are_waited_for(tmp_path: Path) -> None:
    """As long as a watchdog may take, but not beyond the waiting ranks' collective."""
    patient = ScalingConfig(timeout_s=0.5, hang_timeout_s=300.0)
    began = time.monotonic()
    with held_by_workers(tmp_path, patient):
        with pytest.raises(UserError, match=str(tmp_path)), held_by_workers(tmp_path, patient):
            raise AssertionError("held twice")
    assert 0.4 < time.monotonic() - began < 5
    ends = held_by_workers(tmp_path, patient)
    ends.__enter__()
    threading.Timer(0.1, ends.__exit__, (None, None, None)).start()
    with held_by_workers(tmp_path, patient):
        pass


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """Touch a record as a driver does."""
    path.touch()
    ended = threading.Event()
    threading.Thread(target=run_lock._beat, args=(path, ended)).start()
    yield
    ended.set()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
