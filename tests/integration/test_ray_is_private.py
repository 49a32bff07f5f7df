"""Ray as other users see it: where it listens, whom it lets in, what it leaves, its job list."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs._auth import token_header, write_token
from ray_jobs._local_ray import LocalRay

KEY = "0123456789abcdef-not-a-real-key"
# Starts a Ray by `connect`, and prints the sockets of all its processes.
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
    "end",
    [
        pytest.param("", marks=pytest.mark.exhaustive),
        pytest.param("disconnect()", marks=pytest.mark.exhaustive),
        "from ray_jobs._cli import run_main; run_main(lambda argv: 1 // 0)",
    ],
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


@pytest.fixture(scope="module")
def ray_with_a_secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    """A Ray whose environment has an API key."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WANDB_API_KEY", KEY)
        with LocalRay(tmp_path_factory.mktemp("root"), num_cpus=1) as ray:
            yield ray


def test_the_list_of_jobs_shows_no_secret(ray_with_a_secret: LocalRay, tmp_path: Path) -> None:
    ray = ray_with_a_secret
    (tmp_path / "tell.py").write_text(TELL)
    done = ray.submit(["python", "tell.py"], working_dir=tmp_path, env={"A": "b"})
    assert "it has the key" in done.stdout
    command = str(Path(sys.executable).with_name("ray"))
    listed = subprocess.run(
        [command, "job", "list", "--address", ray.dashboard_url],
        env=ray.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    jobs = get(f"{ray.dashboard_url}/api/jobs/", token_header(ray.token_file))
    assert "tell.py" in listed.stdout
    assert "tell.py" in jobs
    assert KEY not in listed.stdout + listed.stderr + jobs + done.stdout
    files = [path for path in ray.temp_dir.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_nobody_is_let_in_without_the_token(ray_with_a_secret: LocalRay, tmp_path: Path) -> None:
    ray = ray_with_a_secret
    (tmp_path / "other").mkdir()
    assert ray.token_file.stat().st_mode & 0o077 == 0, "only its owner can read it"
    jobs = f"{ray.dashboard_url}/api/jobs/"
    other = write_token(tmp_path / "other")
    before = get(jobs, token_header(ray.token_file))
    for header, status in (({}, 401), (token_header(other), 403)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(jobs, header)
        assert refused.value.code == status
    without = {k: v for k, v in ray.environ.items() if not k.startswith("RAY_AUTH_")}
    wrong = ray.environ | {"RAY_AUTH_TOKEN_PATH": str(other)}
    for environ in (without, wrong):
        command = [str(Path(sys.executable).with_name("ray")), "job", "submit"]
        submitted = subprocess.run(
            [*command, "--address", ray.dashboard_url, "--", "python", "-V"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert submitted.returncode, submitted.stdout
    assert get(jobs, token_header(ray.token_file)) == before


def get(url: str, headers: dict[str, str]) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.read().decode()
