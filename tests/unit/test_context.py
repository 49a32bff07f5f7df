"""Where relative paths stand, and which backend is chosen."""

from pathlib import Path

import pytest

from infnet_dist.context import backend_for, device_for, free_port
from infnet_dist.errors import ConfigError
from infnet_dist.paths import resolve_path


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFNET_ROOT", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_path(Path("data/x")) == tmp_path / "data" / "x"
    assert resolve_path(Path("/data/x")) == Path("/data/x")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"'data/x' is relative, and a Ray job .*INFNET_ROOT"):
        resolve_path(Path("data/x"))
    assert resolve_path(Path("/data/x")) == Path("/data/x")
    monkeypatch.setenv("INFNET_ROOT", "/somewhere")
    assert resolve_path(Path("data/x")) == Path("/somewhere/data/x")


def test_backend_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_for(False) == "gloo"
    assert backend_for(True) == "cpu:gloo,cuda:nccl"
    assert device_for(False, 1).type == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"scaling\.use_gpu is true, but torch sees no GPU"):
        device_for(True, 0)
    assert 0 < free_port() < 65536
