"""Runs the entry points: in this process, or submitted to a Ray."""

import contextlib
import importlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs._cli import exit_code
from ray_jobs._local_ray import LocalRay
from tests.conftest import REPOSITORY


def run_here(root: Path, verb: str, *arguments: str) -> tuple[int, str]:
    """Run `ray_jobs.<verb>` in this process, without Ray.

    Args:
        root: INFNET_ROOT of the command.
        verb: the entry point.
        arguments: its arguments.

    Returns:
        The exit code, and the last line on stderr.
    """
    main = importlib.import_module(f"ray_jobs.{verb}").main
    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setenv("INFNET_ROOT", str(root))
        patch.setenv("OMP_NUM_THREADS", "1")
        code = exit_code(main, [*arguments, "--launcher", "local"])
    print(errors.getvalue(), file=sys.stderr)
    return code, (errors.getvalue().strip().splitlines() or [""])[-1]


def submit(
    ray: LocalRay, root: Path, verb: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Submit `ray_jobs.<verb>` as a job of a Ray, with `root` as its INFNET_ROOT."""
    return ray.submit(
        ["python", "-m", f"ray_jobs.{verb}", *arguments],
        working_dir=REPOSITORY,
        env={"INFNET_ROOT": str(root)},
    )


def last_line(job: subprocess.CompletedProcess[str]) -> str:
    """The last line that a submitted job printed itself."""
    job_log = job.stdout.split("WebSocket closed")[0].splitlines()[:-1]
    return [line for line in job_log if line.strip()][-1]
