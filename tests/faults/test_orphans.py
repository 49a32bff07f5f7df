"""Workers end with their driver, and are replaced when the process that forks them is lost."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest

from infnet_dist.distributed.context import WorkerContext
from ray_jobs._local import WorkerLostError, run_local
from tests.conftest import REPOSITORY
from tests.faults.kit import Job

LONG_S = 300
DRIVER = (
    "from pathlib import Path; from ray_jobs._local import run_local; "
    "from tests.faults import test_orphans as t; "
    "run_local(t.{action}, dict(folder=Path({folder!r})), num_workers=2)"
)


def holds_the_gil(context: WorkerContext, folder: Path) -> None:
    """No thread of Python's can run meanwhile."""
    (folder / f"{os.getpid()}").touch()
    ctypes.PyDLL(None).sleep(LONG_S)


def waits_for_the_other(context: WorkerContext, folder: Path) -> None:
    (folder / f"{os.getpid()}").touch()
    if context.is_first:
        time.sleep(LONG_S)
    context.barrier()


def is_stopped(context: WorkerContext, folder: Path) -> None:
    (folder / f"{os.getpid()}").touch()
    if not context.is_first:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(LONG_S)


@pytest.mark.parametrize(
    "action",
    [
        holds_the_gil,
        pytest.param(waits_for_the_other, marks=pytest.mark.exhaustive),
        pytest.param(is_stopped, marks=pytest.mark.exhaustive),
    ],
)
def test_workers_end_with_a_killed_driver(tmp_path: Path, action: Callable[..., None]) -> None:
    command = [sys.executable, "-c", DRIVER.format(action=action.__name__, folder=str(tmp_path))]
    driver = subprocess.Popen(command, cwd=REPOSITORY, env=environ())
    try:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        family = psutil.Process(driver.pid).children(recursive=True)
        assert {int(path.name) for path in tmp_path.iterdir()} < {one.pid for one in family}
    finally:
        driver.kill()
        driver.wait()
    assert gone(family) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("when", ["starting", "training", "saving"])
def test_a_run_ends_with_its_killed_driver(tmp_path: Path, data: Path, when: str) -> None:
    """A run that would last for minutes; the next attempt needs to wait for nothing."""
    job = Job(tmp_path, data, training={"epochs": 200}, checkpoint={"every_steps": 2})
    running = job.start()
    if when == "starting":
        wait_until(lambda: len(children(running.process.pid)) >= 3)  # tracker, forkserver, workers
    else:
        running.wait_until(lambda: job.has_saved(2))
        if when == "training":
            running.wait_until(lambda: job.ledger_lines()[-1]["step"] >= 7)
    family = children(running.process.pid)
    assert len(family) >= 3 and all(one.is_running() for one in family)
    running.send(signal.SIGKILL)
    assert running.wait().code == -9
    assert gone(family) == []
    again = job.start()
    before = job.saved()
    again.wait_until(lambda: job.saved() != before)
    again.send(signal.SIGTERM)
    job.check(again.wait(), code=143)


def returns(context: WorkerContext) -> int:
    return context.rank


@pytest.mark.exhaustive
def test_a_forkserver_that_dies_while_workers_start_is_a_lost_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next attempt has a new one."""
    processes = multiprocessing.get_context("forkserver").Process
    start, started = processes.start, []

    def strike(process) -> None:
        if started:
            os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        start(process)
        started.append(psutil.Process(process.pid))

    monkeypatch.setattr(processes, "start", strike)
    with pytest.raises(WorkerLostError, match="worker 1"):
        run_local(returns, {}, num_workers=2)
    assert len(started) == 1
    assert gone(started) == []
    monkeypatch.undo()
    assert run_local(returns, {}, num_workers=2) == [0, 1]


def environ(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | more


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def gone(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are alive after some seconds, by process id and time of creation; ends them."""
    _, alive = psutil.wait_procs(family, timeout=15)
    for one in alive:
        one.kill()
    return alive


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
