"""What Ray shows to others: where it listens, what it leaves behind, what its job list tells."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from ray_jobs._local_ray import LocalRay

KEY = "0123456789abcdef-not-a-real-key"
# Starts a Ray by `connect`, and tells of the sockets of all its processes.
CONNECTED = """
import json, logging, psutil
from ray_jobs._cluster import connect, disconnect
connect()
import ray
assert ray.get(ray.remote(lambda: 1).remote()) == 1
connect()
me = psutil.Process()
processes = [me, *me.children(recursive=True)]
places = [
    socket.laddr.ip
    for process in processes
    for socket in process.net_connections("inet")
    if socket.status == psutil.CONN_LISTEN or socket.type.name == "SOCK_DGRAM"
]
print(json.dumps([len(processes), places, ray._private.worker._global_node.get_temp_dir_path()]))
"""
TELL = """
import os
print("it has the key" if os.environ.get("WANDB_API_KEY") else "it lacks the key")
"""


@pytest.mark.parametrize(
    "end", ["", "disconnect()", "from ray_jobs._cli import run_main; run_main(lambda argv: 1 // 0)"]
)
def test_a_ray_of_ones_own_is_of_no_use_to_others(
    tmp_path: Path, repository: Path, end: str
) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", CONNECTED + end],
        cwd=repository,
        env=environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == (1 if "run_main" in end else 0), done.stderr
    count, places, folder = json.loads(done.stdout.splitlines()[-1])
    assert count >= 4
    assert len(places) >= 4
    assert {ip.removeprefix("::ffff:") for ip in places} <= {"127.0.0.1", "::1"}
    assert not Path(folder).exists()
    assert list(tmp_path.iterdir()) == []


def test_the_list_of_jobs_tells_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "tell.py").write_text(TELL)
    with LocalRay(tmp_path, num_cpus=1) as ray:
        done = ray.submit(["python", "tell.py"], working_dir=tmp_path / "job", env={"A": "b"})
        assert "it has the key" in done.stdout
        command = str(Path(sys.executable).with_name("ray"))
        told = subprocess.run(
            [command, "job", "list", "--address", ray.dashboard_url],
            env=ray.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        with urllib.request.urlopen(f"{ray.dashboard_url}/api/jobs/", timeout=30) as answer:
            jobs = answer.read().decode()
        assert "tell.py" in told.stdout
        assert "tell.py" in jobs
        assert KEY not in told.stdout + told.stderr + jobs + done.stdout
        files = [path for path in ray.temp_dir.rglob("*") if path.is_file()]
        assert len(files) > 10
        assert [path for path in files if KEY.encode() in path.read_bytes()] == []
