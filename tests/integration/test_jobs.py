"""`ray job submit` of train and evaluate on 2 workers, and the same commands without a cluster."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from infnet_dist.config.run import load_config
from infnet_dist.data.manifest import read_manifest
from ray_jobs._local_ray import LocalRay, job_environ
from tests.conftest import REPOSITORY
from tests.hostile_parquet import forget_fingerprints
from tests.jobs import last_line, run_here, submit
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


def read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(ray: LocalRay, root: Path) -> Path:
    """The folder of a run that was trained on Ray, and evaluated."""
    config = ["--config", str(root / "small.yaml")]
    assert run_here(root, "ingest", *config, "--set", "tracking.wandb=disabled")[0] == 0
    done = submit(ray, root, "train", *config, "--run-id", "one")
    assert done.returncode == 0, done.stdout
    assert run_here(root, "evaluate", *config)[0] == 0
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


def predicted(folder: Path) -> pa.Table:
    """All parts of a prediction, as pyarrow reads a folder."""
    assert json.loads((folder / "_prediction.json").read_text())["rows"] == 400
    return pq.read_table(folder)


def test_predict_scores_as_evaluate(run: Path, root: Path) -> None:
    """A split, and a copy of its files where no training set is; the same command again."""
    config = ["--config", str(root / "small.yaml"), "--logits", "--keys", "label=click"]
    of_split = [*config, "--split", "valid", "--output", "scores/split"]
    assert run_here(root, "predict", *of_split)[0] == 0
    table = predicted(root / "scores" / "split")
    metrics = json.loads(evaluation_of(run).read_text())["metrics"]
    auc = roc_auc_score(table["label"].to_numpy(), table["click_logit"].to_numpy())
    assert auc == pytest.approx(metrics["valid/auc/click"], abs=1e-9)
    shutil.copytree(root / "data" / "small" / "valid", root / "rows")
    code, _ = run_here(
        root,
        "predict",
        *(*config, "--input", "rows", "--output", "scores/rows"),
        *("--set", "data.path=data/none", "--set", "scaling.num_workers=1"),
    )
    assert code == 0
    other = predicted(root / "scores" / "rows")
    assert other["source_file"].to_pylist() == ["part-00000.parquet"] * 400
    assert other["label"].equals(table["label"])
    assert other["like"].to_pylist() == pytest.approx(table["like"].to_pylist(), abs=1e-6)
    written = {p.name: p.stat().st_mtime_ns for p in (root / "scores/split").glob("part-*")}
    assert run_here(root, "predict", *of_split)[0] == 0
    again = {p.name: p.stat().st_mtime_ns for p in (root / "scores/split").glob("part-*")}
    assert again == written, "finished parts are kept"
    code, line = run_here(root, "predict", *of_split, "--tasks", "like")
    assert code == 1 and "--overwrite" in line


@pytest.mark.exhaustive
def test_predict_on_ray(ray: LocalRay, run: Path, root: Path) -> None:
    arguments = ["--config", str(root / "small.yaml"), "--split", "test", "--logits"]
    done = submit(ray, root, "predict", *arguments, "--output", "scores/ray")
    assert done.returncode == 0, done.stdout
    assert run_here(root, "predict", *arguments, "--output", "scores/here")[0] == 0
    on_ray, here = (predicted(root / "scores" / name) for name in ("ray", "here"))
    assert on_ray.equals(here)


@pytest.mark.exhaustive
def test_evaluate_on_ray(ray: LocalRay, run: Path, root: Path) -> None:
    here = json.loads(evaluation_of(run).read_text())
    evaluation_of(run).unlink()
    done = submit(ray, root, "evaluate", "--config", str(root / "small.yaml"))
    assert done.returncode == 0, done.stdout
    on_ray = json.loads(evaluation_of(run).read_text())
    assert on_ray["metrics"] == pytest.approx(here["metrics"], abs=1e-6, nan_ok=True)


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


@pytest.mark.parametrize("launcher", ["local", pytest.param("ray", marks=pytest.mark.exhaustive)])
def test_without_a_cluster_the_losses_are_the_same(run: Path, root: Path, launcher: str) -> None:
    """By local processes, and by a Ray that the command starts for itself."""
    arguments = ["--config", str(root / "small.yaml"), "--run-id", launcher]
    if launcher == "local":
        assert run_here(root, "train", *arguments)[0] == 0
    else:
        done = subprocess.run(
            [sys.executable, "-m", "ray_jobs.train", *arguments],
            cwd=REPOSITORY,
            env=job_environ(root),
            capture_output=True,
            text=True,
            timeout=1700,
        )
        assert done.returncode == 0, done.stderr
        assert "Failed to query" not in done.stdout + done.stderr, "Ray Train warns each second"
    local, on_ray = read_metrics(root / "runs" / "small" / launcher), read_metrics(run)
    assert len(local) == len(on_ray)
    for ours, theirs in zip(local, on_ray, strict=True):
        kept = {k: v for k, v in ours.items() if not k.startswith(("perf/", "memory/"))}
        assert kept == pytest.approx({k: theirs[k] for k in kept}, abs=1e-6, nan_ok=True)


def test_evaluate_with_another_number_of_workers(run: Path, root: Path) -> None:
    before = json.loads(evaluation_of(run).read_text())
    code, _ = run_here(
        root,
        "evaluate",
        *("--config", str(root / "small.yaml"), "--set", "scaling.num_workers=3"),
        *("--checkpoint", before["checkpoint"], "--split", "test"),
    )
    assert code == 0
    after = json.loads(evaluation_of(run, "test").read_text())
    assert after["rows"] == 400 and after["step"] == before["step"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["data.pth=x"], ["'data.pth'", "'path'"]),
        (["data.tasks=[clik]"], ["'clik'", "'click'"]),
        (["data.batch_size=99999"], ["3200", "99999"]),
        (["data.path=data/none"], ["data/none", "infnet ingest"]),
        (["sharding.plan=no.json"], ["no.json"]),
        (["sharding.plan=PLAN", "scaling.num_workers=3"], ["world_size", "2", "3"]),
    ],
)
def test_bad_input_ends_with_one_clear_line(
    run: Path, root: Path, arguments: list[str], named: list[str]
) -> None:
    before = files_of(root)
    settings = [word.replace("PLAN", str(run / "plan.json")) for word in arguments]
    overrides = [word for setting in settings for word in ("--set", setting)]
    code, line = run_here(root, "train", "--config", str(root / "small.yaml"), *overrides)
    assert code == 1
    assert line.startswith("error: ")
    assert [word for word in named if word not in line] == [], line
    assert before == files_of(root)


def test_a_process_ends_with_the_line_and_the_code(root: Path) -> None:
    command = [sys.executable, "-m", "ray_jobs.train", "--config", str(root / "small.yaml")]
    done = subprocess.run(
        [*command, "--set", "data.pth=x"],
        cwd=REPOSITORY,
        env=job_environ(root),
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 1
    assert re.match(r"error: .*'data\.pth'", done.stderr.strip().splitlines()[-1]), done.stderr


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if "wandb" not in str(path))


def test_the_root_error_of_a_worker_is_the_jobs_last_line(
    ray: LocalRay, run: Path, root: Path
) -> None:
    """Of an evaluation."""
    part = root / "data" / "bad" / "valid" / "part-00000.parquet"
    shutil.copytree(root / "data" / "small", root / "data" / "bad")
    table = pq.read_table(part)
    ids = pa.array([5_000, *table.column("item_id").to_pylist()[1:]], pa.int64())
    place = table.column_names.index("item_id")
    pq.write_table(table.set_column(place, "item_id", ids), part, row_group_size=700)
    forget_fingerprints(root / "data" / "bad")
    config = ["--config", str(root / "small.yaml"), "--set", "data.path=data/bad"]
    done = submit(ray, root, "evaluate", *config)
    assert done.returncode == 1
    assert re.match(r"error: .*valid/part-00000\.parquet.*'item_id'.*\b5000\b", last_line(done)), (
        done.stdout
    )


@pytest.mark.parametrize("users", [300, pytest.param(None, marks=pytest.mark.exhaustive)])
def test_kuairand_slice(root: Path, shared_data: Path, tmp_path: Path, users: int | None) -> None:
    """The real logs, of some or all users, from ingest to evaluation on a few steps."""
    raw = shared_data / "kuairand_pure_slice"
    if users is not None:
        raw = of_users(raw, tmp_path / "raw", users)
    common = [
        *("--config", str(REPOSITORY / "configs" / "kuairand_pure.yaml")),
        *("--set", "tracking.wandb=disabled", "--set", f"run.folder={tmp_path / 'runs'}"),
        *("--set", f"ingest.path={raw}", "--set", f"data.path={tmp_path / 'set'}"),
        *("--set", "ingest.history_length=10", "--set", f"data.batch_size={64 if users else 512}"),
        *("--set", "training.max_steps=30", "--set", "model.token_dim=16"),
        *("--set", "sparse_optimizer.learning_rate=0.05", "--set", "schedule.decay_share=0"),
    ]
    for verb in ("ingest", "train", "evaluate"):
        assert run_here(root, verb, *common)[0] == 0, verb
    (run,) = (tmp_path / "runs" / "kuairand_pure").glob("2*")
    result = json.loads(evaluation_of(run).read_text())
    assert result["rows"] == pq.read_metadata(raw / "interactions_valid.parquet").num_rows
    assert result["optimum"] == {}
    assert {"click", "like", "long_view"} <= {key.split("/")[2] for key in result["metrics"]}
    if users is None:
        assert result["metrics"]["valid/auc/click"] > 0.55, "better than chance after 30 steps"


def of_users(raw: Path, folder: Path, users: int) -> Path:
    """A copy of KuaiRand's slice with the first users' rows alone."""
    folder.mkdir()
    for path in raw.glob("*.parquet"):
        table = pq.read_table(path)
        if path.stem.startswith(("interactions", "exposure")):
            table = table.filter(pc.less(table["user_id"], users))
        pq.write_table(table, folder / path.name)
    return folder
