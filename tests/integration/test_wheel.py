"""`pip install` of the project: a wheel that plans and trains where there is no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.integration.test_jobs import SMALL

PACKAGED = ("infnet_dist", "ray_jobs", "sharding_plans")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, since builds leave files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in PACKAGED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


def pip(*arguments: str) -> None:
    """Without network."""
    command = [sys.executable, "-m", "pip", *arguments, "--no-index", "--no-deps", "--quiet"]
    subprocess.run(command, check=True, timeout=1700)


def test_the_wheel_has_all_modules_and_data(wheel: Path) -> None:
    expected = {
        str(path.relative_to(REPOSITORY))
        for package in PACKAGED
        for pattern in ("*.py", "*.yaml", "*.json")
        for path in (REPOSITORY / package).rglob(pattern)
    }
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.exhaustive
def test_an_installed_wheel_plans_and_trains(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    (packages,) = environment.glob("lib/python*/site-packages")
    # What this one has, but for its link to the checkout: a nested .pth file isn't read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip("--python", str(python), "install", str(wheel))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "INFNET_"))}

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [environment / "bin" / program, *arguments],
            cwd=folder,
            env=environ | {"WANDB_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=1700,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    installed = run("python", "-c", "import infnet_dist; print(infnet_dist.__file__)")
    assert installed.startswith(str(packages))
    config = ("--config", "small.yaml", "--launcher", "local")
    run("infnet", "ingest", *config)
    assert "h200x8" in run(
        *("infnet", "plan", "whatif", "--tables", "industrial"),
        *("--topology", "h100x8,h200x8", "--world-size", "32"),
    )
    run("infnet", "train", *config, "--run-id", "one")
    run("infnet", "evaluate", *config, "--run-id", "one")
    assert (folder / "runs" / "small" / "one" / "summary.json").exists()
