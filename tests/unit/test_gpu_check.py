"""`make gpu-check` on a CPU: with torch alone, and all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "gpu_check.py"
# What a machine with only torch can import: the standard library and what torch itself requires.
TORCH_ALONE = """
import runpy, sys

ALLOWED = {
    *sys.stdlib_module_names, "torch", "torchgen", "functorch", "_distutils_hack", "setuptools",
    "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy",
    "typing_extensions", "infnet_dist", "gpu_checks",
}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
sys.argv.pop(0)
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(command: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command, *("--device", "cpu"), *options],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=1700,
    )


def statuses(path: Path) -> dict[str, str]:
    return {r["name"]: r["status"] for r in json.loads(path.read_text())["results"]}


def torch_alone(tmp_path: Path) -> list[str]:
    """The command that runs the script where all but torch is missing."""
    script = tmp_path / "torch_alone.py"
    script.write_text(TORCH_ALONE)
    return [str(script), str(SCRIPT)]


def test_the_dense_part_needs_torch_alone(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    done = run(torch_alone(tmp_path), "--json", str(found), "--only", "parity infnet")
    assert done.returncode == 0, done.stdout + done.stderr
    assert statuses(found) == {"parity infnet": "passed", "parity infnet_paper": "passed"}
    done = run(torch_alone(tmp_path), "--json", str(found), "--parts", "sharded")
    assert done.returncode == 0, done.stdout + done.stderr
    assert statuses(found) == {"sharded": "skipped"}
    assert "torchrec" in done.stdout


def test_without_a_gpu_it_says_so() -> None:
    done = run([str(SCRIPT)], "--device", "cuda")
    assert done.returncode == 1
    assert "--device cpu" in done.stdout


@pytest.mark.exhaustive
def test_all_that_a_cpu_can_passes(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    done = run([str(SCRIPT)], "--json", str(found), "--limit-s", "1500")
    assert done.returncode == 0, done.stdout + done.stderr
    result = statuses(found)
    assert "failed" not in result.values()
    for name in ("sharded step", "sharded pipelined step", "bf16 infnet", "compile bf16 infnet"):
        assert result[name] == "passed"
