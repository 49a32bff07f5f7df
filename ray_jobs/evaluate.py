"""Evaluate a checkpoint, with any number of workers.

    python -m ray_jobs.evaluate --config configs/smoke.yaml                  # newest run's newest
    python -m ray_jobs.evaluate --config configs/smoke.yaml --run-id 20261122-111407
    python -m ray_jobs.evaluate --config configs/smoke.yaml --checkpoint PATH --split test

The model is the one that the checkpoint was saved with; the run file says where data and runs
are and how many workers to use. A `--set` of anything else, to another value than the checkpoint's,
is an error. Prints a table, and writes evaluation-<split>.json, by default
beside the run's summary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infnet_dist import checkpoint
from infnet_dist.config import Config, config_of_text
from infnet_dist.config_changes import changes
from infnet_dist.errors import ConfigError
from infnet_dist.evaluation import evaluate_checkpoint
from infnet_dist.filesystem import Folder
from infnet_dist.overrides import covers, key_of
from infnet_dist.paths import resolve_place
from infnet_dist.run_folder import write_json
from infnet_dist.session import open_training_set
from ray_jobs._cli import (
    add_launcher,
    log,
    make_parser,
    newest_checkpoint,
    read_config,
    run_id,
    run_main,
)
from ray_jobs._launch import launch

_MAKES_MODEL = ("model", "tables", "data.features", "data.tasks")
# What the run file says of an evaluation.
_TAKEN_HERE = (
    *("run.folder", "run.name", "checkpoint.folder", "scaling", "sharding", "data.path"),
    *("data.batch_size", "data.prefetch_batches", "data.max_bad_row_groups", "data.reader"),
)


def main() -> None:
    """Find the checkpoint, evaluate it, write and print the result."""
    parser = make_parser("ray_jobs.evaluate", "Evaluate a checkpoint on a split.")
    add_launcher(parser)
    parser.add_argument("--split", default="valid", help="split to evaluate (default: valid)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--run-id", type=run_id, help="a run's folder name (default: the newest)")
    where.add_argument("--checkpoint", help="a checkpoint folder or URL")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON to write (default: evaluation-SPLIT.json in the run's folder)",
    )
    arguments = parser.parse_args()
    config = read_config(arguments)
    manifest, _ = open_training_set(config)
    manifest.split(arguments.split)
    path = (
        Folder(resolve_place(arguments.checkpoint))
        if arguments.checkpoint
        else newest_checkpoint(config, arguments.run_id)
    )
    checkpoint.read_manifest(path)
    config = _with_model_of(config, path, arguments.overrides)
    result = launch(
        evaluate_checkpoint,
        {"config": config, "path": path, "split": arguments.split},
        config,
        arguments.launcher,
    )
    output = arguments.output or _default_output(config, path, arguments.split)
    write_json(output, result)
    _print(result)
    log.info("written to %s", output)


def _with_model_of(config: Config, folder: Folder, overrides: Sequence[str]) -> Config:
    """The config with everything that makes the model as it was when the checkpoint was saved.

    Raises:
        ConfigError: --set of something that comes from the checkpoint, or plays no part here, to
            another value than the checkpoint's.
    """
    saved = config_of_text(folder.read("config.yaml").decode(), source=f"{folder}/config.yaml")
    keys = [key_of(override) for override in overrides]
    for key, (theirs, ours) in changes(saved, config).items():
        if any(covers(here, key) for here in _TAKEN_HERE):
            continue
        if any(covers(one, key) for one in keys):
            raise ConfigError(
                f"--set {key}: evaluate doesn't take it from the run file: got {ours}, the "
                f"checkpoint {folder} was trained with {theirs}; leave it out"
            )
        if any(covers(part, key) for part in _MAKES_MODEL):
            log.warning(
                "%s is %s as in the checkpoint, not %s as in the run file", key, theirs, ours
            )
    data = {"features": saved.data.features, "tasks": saved.data.tasks}
    return config.model_copy(
        update={
            "model": saved.model,
            "tables": saved.tables,
            "data": config.data.model_copy(update=data),
        }
    )


def _default_output(config: Config, folder: Folder, split: str) -> Path:
    """Beside the run's summary; in the current folder for a checkpoint that stands alone."""
    runs = config.run.folder / config.run.name
    if folder.parent.name == "checkpoints" and "://" not in folder.url:
        place = Path(folder.url).parent.parent
    else:
        place = runs / folder.parent.name
    return (place if place.is_dir() else Path.cwd()) / f"evaluation-{split}.json"


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
