"""Resolution of relative paths, and the choice of the backend."""

import socket
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from infnet_dist.distributed.context import WorkerContext, backend_for, device_for
from infnet_dist.errors import ConfigError
from infnet_dist.io.paths import resolve_path
from infnet_dist.io.ports import free_ports
from ray_jobs._local import run_local


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFNET_ROOT", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_path(Path("data/x")) == tmp_path / "data" / "x"
    assert resolve_path(Path("/data/x")) == Path("/data/x")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"'data/x' .*INFNET_ROOT"):
        resolve_path(Path("data/x"))
    assert resolve_path(Path("/data/x")) == Path("/data/x")
    monkeypatch.setenv("INFNET_ROOT", "/somewhere")
    assert resolve_path(Path("data/x")) == Path("/somewhere/data/x")


def test_backend_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_for(False) == "gloo"
    assert backend_for(True) == "cpu:gloo,cuda:nccl"
    assert device_for(False, 1).type == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"scaling\.use_gpu"):
        device_for(True, 0)
    assert all(0 < port < 32768 for port in free_ports(3))


def test_ports_that_are_taken_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        (free,) = free_ports(1)
        monkeypatch.setattr("random.SystemRandom.sample", lambda *_: [busy, free])
        assert free_ports(1) == [free]
        with pytest.raises(RuntimeError, match=r"20000 .*32000"):
            free_ports(2)


def _where_it_listens(context: WorkerContext) -> list[str]:
    dist.all_reduce(torch.ones(1))
    sockets = psutil.Process().net_connections("inet")
    return [socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN]


def test_processes_of_this_machine_meet_on_loopback() -> None:
    places = run_local(_where_it_listens, {}, num_workers=2, use_gpu=False, timeout_s=60)
    assert {ip.removeprefix("::ffff:") for rank in places for ip in rank} == {"127.0.0.1"}
    assert len(places[0]) >= 2  # where they meet, and gloo
