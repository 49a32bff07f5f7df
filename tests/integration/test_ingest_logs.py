"""Logs ingested by submitted Ray jobs and by local processes, killed on the way, trained on."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from infnet_dist.data.manifest import read_manifest
from ray_jobs._local_ray import LocalRay, job_environ
from tests.conftest import REPOSITORY
from tests.unit.raw_logs import make_rows, read_split, settings, write_logs

ROWS = sorted(make_rows(0, rows=6_000, users=150, items=80), key=lambda row: row["time_ms"])
CUT = 4_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """INFNET_ROOT of all jobs here."""
    folder = tmp_path_factory.mktemp("root")
    ingest = settings(Path("logs"), valid_from="2026-01-02").model_dump(mode="json")
    config = {
        "run": {"name": "logs"},
        "ingest": ingest,
        "data": {"path": "data/logs", "batch_size": 64},
        "training": {"max_steps": 10},
        "tracking": {"wandb": "disabled"},
    }
    (folder / "logs.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def ray(root: Path) -> Iterator[LocalRay]:
    with LocalRay(root, num_cpus=4) as running:
        yield running


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(folder.rglob("*.parquet"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def command(root: Path, *more: str) -> list[str]:
    return ["python", "-m", "ray_jobs.ingest", "--config", str(root / "logs.yaml"), *more]


def submit(ray: LocalRay, *arguments: str) -> subprocess.CompletedProcess[str]:
    return ray.submit(list(arguments), working_dir=REPOSITORY)


def local(root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, *command(root, *more)[1:], "--launcher", "local"]
    return subprocess.run(
        arguments,
        cwd=REPOSITORY,
        env=job_environ(root),
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_jobs_on_ray_add_logs_and_train(ray: LocalRay, root: Path) -> None:
    write_logs(root / "logs" / "first", ROWS[:CUT], files=3)
    done = submit(ray, *command(root))
    assert done.returncode == 0, done.stdout
    assert "shuffle: " in done.stdout and " left" in done.stdout
    first = read_manifest(root / "data" / "logs")
    done = submit(ray, *command(root))
    assert "is up to date" in done.stdout
    assert read_manifest(root / "data" / "logs") == first

    write_logs(root / "logs" / "second", ROWS[CUT:], files=2)
    later = ["--set", "ingest.valid_from='2026-01-04'"]
    done = submit(ray, *command(root, *later))
    assert done.returncode == 0, done.stdout
    manifest = read_manifest(root / "data" / "logs")
    assert manifest.ingested is not None and manifest.ingested.generation == 2
    found = [row for split in manifest.splits for row in read_split(root / "data" / "logs", split)]
    assert sorted(r["time_ms"] for r in found) == sorted(r["time_ms"] for r in ROWS)
    done = submit(ray, "python", "-m", "ray_jobs.train", *command(root, *later)[3:])
    assert done.returncode == 0, done.stdout
    assert "valid at step 10" in done.stdout
    # Local processes make the same files.
    done = local(root, "--set", "data.path=data/local", *later)
    assert done.returncode == 0, done.stderr
    whole = read_manifest(root / "data" / "local")
    assert whole.split("valid").rows == manifest.split("valid").rows


def test_an_error_of_a_task_is_the_jobs_last_line(ray: LocalRay, root: Path) -> None:
    bad = [row | {"is_click": 3} for row in ROWS[:500]]
    write_logs(root / "bad", bad)
    done = submit(ray, *command(root, "--set", "ingest.path=bad", "--set", "data.path=data/bad"))
    assert done.returncode == 1
    job_log = done.stdout.split("WebSocket closed")[0].splitlines()[:-1]
    last = [line for line in job_log if line.strip()][-1]
    assert "500 of 500" in last and "ingest.max_bad_share" in last, last
    (root / "bad" / "log-1.parquet").write_bytes(b"PAR1")
    done = local(root, "--set", "ingest.path=bad", "--set", "data.path=data/bad")
    assert done.returncode == 1
    assert "log-1.parquet" in done.stderr.strip().splitlines()[-1]
    assert not (root / "data" / "bad").exists()


@pytest.mark.parametrize("wait_for", ["partition", "shuffle"])
def test_a_job_that_is_killed_goes_on(root: Path, wait_for: str, tmp_path: Path) -> None:
    """SIGKILL to the driver: its processes end as well, nothing is there, a rerun completes it."""
    write_logs(tmp_path / "logs", ROWS, files=4)
    common = ["--set", f"ingest.path={tmp_path / 'logs'}", "--set", "ingest.row_group_rows=500"]
    arguments = [sys.executable, *command(root, *common)[1:], "--launcher", "local"]
    killed = [*arguments, "--set", f"data.path={tmp_path / 'killed'}"]
    with subprocess.Popen(
        killed, cwd=REPOSITORY, env=job_environ(root), stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        done = tmp_path / ".killed.work" / "done" / wait_for
        while not (done.is_dir() and any(done.glob("*.json"))) and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.005)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not (tmp_path / "killed").exists()
    done = local(root, *common, "--set", f"data.path={tmp_path / 'killed'}")
    assert done.returncode == 0, done.stderr
    done = local(root, *common, "--set", f"data.path={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_kuairand_slice(root: Path, shared_data: Path, tmp_path: Path) -> None:
    """The real logs by the general way: each row once, with the labels it has."""
    place = shared_data / "kuairand_pure_slice"
    config = yaml.safe_load((REPOSITORY / "configs" / "kuairand_logs.yaml").read_text())
    config["ingest"]["path"] = str(place / "interactions_*.parquet")
    for join in config["ingest"]["joins"].values():
        join["path"] = str(place / Path(join["path"]).name)
    config["data"]["path"] = str(tmp_path / "set")
    config["tracking"] = {"wandb": "disabled"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    done = local(root, "--config", str(tmp_path / "run.yaml"))
    assert done.returncode == 0, done.stderr
    for split in ("train", "valid"):
        raw = pq.read_table(place / f"interactions_{split}.parquet").to_pylist()
        found = read_split(tmp_path / "set", split)
        key = ["user_id", "time_ms", "is_click", "is_like"]
        made = ["group", "time_ms", "label_click", "label_like"]
        assert sorted([row[k] for k in key] for row in raw) == sorted(
            [row[k] for k in made] for row in found
        )
