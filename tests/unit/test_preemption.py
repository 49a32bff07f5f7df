"""Requests to stop: by notice, by SIGTERM to a worker of Ray, by the launcher's file."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from infnet_dist.training.preemption import GracefulShutdown
from ray_jobs import _preemption


@pytest.fixture(autouse=True)
def ray_s_handler() -> Iterator[list[int]]:
    """Signals that reach the handler that Ray would have set."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, before)
    _preemption._sigterm.clear()


def test_the_second_sigterm_is_ray_s(ray_s_handler: list[int]) -> None:
    _preemption.take_sigterm()
    assert _preemption.notice(1) == ""
    os.kill(os.getpid(), signal.SIGTERM)
    assert "worker 1" in _preemption.notice(1) and "SIGTERM" in _preemption.notice(1)
    assert not ray_s_handler
    os.kill(os.getpid(), signal.SIGTERM)
    assert ray_s_handler == [signal.SIGTERM]


def test_rank_0_reports_drained_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    info = SimpleNamespace(preempted_ranks=[2, 3], deadline_ms=(time.time() + 30) * 1000)
    monkeypatch.setattr(_preemption, "preemption_info", lambda: info)
    assert _preemption.notice(1) == ""
    assert "worker 2, 3" in _preemption.notice(0) and "30 s" in _preemption.notice(0)
    info.deadline_ms = None
    assert _preemption.notice(0).endswith("(preempted)")


def test_outside_of_ray_there_is_no_notice() -> None:
    assert _preemption.notice(0) == ""


def test_a_notice_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notices = iter(["", "the node is drained", "the node is drained"])
    shutdown = GracefulShutdown(tmp_path / "stop", lambda: next(notices))
    with caplog.at_level(logging.WARNING, logger="infnet_dist"):
        assert [shutdown.requested for _ in range(4)] == [False, True, True, True]
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == ["the node is drained"]
