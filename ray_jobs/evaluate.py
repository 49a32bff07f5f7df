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

from infnet_dist import checkpoint
from infnet_dist.checkpoint.inspection import read_plain
from infnet_dist.config.changes import changes
from infnet_dist.config.overrides import covers, key_of
from infnet_dist.config.run import Config, config_of_text
from infnet_dist.data.manifest import read_manifest
from infnet_dist.data.schema_changes import adapt_schema, summary_of
from infnet_dist.errors import CheckpointError, ConfigError
from infnet_dist.io.console import wide_console
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.json_files import dump_json, write_json
from infnet_dist.training.data_changes import warning_of_other_data
from infnet_dist.training.evaluation import check_readable_set, evaluate_checkpoint
from infnet_dist.training.setup import open_training_set
from ray_jobs._cli import checkpoint_of, log, read_config, run_main
from ray_jobs._launch import launch
from ray_jobs._verbs import parse

_MAKES_MODEL = ("model", "tables", "data.features", "data.tasks", "data.crosses")
# Keys that evaluation takes from the run file.
_FROM_RUN_FILE = (
    *("run.folder", "run.name", "checkpoint.folder", "scaling", "sharding", "data.path"),
    *("data.batch_size", "data.prefetch_batches", "data.max_bad_row_groups", "data.reader"),
    "data.valid_from",
)


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
    config = _with_model_of(config, _saved_config(path), overrides)
    _check_set(config, path, split)
    log.info("evaluating %s", path)
    result: dict[str, Any] = launch(
        evaluate_checkpoint, {"config": config, "path": path, "split": split}, config, launcher
    )
    return result


def _check_set(config: Config, path: Folder, split: str) -> None:
    """Check that the checkpoint's model can read the training set, and log how the set differs.

    Raises:
        CheckpointError: it is damaged, or its model can't; names features, tables and tasks.
        DataError: the training set is malformed, or has no such split.
    """
    saved = checkpoint.read_manifest(path)
    trained = checkpoint.read_schema(path, saved)
    manifest = read_manifest(config.data.path)
    check_readable_set(path, config, saved, trained, manifest)
    here = manifest.schema_
    manifest, _ = open_training_set(config, trained)
    manifest.split(split)
    if trained is not None and (notes := adapt_schema(trained, here).notes):
        log.info(
            "the training set differs; the model's own settings are used: %s", summary_of(notes)
        )
    if warning := warning_of_other_data(saved, manifest):
        log.warning("%s: %s", config.data.path, warning)


def _saved_config(folder: Folder) -> Config:
    """The config that a checkpoint was saved with."""
    content = read_plain(folder, checkpoint.read_manifest(folder), "config.yaml")
    if content is None:
        raise CheckpointError(f"{folder} has no config.yaml, which describes its model")
    return config_of_text(content.decode(), source=f"{folder}/config.yaml")


def _with_model_of(config: Config, saved: Config, overrides: Sequence[str]) -> Config:
    """The config with the checkpoint's settings of the model.

    Raises:
        ConfigError: --set of a key that evaluation takes from the checkpoint or doesn't use, to
            another value than the checkpoint's.
    """
    keys = [key_of(override) for override in overrides]
    for key, (theirs, ours) in changes(saved, config).items():
        if any(covers(here, key) for here in _FROM_RUN_FILE):
            continue
        if any(covers(one, key) for one in keys):
            raise ConfigError(
                f"--set {key}: got {ours}, but the checkpoint was trained with {theirs}, and "
                "evaluate takes this key from the checkpoint; leave it out"
            )
        if any(covers(part, key) for part in _MAKES_MODEL):
            log.warning(
                "%s is %s as in the checkpoint, not %s as in the run file", key, theirs, ours
            )
    data = {key: getattr(saved.data, key) for key in ("features", "tasks", "crosses")}
    return config.model_copy(
        update={
            "model": saved.model,
            "tables": saved.tables,
            "data": config.data.model_copy(update=data),
        }
    )


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
