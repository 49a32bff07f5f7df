import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infnet_dist.tools import doctor, doctor_probes

UNDEFINED_SYMBOL = "undefined symbol: _ZN3c105ErrorC2ENS_14SourceLocationE"


def examine(repository: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infnet_dist.tools.doctor", *options],
        capture_output=True,
        text=True,
        cwd=repository,
        env={**os.environ, "COLUMNS": "200", **environ},
    )


def test_this_machine_is_fit(repository: Path):
    done = examine(repository, "--json", OMP_NUM_THREADS="1")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    failed = [check for check in checks.values() if check["status"] == "fail"]
    assert failed == []
    assert done.returncode == 0
    assert checks["fused_update"]["detail"] == "row-wise Adagrad changes rows 3, 5, 7 and no other"
    assert checks["lookup"]["status"] == "ok"
    assert checks["petastorm"]["status"] == "info"
    assert checks["threads"]["status"] == "ok"


def test_broken_torchrec_fails_and_names_the_command(repository: Path, tmp_path: Path):
    (tmp_path / "torchrec.py").write_text(f"raise ImportError({UNDEFINED_SYMBOL!r})\n")
    # Slow to import, and beside the point. Without rich the report is plain text.
    for name in ("fbgemm_gpu", "ray", "matplotlib", "rich"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')\n")
    done = examine(repository, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert f"fail  torchrec                 ImportError: {UNDEFINED_SYMBOL}" in done.stdout
    fixed, command = done.stdout.split("to fix fbgemm_gpu, ")[1].splitlines()[:2]
    assert fixed == "torchrec, lookup, fused_update:"
    assert command.endswith("torchrec==1.8.0")
    assert " -m pip install --force-reinstall --no-deps torch==2.13.0 fbgemm-gpu" in command
    assert "to fix ray, matplotlib:\n    rm -f .venv/installed-* && make install" in done.stdout


def test_crash_and_hang_are_findings():
    crash = doctor.run_probe("x", ["-c", "import os; os.abort()"], "fix it")
    assert crash == doctor.Check("x", "fail", "the interpreter crashed with SIGABRT", "fix it")
    sleep = ["-c", "import time; time.sleep(60)"]
    hang = doctor.run_probe("x", sleep, "fix it", timeout_s=0.5)
    assert hang == doctor.Check("x", "fail", "no answer within 0.5 s", "fix it")


def test_a_folder_too_large_for_a_ray_job_is_measured_by_rays_rules(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (".rayignore", ".gitignore"):
        shutil.copy(repository / name, tmp_path)
    for name in (".venv2/lib.so", "w.safetensors", "below/log.csv", "a.parquet", "wandb/x"):
        sparse(tmp_path / name, 300)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".rayignore").write_text("big\n")
    sparse(tmp_path / "sub" / "big", 300)
    sparse(tmp_path / "kept.raw", 60)
    monkeypatch.chdir(tmp_path)
    assert doctor_probes.upload().startswith("60.0 MiB; largest: kept.raw 60.0 MiB")
    sparse(tmp_path / "weights" / "part-0", 70)
    with pytest.raises(SystemExit, match=r"130\.0 MiB.*weights/ 70\.0 MiB"):
        doctor_probes.upload()


def test_what_a_ray_job_would_refuse_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without Ray still work."""
    failed = doctor.Check("job upload", "fail", "130.0 MiB", "fix it")
    monkeypatch.setattr(doctor, "run_probe", lambda *_, **__: failed)
    assert doctor.check_upload(Path("/x")) == replace(failed, status="warn")


def sparse(path: Path, mib: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(mib * 2**20)


@pytest.mark.parametrize(
    ("versions", "status", "words"),
    [
        (("2.13.0+cpu", "1.8.0", "1.8.0"), "ok", "torch 2.13.0+cpu"),
        (("2.13.0", "1.8.0", "1.8.0"), "ok", "torch 2.13.0"),
        (("2.14.0", "1.9.0", "1.9.0"), "warn", "a known triple"),
        (("2.13.0", "1.9.0", "1.8.0"), "fail", "needs fbgemm and torchrec 1.8"),
        (("2.14.0", "1.8.0", "1.8.0"), "fail", "needs fbgemm and torchrec 1.9"),
        (("2.12.0", "1.8.0", "1.8.0"), "fail", "torch known to work: 2.9, 2.13, 2.14"),
        (("2.13.0", None, "1.8.0"), "fail", "fbgemm missing"),
    ],
)
def test_triple(versions: tuple[str | None, ...], status: str, words: str):
    check = doctor.check_triple(*versions)
    assert check.status == status
    assert words in check.detail
    assert bool(check.fix) == (status != "ok")


@pytest.mark.parametrize(
    ("threads", "cores", "workers", "status"),
    [
        (None, 2, 2, "warn"),
        ("2", 2, 2, "warn"),
        ("1", 2, 2, "ok"),
        ("1", 1, 4, "ok"),  # fewer threads per worker there aren't
        ("4", 8, 2, "ok"),
        (None, 1, 1, "ok"),
        ("many", 4, 2, "warn"),
    ],
)
def test_threads(threads: str | None, cores: int, workers: int, status: str):
    check = doctor.check_threads(threads, cores, workers)
    assert check.status == status
    assert check.fix == ("export OMP_NUM_THREADS=1" if status == "warn" else "")


def test_other_python_is_told():
    assert doctor.check_python((3, 11, 7)).status == "ok"
    check = doctor.check_python((3, 12, 1))
    assert (check.status, check.detail) == ("fail", "3.12.1, needed: 3.11")


def test_wandb_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "offline" in doctor.check_wandb({}).detail
    assert "online" in doctor.check_wandb({"WANDB_API_KEY": "x"}).detail
    assert "WANDB_MODE=disabled" in doctor.check_wandb({"WANDB_MODE": "disabled"}).detail


def test_pip_finds_the_three_known_conflicts_alone():
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    known = ("petastorm 0.13.1 requires pyspark", "torchrec 1.8.0 requires fbgemm-gpu")
    known += ("petastorm 0.13.1 has requirement setuptools<70", "No broken requirements")
    assert [line for line in done.stdout.splitlines() if not line.startswith(known)] == []
