"""Evaluate a checkpoint, with any number of workers.

    infnet evaluate --config configs/smoke.yaml                  # newest run's newest
    infnet evaluate --config configs/smoke.yaml --run-id 20261122-111407
    infnet evaluate --config configs/smoke.yaml --checkpoint PATH --split test

The checkpoint determines the model: its settings, features, their order and the statistics of dense
features. The run file gives the places of data and runs, and the number of workers. A `--set` of
another key to a value that isn't the checkpoint's is an error. Prints a table, and writes
evaluation-<split>-<step>.json, by default beside the run's summary. An existing result is kept:
another result of the same step gets a number.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from infnet_dist.config.run import Config
from infnet_dist.errors import ConfigError
from infnet_dist.io.console import wide_console
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.json_files import dump_json, write_json
from infnet_dist.training.evaluation import evaluate_checkpoint
from ray_jobs._cli import log, read_config, run_main
from ray_jobs._launch import launch
from ray_jobs._saved_model import checkpoint_of, open_readable_set, saved_config, with_model_of
from ray_jobs._verbs import parse


def main(argv: Sequence[str] | None = None) -> None:
    """Find the checkpoint, evaluate it, write and print the result."""
    arguments = parse("evaluate", argv)
    config = read_config(arguments)
    path = checkpoint_of(config, arguments)
    output = arguments.output or _default_output(config, path, arguments.split)
    Folder(output.parent).check_target(output.name)
    result = evaluate_on(config, path, arguments.split, arguments.launcher, arguments.overrides)
    _print(result)
    if arguments.output is None:
        output = _unused(output, result)
    try:
        write_json(output, result)
    except OSError as error:
        raise ConfigError(f"can't write {output} ({error.strerror}); set --output") from None
    log.info("written to %s", output)


def evaluate_on(
    config: Config, path: Folder, split: str, launcher: str, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Evaluate a checkpoint on a split; see `evaluate_checkpoint` for the result.

    Args:
        config: the run file.
        path: the checkpoint.
        split: of the training set.
        launcher: "ray" or "local".
        overrides: keys of the run file that were set explicitly.

    Raises:
        UserError: the checkpoint is damaged, or its model can't read the training set.
    """
    config = with_model_of(config, saved_config(path), overrides, "evaluate")
    open_readable_set(config, path)[0].split(split)
    log.info("evaluating %s", path)
    result: dict[str, Any] = launch(
        evaluate_checkpoint, {"config": config, "path": path, "split": split}, config, launcher
    )
    return result


def _default_output(config: Config, folder: Folder, split: str) -> Path:
    """A path beside the run's summary, or in the folder of runs if the checkpoint has no run."""
    runs = config.run.folder / config.run.name
    if folder.parent.name == "checkpoints" and "://" not in folder.url:
        place = Path(folder.url).parent.parent
    else:
        place = runs / folder.parent.name
    if not place.is_dir():
        place = runs
        runs.mkdir(parents=True, exist_ok=True)
    return place / f"evaluation-{split}-{folder.name}.json"


def _unused(path: Path, result: dict[str, Any]) -> Path:
    """The path, with a number if it holds another result; the same result may be replaced."""
    found, number = path, 1
    while found.exists() and _read(found) != json.loads(dump_json(result)):
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _print(result: dict[str, Any]) -> None:
    """Print one row per task, with the best reachable value behind a slash where it is known."""
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
            if key not in result["metrics"]:  # of another kind of task
                cells.append("")
                continue
            best = result["optimum"].get(key)
            cells.append(f"{result['metrics'][key]:.4f}" + (f" / {best:.4f}" if best else ""))
        table.add_row(task, *cells)
    if result["optimum"]:
        table.caption = "behind the slash: the best that any model can reach"
    wide_console().print(table)


if __name__ == "__main__":
    run_main(main)
