"""Score the rows of a file, or of a split, with a checkpoint and any number of workers.

    infnet predict --config configs/smoke.yaml --split test --output scores/test
    infnet predict --config configs/smoke.yaml --input rows.parquet --output scores/rows --keys time
    infnet predict --config configs/smoke.yaml --checkpoint PATH --input rows/ --output scores/rows

The input is a split of the training set, or prepared rows: Parquet, or CSV where the model reads no
lists, in the columns of the training set. Labels aren't needed. The output is Parquet parts with
the key columns, the place of each row in the input and a score per task, in the order of the input;
`_prediction.json`, written last, says that they are complete. The same command resumes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table

from infnet_dist import checkpoint
from infnet_dist.config.run import Config
from infnet_dist.data.manifest import MANIFEST, Manifest
from infnet_dist.errors import CheckpointError, ConfigError
from infnet_dist.io.console import Line, wide_console
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.paths import make_writable, resolve_place
from infnet_dist.prediction.job import PredictionJob, PredictionRequest, begin_job
from infnet_dist.prediction.output import finish
from infnet_dist.prediction.predict import predict
from infnet_dist.schema import Schema
from infnet_dist.training.run_lock import held_by_driver
from ray_jobs._cli import log, read_config, run_main
from ray_jobs._cluster import submission_id
from ray_jobs._launch import launch
from ray_jobs._saved_model import checkpoint_of, open_readable_set, saved_config, with_model_of
from ray_jobs._verbs import parse


def main(argv: Sequence[str] | None = None) -> None:
    """Check input and output, write the parts that are left, print a summary."""
    arguments = parse("predict", argv)
    config = read_config(arguments)
    path = checkpoint_of(config, arguments)
    config = with_model_of(config, saved_config(path), arguments.overrides, "predict")
    request = PredictionRequest(
        output=Folder(resolve_place(arguments.output)),
        split=arguments.split,
        place=resolve_place(arguments.input) if arguments.input else None,
        keys=_keys(arguments.keys),
        tasks=arguments.tasks,
        logits=arguments.logits,
        rows_per_part=arguments.rows_per_part,
        overwrite=arguments.overwrite,
    )
    manifest, schema = _schema_of(config, path, request)
    with _held(request.output, config):
        job = begin_job(config, path, request, schema, manifest)
        _predict(config, path, job, arguments.launcher)
        tables = {feature.key: feature.table for feature in schema.table_features}
        _print(finish(job.output, job.identity, job.parts, tables))
    log.info("written to %s", job.output)


def _predict(config: Config, path: Folder, job: PredictionJob, launcher: str) -> None:
    """Write the parts that are left, and log the speed."""
    done = len(job.parts) - len(job.left)
    if done:
        log.info("%s of %s parts are finished already", f"{done:,}", f"{len(job.parts):,}")
    if not job.left:
        return
    log.info("predicting %s with %s", job.source.place, path)
    found = launch(predict, {"config": config, "path": path, "job": job}, config, launcher)
    rows, seconds = found["rows"], found["seconds"]
    log.info(Line(f"{rows:,} rows in {seconds:.1f} s", f"{rows / seconds:,.0f} rows/s"))


def _keys(words: Sequence[str]) -> dict[str, str]:
    """Columns of --keys by name in the output: `column`, or `name=column`."""
    keys: dict[str, str] = {}
    for word in words:
        name, _, column = word.partition("=")
        if not name or name in keys:
            raise ConfigError(f"--keys: {word!r}: expected different names, COLUMN or NAME=COLUMN")
        keys[name] = column or name
    return keys


def _schema_of(
    config: Config, path: Folder, request: PredictionRequest
) -> tuple[Manifest | None, Schema]:
    """The training set, and the model's schema with its columns; without a set those of training.

    Raises:
        CheckpointError: the model can't read the set, or nothing says what it reads.
    """
    if request.split is not None or (config.data.path / MANIFEST).is_file():
        return open_readable_set(config, path)
    schema = checkpoint.read_schema(path, checkpoint.read_manifest(path))
    if schema is None:
        raise CheckpointError(
            f"{path} is of an earlier version and doesn't say which columns its model reads; set "
            "data.path to its training set"
        )
    log.info("no training set at %s: columns are those of the checkpoint", config.data.path)
    return None, schema


@contextmanager
def _held(output: Folder, config: Config) -> Iterator[None]:
    """Exclude other commands from a local folder; created if missing."""
    if "://" in output.url:
        yield
        return
    folder = Path(output.url)
    make_writable(folder, "--output")
    with held_by_driver(folder, config.scaling, submission_id()):
        yield


def _print(result: dict[str, Any]) -> None:
    """Print the mean score of each task, and the share of unknown ids of each table."""
    scores = Table(title=f"{result['rows']:,} rows in {len(result['parts']):,} parts")
    scores.add_column("task")
    scores.add_column("mean score", justify="right")
    for task, mean in result["mean_score"].items():
        scores.add_row(task, f"{mean:,.4f}")
    ids = Table()
    ids.add_column("table")
    ids.add_column("unknown ids", justify="right")
    for table, share in result["unknown_id_share"].items():
        ids.add_row(table, f"{100 * share:.2f} %")
    wide_console().print(scores, ids)


if __name__ == "__main__":
    run_main(main)
