import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from infnet_dist.io.ports import free_ports
from ray_jobs import _local_ray
from ray_jobs._local_ray import LocalRay
from tests.runs import make_config, make_tiny_set

HELLO = "import os; print('hello from', os.environ['INFNET_ROOT'], os.environ['GREETING'])"
# Starts a Ray, prints where, and waits to be killed.
HOLDER = """
import sys, time
from pathlib import Path
from infnet_dist.io.ports import free_ports
from ray_jobs import _local_ray
from ray_jobs._local_ray import LocalRay
with LocalRay(Path(sys.argv[1]), num_cpus=1) as ray:
    print(ray.guard.pid, ray.temp_dir, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def job_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "job.py").write_text("import sys; print('leaving'); sys.exit(7)\n")
    return folder


def family(guard_pid: int) -> list[psutil.Process]:
    guard = psutil.Process(guard_pid)
    return [guard, *guard.children(recursive=True)]


def users_of(temp_dir: Path) -> Iterator[psutil.Process]:
    """Processes that name the folder; independent of how LocalRay finds its own."""
    for process in psutil.process_iter(["cmdline"]):
        if any(str(temp_dir) in word for word in process.info["cmdline"] or ()):
            yield process


def listening_on(process: psutil.Process) -> list[tuple[str, int]]:
    with suppress(psutil.Error):
        return [
            (connection.laddr.ip, connection.laddr.port)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    return []


@pytest.mark.exhaustive
def test_two_at_once_and_nothing_left(tmp_path: Path, job_folder: Path) -> None:
    with LocalRay(tmp_path / "a", num_cpus=1) as one, LocalRay(tmp_path / "b", num_cpus=1) as two:
        assert one.address != two.address
        with ThreadPoolExecutor(2) as pool:
            good = pool.submit(
                one.submit,
                ["python", "-c", HELLO],
                working_dir=job_folder,
                env={"GREETING": "cheers"},
            )
            bad = pool.submit(two.submit, ["python", "job.py"], working_dir=job_folder)
        assert good.result().returncode == 0, good.result().stdout
        assert f"hello from {tmp_path / 'a'} cheers" in good.result().stdout
        assert bad.result().returncode == 7, bad.result().stdout
        assert "leaving" in bad.result().stdout
        processes = family(one.guard.pid) + family(two.guard.pid)
        assert len(processes) > 10
        listening = [address for process in processes for address in listening_on(process)]
        assert {ip.removeprefix("::ffff:") for ip, _ in listening} == {"127.0.0.1"}
        assert one.address in {f"127.0.0.1:{port}" for _, port in listening}
        assert list(users_of(one.temp_dir))
    assert [process for process in processes if process.is_running()] == []
    for ray in (one, two):
        assert list(users_of(ray.temp_dir)) == []
        assert not ray.temp_dir.exists()


@pytest.mark.faults
def test_killed_parent_leaves_nothing(tmp_path: Path, repository: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=repository,
    )
    assert holder.stdout is not None
    guard_pid, temp_dir = holder.stdout.readline().split()
    processes = family(int(guard_pid))
    holder.kill()
    holder.communicate()
    deadline = time.monotonic() + 20
    while any(process.is_running() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [process for process in processes if process.is_running()] == []
    assert list(users_of(Path(temp_dir))) == []
    assert not Path(temp_dir).exists()


def test_a_failing_head_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ray = LocalRay(tmp_path, num_cpus="many")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError), ray:
        pass
    assert "'many'" in capfd.readouterr().err
    assert not ray.temp_dir.exists()


@pytest.mark.exhaustive
def test_a_ray_that_could_run_no_job_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process took the port of the node's agent, without which jobs can't be submitted."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = free_ports(10)
        agent = _local_ray._CHOSEN_PORTS.index("--dashboard-agent-listen-port")
        ports[agent] = port
        monkeypatch.setattr(_local_ray, "free_ports", lambda count: ports[:count])
        monkeypatch.setattr(_local_ray, "START_TIMEOUT_S", 30.0)
        ray = LocalRay(tmp_path, num_cpus=1)
        with pytest.raises(RuntimeError, match="agent"), ray:
            pass
    assert not ray.temp_dir.exists()


@pytest.mark.exhaustive
def test_the_readme_s_way_to_train_with_a_token(tmp_path: Path, repository: Path) -> None:
    """Its commands in order, but a head that listens on free ports alone, and a smaller run."""
    readme = (repository / "README.md").read_text()
    blocks = re.findall(r"(?:^    .*\n)+", readme, re.M)
    (block,) = [block for block in blocks if "ray start --head" in block]
    assert "RAY_AUTH_MODE=disabled" not in readme
    lines = [line.strip() for line in block.splitlines()]
    before = lines[: lines.index("ray start --head")]
    (make_token,) = [line for line in before if "get-auth-token" in line]
    (ask,) = [line for line in before if "RAY_AUTH_MODE" in line]
    config = make_config(make_tiny_set(tmp_path / "data"), tmp_path / "runs")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "c.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    token_file = tmp_path / ".ray" / "auth_token"
    ray = LocalRay(tmp_path, num_cpus=4, token_file=token_file)
    ray.environ |= {"HOME": str(tmp_path), "PYTHONPATH": str(repository)}
    subprocess.run(["bash", "-euc", make_token], env=ray.environ, check=True)
    assert token_file.stat().st_mode & 0o077 == 0, "only its owner can read it"
    with ray:
        submit = "ray job submit --working-dir . -- python -m ray_jobs.train --config c.yaml"
        del ray.environ["RAY_AUTH_MODE"], ray.environ["RAY_AUTH_TOKEN_PATH"]
        done = subprocess.run(
            ["bash", "-euc", f"{ask}\n{submit} --run-id run"],
            cwd=tmp_path / "job",
            env=ray.environ | {"RAY_API_SERVER_ADDRESS": ray.dashboard_url},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "runs" / "test" / "run" / "summary.json").exists()
