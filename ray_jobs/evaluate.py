"""Evaluate a checkpoint, with any number of workers.

    python -m ray_jobs.evaluate --config configs/smoke.yaml                  # newest run's newest
    python -m ray_jobs.evaluate --config configs/smoke.yaml --run-id 20261122-111407
    python -m ray_jobs.evaluate --config configs/smoke.yaml --checkpoint PATH --split test

Writes evaluation-<split>.json beside the run's summary, and prints a table.
"""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infnet_dist import checkpoint
from infnet_dist.config import Config
from infnet_dist.context import resolve_path
from infnet_dist.errors import CheckpointError
from infnet_dist.trainer import evaluate_checkpoint, open_training_set
from ray_jobs._cli import add_launcher, log, make_parser, newest_run, read_config, run_main
from ray_jobs._launch import launch


def main() -> None:
    """Find the checkpoint, evaluate it, write and print the result."""
    parser = make_parser("ray_jobs.evaluate", "Evaluate a checkpoint on a split.")
    add_launcher(parser)
    parser.add_argument("--split", default="valid", help="split to evaluate (default: valid)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--run-id", help="a run's folder name (default: the newest run)")
    where.add_argument("--checkpoint", type=Path, help="a checkpoint folder")
    arguments = parser.parse_args()
    config = read_config(arguments)
    manifest, _ = open_training_set(config)
    manifest.split(arguments.split)
    path = _find_checkpoint(config, arguments.run_id, arguments.checkpoint)
    checkpoint.read_manifest(path)
    result = launch(
        evaluate_checkpoint,
        {"config": config, "path": path, "split": arguments.split},
        config,
        arguments.launcher,
    )
    output = path.parent.parent / f"evaluation-{arguments.split}.json"
    output.write_text(json.dumps(result, indent=1) + "\n")
    _print(result)
    log.info("written to %s", output)


def _find_checkpoint(config: Config, run_id: str | None, path: Path | None) -> Path:
    if path is not None:
        return resolve_path(path)
    run = config.run.folder / config.run.name / run_id if run_id else newest_run(config)
    found = checkpoint.newest(run / "checkpoints")
    if found is None:
        raise CheckpointError(f"no complete checkpoint in {run / 'checkpoints'}; train first")
    return found


def _print(result: dict[str, Any]) -> None:
    """One row per task; the planted optimum behind a slash where it is known."""
    keys = [key.split("/") for key in result["metrics"]]
    metrics = list(dict.fromkeys(metric for _, metric, _ in keys))
    table = Table(title=f"{result['split']}: {result['rows']:,} rows, step {result['step']:,}")
    table.add_column("task")
    for metric in metrics:
        table.add_column(metric, justify="right")
    for task in dict.fromkeys(task for _, _, task in keys):
        cells = []
        for metric in metrics:
            key = f"{result['split']}/{metric}/{task}"
            best = result["optimum"].get(key)
            cells.append(f"{result['metrics'][key]:.4f}" + (f" / {best:.4f}" if best else ""))
        table.add_row(task, *cells)
    if result["optimum"]:
        table.caption = "behind the slash: the planted optimum"
    Console(width=140).print(table)


if __name__ == "__main__":
    run_main(main)
