"""Logs ingested by submitted Ray jobs and by local processes that are killed, and trained on."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from infnet_dist.data.manifest import read_manifest
from ray_jobs._local_ray import LocalRay, job_environ
from tests.conftest import REPOSITORY
from tests.jobs import last_line, run_here, submit
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


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(folder.rglob("*.parquet"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_jobs_on_ray_add_logs_and_train(ray: LocalRay, root: Path) -> None:
    config = ("--config", str(root / "logs.yaml"))
    write_logs(root / "logs" / "first", ROWS[:CUT], files=3)
    assert run_here(root, "ingest", *config)[0] == 0
    first = read_manifest(root / "data" / "logs")
    assert run_here(root, "ingest", *config)[0] == 0
    assert read_manifest(root / "data" / "logs") == first

    write_logs(root / "logs" / "second", ROWS[CUT:], files=2)
    later = (*config, "--set", "ingest.valid_from='2026-01-04'")
    done = submit(ray, root, "ingest", *later)
    assert done.returncode == 0, done.stdout
    assert "shuffle: " in done.stdout and " left" in done.stdout
    manifest = read_manifest(root / "data" / "logs")
    assert manifest.ingested is not None and manifest.ingested.generation == 2
    found = [row for split in manifest.splits for row in read_split(root / "data" / "logs", split)]
    assert sorted(r["time_ms"] for r in found) == sorted(r["time_ms"] for r in ROWS)
    assert run_here(root, "train", *later, "--run-id", "one")[0] == 0
    summary = json.loads((root / "runs" / "logs" / "one" / "summary.json").read_text())
    assert summary["steps"] == 10 and "valid/auc/click" in summary["metrics"]
    # Local processes make the same files.
    assert run_here(root, "ingest", *later, "--set", "data.path=data/local")[0] == 0
    whole = read_manifest(root / "data" / "local")
    assert whole.split("valid").rows == manifest.split("valid").rows


def test_an_error_of_a_task_is_the_jobs_last_line(ray: LocalRay, root: Path) -> None:
    bad = [row | {"is_click": 3} for row in ROWS[:500]]
    write_logs(root / "bad", bad)
    config = ("--config", str(root / "logs.yaml"))
    config += ("--set", "ingest.path=bad", "--set", "data.path=data/bad")
    done = submit(ray, root, "ingest", *config)
    assert done.returncode == 1
    assert re.match(r"error: .*\b500\b.*ingest\.max_bad_share", last_line(done)), done.stdout
    (root / "bad" / "log-1.parquet").write_bytes(b"PAR1")
    code, line = run_here(root, "ingest", *config)
    assert code == 1
    assert re.match(r"error: .*log-1\.parquet", line)
    assert not (root / "data" / "bad").exists()


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set whose ingest was not interrupted; its logs are beside it."""
    folder = tmp_path_factory.mktemp("whole")
    write_logs(folder / "logs", ROWS, files=4)
    assert run_here(root, "ingest", *ingest_to(root, folder, folder / "set"))[0] == 0
    return folder / "set"


def ingest_to(root: Path, raw: Path, made: Path) -> list[str]:
    values = (f"ingest.path={raw / 'logs'}", "ingest.row_group_rows=500", f"data.path={made}")
    sets = [word for value in values for word in ("--set", value)]
    return ["--config", str(root / "logs.yaml"), *sets]


@pytest.mark.parametrize(
    "wait_for", [pytest.param("partition", marks=pytest.mark.exhaustive), "shuffle"]
)
def test_a_killed_job_resumes(root: Path, whole: Path, wait_for: str, tmp_path: Path) -> None:
    """SIGKILL to the driver: its processes end too, nothing is published, a rerun completes it."""
    arguments = ingest_to(root, whole.parent, tmp_path / "killed")
    command = [sys.executable, "-m", "ray_jobs.ingest", *arguments, "--launcher", "local"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=job_environ(root), stderr=subprocess.DEVNULL
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
    assert run_here(root, "ingest", *arguments)[0] == 0
    assert contents(tmp_path / "killed") == contents(whole)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.exhaustive
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
    assert run_here(root, "ingest", "--config", str(tmp_path / "run.yaml"))[0] == 0
    for split in ("train", "valid"):
        raw = pq.read_table(place / f"interactions_{split}.parquet").to_pylist()
        found = read_split(tmp_path / "set", split)
        key = ["user_id", "time_ms", "is_click", "is_like"]
        made = ["group", "time_ms", "label_click", "label_like"]
        assert sorted([row[k] for k in key] for row in raw) == sorted(
            [row[k] for k in made] for row in found
        )
