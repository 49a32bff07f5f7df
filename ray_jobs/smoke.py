"""Ingest, train with 2 workers and evaluate on this machine, then show the result.

    infnet smoke [--config configs/smoke.yaml] [--root .infnet] [--set key.path=value]

`make smoke` runs this. It starts a Ray of its own, submits each step with Ray's command line, as on
a cluster, stops at the first failure with that step's exit code, and ends Ray.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from infnet_dist.config.run import Config, load_config
from infnet_dist.errors import UserError
from infnet_dist.io.console import COLUMNS_VARIABLE, terminal_columns
from infnet_dist.io.paths import ROOT_VARIABLE, make_writable
from ray_jobs._cli import new_run_id, run_main
from ray_jobs._local_ray import LocalRay
from ray_jobs._options import REPOSITORY
from ray_jobs._verbs import parse

# Ray Data hangs without a message if the workers hold all CPUs.
SPARE_CPUS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the three steps and print a summary; returns the exit code."""
    args = parse("smoke", argv)
    root = args.root.resolve()
    os.environ[ROOT_VARIABLE] = str(root)
    try:
        config = load_config(args.config, args.overrides)
        make_writable(root, "--root")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    run_id = new_run_id()
    started = time.monotonic()
    try:
        code = run_steps(steps_of(args.config, args.overrides, run_id), root, cpus_of(config))
    except KeyboardInterrupt:
        print("stopped; the local Ray has ended", file=sys.stderr)
        return 1
    if code == 0:
        folder = config.run.folder / config.run.name / run_id
        summary, evaluation = read_results(folder)
        seconds = time.monotonic() - started
        Console().print(format_summary(summary, evaluation, seconds=seconds), crop=False)
    return code


def cpus_of(config: Config) -> int:
    """CPUs that Ray must offer for all workers and some more."""
    per_worker = config.scaling.resources_per_worker.get("CPU", 1.0)
    return int(config.scaling.num_workers * per_worker + 0.999) + SPARE_CPUS


def steps_of(config: Path, overrides: Sequence[str], run_id: str) -> dict[str, list[str]]:
    """The command of each step, by its heading."""
    path = config.resolve()
    if path.is_relative_to(REPOSITORY):  # it is uploaded, as it would be to a cluster
        path = path.relative_to(REPOSITORY)
    common = ["--config", str(path)]
    for override in overrides:
        common += ["--set", override]
    run = [*common, "--run-id", run_id]
    return {
        "ingest": ["python", "-m", "ray_jobs.ingest", *common],
        "train": ["python", "-m", "ray_jobs.train", *run],
        "evaluate": ["python", "-m", "ray_jobs.evaluate", *run],
    }


def run_steps(steps: Mapping[str, list[str]], root: Path, num_cpus: int) -> int:
    """Submit the steps to a local Ray until one fails; returns the last exit code."""
    console = Console()
    began = time.monotonic()
    console.rule(f"start Ray on this machine, {num_cpus} CPUs", align="left")
    with LocalRay(root, num_cpus) as ray:
        for number, (name, command) in enumerate(steps.items(), start=1):
            elapsed = time.monotonic() - began
            console.rule(f"{number}/{len(steps)} {name}, after {elapsed:.0f} s", align="left")
            code = ray.submit(command, working_dir=REPOSITORY, env=shown_here()).returncode
            if code:
                console.rule(f"{name} failed with exit code {code}", align="left", style="red")
                return code
    return 0


def shown_here() -> dict[str, str] | None:
    """Environment variables that fit a job's output to this process's terminal, if it has one."""
    columns = terminal_columns() if sys.stdout.isatty() else None
    return {COLUMNS_VARIABLE: str(columns)} if columns else None


def read_results(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of train and evaluate from the run's folder."""
    summary = json.loads((folder / "summary.json").read_text())
    name = f"evaluation-valid-{Path(summary['checkpoint']).name}.json"
    evaluation = json.loads((folder / name).read_text())
    return summary, evaluation


def format_summary(
    summary: Mapping[str, Any], evaluation: Mapping[str, Any], *, seconds: float
) -> RenderableType:
    """Metrics per task beside the best that any model can reach, then speed and paths."""
    split, optimum = evaluation["split"], evaluation.get("optimum") or {}
    title = f"{split}: {evaluation['rows']:,} rows"
    metrics = Table("task", "metric", title=title, title_justify="left")
    metrics.add_column("got", justify="right")
    metrics.add_column("reachable", justify="right")
    previous = None
    for key, value in sorted(evaluation["metrics"].items(), key=_by_task):
        _, metric, task = key.split("/", 2)
        if previous not in (None, task):
            metrics.add_section()
        best = f"{optimum[key]:.4f}" if key in optimum else "-"
        metrics.add_row("" if task == previous else task, metric, f"{value:.4f}", best)
        previous = task
    facts = {
        "steps": f"{summary['steps']:,}",
        "examples": f"{summary['examples']:,}",
        "training": f"{summary['train_seconds']:.1f} s with {summary['num_workers']} workers"
        + (f", {attempts} attempts" if (attempts := len(summary.get("attempts", []))) > 1 else ""),
        "speed": f"{summary['samples_per_s']:,.0f} samples/s",
        "checkpoint": _shorter(summary["checkpoint"]),
        "curves": _shorter(summary["curves"]),
        "W&B": _shorter(summary.get("wandb") or "disabled"),
        "total": f"{seconds:.0f} s",
    }
    # Not in a table, which would break paths; they are for copying.
    lines = "\n".join(f"{name:11} {fact}" for name, fact in facts.items())
    return Group(metrics, Text(lines, no_wrap=True, overflow="ignore"))


def _shorter(path: str) -> str:
    """A path relative to the current folder if it is below it."""
    return path.removeprefix(f"{Path.cwd()}/")


def _by_task(item: tuple[str, float]) -> str:
    return item[0].split("/", 2)[2]


if __name__ == "__main__":
    run_main(main)
