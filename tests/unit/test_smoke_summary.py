import json
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from infnet_dist.config.run import parse_config
from infnet_dist.io.console import COLUMNS_VARIABLE
from infnet_dist.io.paths import ROOT_VARIABLE
from infnet_dist.tools.doctor import Check
from ray_jobs import _local_ray, smoke

SUMMARY = {
    "run_folder": "/data/runs/smoke/20261122-111407",
    "steps": 312,
    "examples": 160000,
    "samples_per_s": 12345.6,
    "train_seconds": 13.0,
    "num_workers": 2,
    "checkpoint": "/data/runs/smoke/20261122-111407/checkpoints/step-312",
    "curves": "/data/runs/smoke/20261122-111407/curves.png",
    "metrics_jsonl": "/data/runs/smoke/20261122-111407/metrics.jsonl",
    "wandb": "/data/runs/smoke/20261122-111407/wandb/offline-run-1",
    "metrics": {"valid/auc/click": 0.71234},
}
EVALUATION = {
    "split": "valid",
    "rows": 20000,
    "checkpoint": SUMMARY["checkpoint"],
    "metrics": {
        "valid/auc/click": 0.71234,
        "valid/auc/like": 0.65,
        "valid/log_loss/click": 0.6,
    },
    "optimum": {"valid/auc/click": 0.74, "valid/log_loss/click": 0.58},
}


def shown(summary: dict, evaluation: dict) -> list[str]:
    out = StringIO()
    summary_shown = smoke.format_summary(summary, evaluation, seconds=98.4)
    Console(file=out, width=60).print(summary_shown, crop=False)
    return [" ".join(line.replace("│", " ").split()) for line in out.getvalue().splitlines()]


def test_metrics_stand_beside_the_optimum(tmp_path: Path):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "evaluation-valid-step-312.json").write_text(json.dumps(EVALUATION))
    lines = shown(*smoke.read_results(tmp_path))
    assert "valid: 20,000 rows" in lines
    assert "click auc 0.7123 0.7400" in lines
    assert "log_loss 0.6000 0.5800" in lines
    assert "like auc 0.6500 -" in lines


def test_speed_and_places():
    lines = shown(SUMMARY, EVALUATION)
    assert "speed 12,346 samples/s" in lines
    assert "training 13.0 s with 2 workers" in lines
    assert f"checkpoint {SUMMARY['checkpoint']}" in lines
    assert f"curves {SUMMARY['curves']}" in lines
    assert f"W&B {SUMMARY['wandb']}" in lines
    assert "total 98 s" in lines


def test_paths_are_short_where_possible():
    lines = shown(SUMMARY | {"curves": str(Path.cwd() / "runs" / "curves.png")}, EVALUATION)
    assert "curves runs/curves.png" in lines


def test_without_wandb_and_optimum():
    lines = shown(SUMMARY | {"wandb": None}, EVALUATION | {"optimum": {}})
    assert "W&B disabled" in lines
    assert "click auc 0.7123 -" in lines


def test_steps_share_config_overrides_and_run_id(tmp_path: Path):
    config = smoke.REPOSITORY / "configs" / "smoke.yaml"
    steps = smoke.steps_of(config, ["run.seed=1", "data.batch_size=8"], "20261122-111407")
    assert list(steps) == ["ingest", "train", "evaluate"]
    common = "--config configs/smoke.yaml --set run.seed=1 --set data.batch_size=8"
    assert " ".join(steps["ingest"]) == f"python -m ray_jobs.ingest {common}"
    expected = f"python -m ray_jobs.train {common} --run-id 20261122-111407"
    assert " ".join(steps["train"]) == expected
    # A file outside the repository isn't uploaded: named by its full path.
    assert str(tmp_path / "c.yaml") in smoke.steps_of(tmp_path / "c.yaml", [], "x")["train"]


@pytest.mark.parametrize(("workers", "cpu", "expected"), [(2, 1.0, 4), (3, 0.5, 4), (1, 2.0, 4)])
def test_workers_leave_cpus_to_ray(workers: int, cpu: float, expected: int):
    scaling = {"num_workers": workers, "resources_per_worker": {"CPU": cpu}}
    config = parse_config({"data": {"path": "x"}, "scaling": scaling})
    assert smoke.cpus_of(config) == expected


def test_wrong_config_is_told_before_ray_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(smoke, "LocalRay", None)
    monkeypatch.setenv(ROOT_VARIABLE, "")  # set by smoke, put back after the test
    path = tmp_path / "c.yaml"
    path.write_text("data: {path: x}\ntraning: {}\n")
    assert smoke.main(["--config", str(path), "--root", str(tmp_path)]) == 2
    assert "did you mean 'training'" in capsys.readouterr().err


def test_first_failure_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    submitted = []

    class FakeRay:
        def __init__(self, root: Path, num_cpus: int) -> None: ...
        def __enter__(self) -> "FakeRay":
            return self

        def __exit__(self, *args: object) -> None: ...
        def submit(self, args: list[str], *, working_dir: Path, env: object) -> object:
            submitted.append(args[0])
            return type("Done", (), {"returncode": 3 if args[0] == "b" else 0})

    monkeypatch.setattr(smoke, "LocalRay", FakeRay)
    assert smoke.run_steps({"x": ["a"], "y": ["b"], "z": ["c"]}, tmp_path, 4) == 3
    assert submitted == ["a", "b"]


def test_a_root_that_can_t_be_written_to_is_found_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(smoke, "run_steps", lambda *_: pytest.fail("started"))
    assert smoke.main(["--root", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said and "--root" in said and "Traceback" not in said


def test_progress_of_a_job_is_no_line_of_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(COLUMNS_VARIABLE, "80")
    job = tmp_path / "ray"
    script = "from infnet_dist.io.console import *; set_up_logging(); print('one', flush=True)"
    script += "; show_progress('train', 'step', 1, 9); print('two')"
    job.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{script}" 2>&1\n')
    job.chmod(0o755)
    monkeypatch.setattr(_local_ray, "_ray_command", lambda: str(job))
    ray = _local_ray.LocalRay(tmp_path, num_cpus=1)
    ray.dashboard_url = "http://127.0.0.1:1"
    ray.environ |= {"PYTHONPATH": str(smoke.REPOSITORY)}
    assert ray.submit(["python"], working_dir=tmp_path).stdout == "one\ntwo\n"
    assert capfd.readouterr().out == "one\ntwo\n"


def test_what_is_too_large_for_a_job_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Ray itself says 413 and no more."""
    refuses = tmp_path / "ray"
    refuses.write_text("#!/bin/sh\necho Request failed with status code 413; exit 1\n")
    refuses.chmod(0o755)
    monkeypatch.setattr(_local_ray, "_ray_command", lambda: str(refuses))
    large = Check("job upload", "warn", "weights.bin 900.0 MiB", "$EDITOR .rayignore")
    monkeypatch.setattr(_local_ray, "check_upload", lambda folder: large)
    ray = _local_ray.LocalRay(tmp_path, num_cpus=1)
    ray.dashboard_url = "http://127.0.0.1:1"
    assert ray.submit(["python"], working_dir=tmp_path).returncode == 1
    assert "weights.bin 900.0 MiB" in capfd.readouterr().out
