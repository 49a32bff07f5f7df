"""The real path: `ray job submit` of ingest, train and evaluate, 2 workers, a Ray of ours."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from infnet_dist.config.run import load_config
from infnet_dist.data.manifest import read_manifest
from ray_jobs._local_ray import LocalRay, job_environ
from tests.conftest import REPOSITORY
from tests.hostile_parquet import forget_fingerprints
from tests.wandb_file import read_history

SMALL = {
    "run": {"name": "small"},
    "ingest": {
        "source": "synthetic",
        "num_rows": 4_000,
        "num_users": 100,
        "num_items": 100,
        "num_authors": 20,
        "history_length": 8,
        "row_group_rows": 700,
    },
    "data": {"path": "data/small", "batch_size": 64},
    "model": {"token_dim": 16},
    "training": {"log_every_steps": 5},
    "scaling": {"num_workers": 2},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """INFNET_ROOT of all jobs here."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return folder


@pytest.fixture(scope="module")
def ray(root: Path) -> Iterator[LocalRay]:
    with LocalRay(root, num_cpus=4) as running:
        yield running


def submit(ray: LocalRay, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["python", "-m", f"ray_jobs.{verb}", *arguments]
    return ray.submit(command, working_dir=REPOSITORY)


def run_here(
    root: Path, verb: str, *arguments: str, launcher: str = "local"
) -> subprocess.CompletedProcess[str]:
    """The same command without a cluster."""
    command = [sys.executable, "-m", f"ray_jobs.{verb}", *arguments, "--launcher", launcher]
    return subprocess.run(
        command, cwd=REPOSITORY, env=job_environ(root), capture_output=True, text=True, timeout=240
    )


def read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(ray: LocalRay, root: Path) -> Path:
    """The folder of a run that went the whole way."""
    config = ["--config", str(root / "small.yaml")]
    for verb, extra in (("ingest", []), ("train", ["--run-id", "one"]), ("evaluate", [])):
        done = submit(ray, verb, *config, *extra)
        assert done.returncode == 0, done.stdout
    return root / "runs" / "small" / "one"


def test_everything_is_in_the_run_folder(run: Path, root: Path) -> None:
    rows = read_manifest(root / "data" / "small").split("train").rows
    summary = json.loads((run / "summary.json").read_text())
    assert summary["num_workers"] == 2
    assert summary["examples"] == rows == 3_200
    assert summary["steps"] == math.ceil(rows / 2 / 64)
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    plan = json.loads((run / "plan.json").read_text())
    assert len(plan["ranks"]["stored_bytes"]) == 2
    assert set(plan["tables"]) >= {"user", "item", "author"}
    resolved = load_config(run / "config.yaml")
    assert resolved.data.path == root / "data" / "small"
    assert resolved.ingest == load_config(root / "small.yaml").ingest
    assert json.loads((run / "versions.json").read_text())["torchrec"] == "1.8.0"
    checkpoint = Path(summary["checkpoint"])
    assert {"manifest.json", "plan.json", "config.yaml"} <= {p.name for p in checkpoint.iterdir()}


def evaluation_of(run: Path, split: str = "valid") -> Path:
    step = json.loads((run / "summary.json").read_text())["steps"]
    return run / f"evaluation-{split}-step-{step:08d}.json"


def test_evaluate_repeats_the_metrics_of_training(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    evaluation = json.loads(evaluation_of(run).read_text())
    assert evaluation["rows"] == 400
    assert evaluation["metrics"] == pytest.approx(summary["metrics"], abs=1e-6, nan_ok=True)
    assert evaluation["optimum"]["valid/auc/click"] > evaluation["metrics"]["valid/auc/click"]


def test_the_wandb_offline_run_holds_the_logged_metrics(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    history = {}
    for record in read_history(Path(summary["wandb"])):
        history.setdefault(int(record["_step"]), {}).update(record)
    logged: dict[int, dict] = {}
    for record in read_metrics(run):
        logged.setdefault(record["step"], {}).update(record)
    assert history.keys() == logged.keys()
    for step, metrics in logged.items():
        for key, value in metrics.items():
            if key != "step" and value is not None:
                assert history[step][key] == pytest.approx(value), (step, key)


@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_without_a_cluster_the_losses_are_the_same(run: Path, root: Path, launcher: str) -> None:
    arguments = ["--config", str(root / "small.yaml"), "--run-id", launcher]
    done = run_here(root, "train", *arguments, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert "Failed to query" not in done.stdout + done.stderr, "Ray Train warns each second"
    local, on_ray = read_metrics(root / "runs" / "small" / launcher), read_metrics(run)
    assert len(local) == len(on_ray)
    for ours, theirs in zip(local, on_ray, strict=True):
        kept = {k: v for k, v in ours.items() if not k.startswith(("perf/", "memory/"))}
        assert kept == pytest.approx({k: theirs[k] for k in kept}, abs=1e-6, nan_ok=True)


def test_evaluate_with_another_number_of_workers(run: Path, root: Path) -> None:
    before = json.loads(evaluation_of(run).read_text())
    done = run_here(
        root,
        "evaluate",
        *("--config", str(root / "small.yaml"), "--set", "scaling.num_workers=3"),
        *("--checkpoint", before["checkpoint"], "--split", "test"),
    )
    assert done.returncode == 0, done.stderr
    after = json.loads(evaluation_of(run, "test").read_text())
    assert after["rows"] == 400 and after["step"] == before["step"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "data.pth=x"], "unknown key 'data.pth'; did you mean 'path'?"),
        (["--set", "data.tasks=[clik]"], "error: unknown task 'clik'; did you mean 'click'?"),
        (["--set", "data.batch_size=99999"], "error: train has 3200 rows, too few for one step"),
        (["--set", "data.path=data/none"], "no such folder; make one with: python -m ray_jobs."),
        (["--set", "sharding.plan=no.json"], "error: no plan file"),
        (["--set", "sharding.plan=PLAN"], "world_size is 2 in the plan, 3 here"),
    ],
)
def test_bad_input_ends_with_one_clear_line(
    run: Path, root: Path, arguments: list[str], message: str
) -> None:
    before = sorted(path for path in root.rglob("*") if "wandb" not in str(path))
    arguments = [a.replace("PLAN", str(run / "plan.json")) for a in arguments]
    arguments += ["--set", "scaling.num_workers=3"] if "plan.json" in arguments[-1] else []
    done = run_here(root, "train", "--config", str(root / "small.yaml"), *arguments)
    assert done.returncode == 1
    assert message in done.stderr.strip().splitlines()[-1]
    assert before == sorted(path for path in root.rglob("*") if "wandb" not in str(path))


def test_the_root_error_of_a_worker_is_the_jobs_last_line(
    ray: LocalRay, run: Path, root: Path
) -> None:
    part = root / "data" / "bad" / "train" / "part-00000.parquet"
    shutil.copytree(root / "data" / "small", root / "data" / "bad")
    table = pq.read_table(part)
    ids = pa.array([5_000, *table.column("item_id").to_pylist()[1:]], pa.int64())
    place = table.column_names.index("item_id")
    pq.write_table(table.set_column(place, "item_id", ids), part, row_group_size=700)
    forget_fingerprints(root / "data" / "bad")
    done = submit(ray, "train", "--config", str(root / "small.yaml"), "--set", "data.path=data/bad")
    assert done.returncode == 1
    job_log = done.stdout.split("WebSocket closed")[0].splitlines()[:-1]
    last = [line for line in job_log if line.strip()][-1]
    assert last.startswith(
        "error: train/part-00000.parquet, row group 0, column 'item_id': got 5000"
    )


def test_kuairand_slice(ray: LocalRay, root: Path, shared_data: Path) -> None:
    """The real logs, the whole way, on a few steps."""
    common = [
        *("--config", "configs/kuairand_pure.yaml"),
        *("--set", f"ingest.path={shared_data / 'kuairand_pure_slice'}"),
        *("--set", "ingest.history_length=10", "--set", "data.batch_size=512"),
        *("--set", "training.max_steps=30", "--set", "model.token_dim=16"),
        *("--set", "sparse_optimizer.learning_rate=0.05", "--set", "schedule.decay_share=0"),
    ]
    for verb in ("ingest", "train", "evaluate"):
        done = submit(ray, verb, *common)
        assert done.returncode == 0, done.stdout
    (run,) = (root / "runs" / "kuairand_pure").glob("2*")
    result = json.loads(evaluation_of(run).read_text())
    assert result["rows"] == 30_942
    assert result["optimum"] == {}
    assert {"click", "like", "long_view"} <= {key.split("/")[2] for key in result["metrics"]}
    assert result["metrics"]["valid/auc/click"] > 0.55, "better than chance after 30 steps"
