"""Checks of settings against one another and against the training set."""

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import get_args

from infnet_dist.config.changes import flat
from infnet_dist.config.run import Config, ScalingConfig
from infnet_dist.config.tables import GPU_OPTIMIZERS, WITHOUT_DECAY, SparseOptimizerName
from infnet_dist.config.trainable import matches
from infnet_dist.data.manifest import Manifest
from infnet_dist.errors import ConfigError
from infnet_dist.lookups import Lookups
from infnet_dist.schema import Schema

_METRICS = {
    "binary": ("auc", "gauc", "log_loss", "normalized_entropy"),
    "watch_time": ("r2", "mae_s"),
}


def task_weights(config: Config, schema: Schema) -> list[float]:
    """The loss weight of each selected task.

    Raises:
        ConfigError: all of them are 0.
    """
    by_name = config.training.task_weights
    weights = [by_name.get(task.name, 1.0) for task in schema.tasks]
    if not any(weights):
        names = ", ".join(task.name for task in schema.tasks)
        raise ConfigError(
            f"training.task_weights: the weights of all tasks ({names}) are 0, so nothing would be "
            "trained; set one above 0"
        )
    return weights


def check_settings(config: Config, schema: Schema) -> None:
    """Check settings across sections; cheap, so the driver calls it as well.

    Raises:
        ConfigError: settings contradict one another; names the key.
    """
    task_weights(config, schema)
    _check_optimizers(config, schema)
    _check_best(config, schema)
    _check_scaling(config)


def _check_best(config: Config, schema: Schema) -> None:
    if config.checkpoint.keep_best is None:
        return
    _, metric, name = config.checkpoint.keep_best.split("/")
    kinds = {task.name: task.kind for task in schema.tasks}
    if name not in kinds:
        raise ConfigError(
            f"checkpoint.keep_best: task {name!r} isn't trained (data.tasks: {', '.join(kinds)}); "
            "name a trained task"
        )
    if metric not in _METRICS[kinds[name]]:
        known = ", ".join(f"valid/{known}/{name}" for known in _METRICS[kinds[name]])
        raise ConfigError(
            f"checkpoint.keep_best: {config.checkpoint.keep_best} isn't measured for {name!r}, a "
            f"{kinds[name]} task; expected one of: {known}"
        )


def _check_optimizers(config: Config, schema: Schema) -> None:
    """Check that the kernels of this device have the optimizers that the tables want."""
    device = "cuda" if config.scaling.use_gpu else "cpu"
    known = get_args(SparseOptimizerName)
    on_device = [name for name in known if device == "cuda" or name not in GPU_OPTIMIZERS]
    for table in Lookups(schema, config).tables:
        settings = table.settings
        if not settings.trainable:
            continue
        if settings.optimizer not in on_device:
            raise ConfigError(
                f"table {table.name!r}: the optimizer {settings.optimizer} isn't available on "
                f"{device}; expected one of: {', '.join(on_device)}"
            )
        decaying = [name for name in known if device == "cuda" and name not in WITHOUT_DECAY]
        if settings.weight_decay and settings.optimizer not in decaying:
            raise ConfigError(
                f"table {table.name!r}: weight_decay is {settings.weight_decay:g}, but "
                f"{settings.optimizer} has none on {device} (fbgemm ignores it), expected one of: "
                f"{', '.join(decaying) or 'none'}; set it to 0"
            )
    if config.dense_optimizer.first_order and not config.model.first_order:
        raise ConfigError(
            "dense_optimizer.first_order is the optimizer of the linear term, but "
            "model.first_order is false; set it to true, or remove dense_optimizer.first_order"
        )


def _check_scaling(config: Config) -> None:
    scaling = config.scaling
    if scaling.min_workers is not None and scaling.min_workers > scaling.num_workers:
        raise ConfigError(
            f"scaling.min_workers is {scaling.min_workers}, above scaling.num_workers "
            f"({scaling.num_workers}); lower it"
        )
    if scaling.min_workers is not None and config.sharding.plan != "auto":
        raise ConfigError(
            "scaling.min_workers allows other numbers of workers than the plan file's; set "
            "sharding.plan=auto, or remove scaling.min_workers"
        )
    _check_gpus(scaling)
    if config.training.precision == "tf32" and not scaling.use_gpu:
        raise ConfigError(
            "training.precision is tf32, which GPUs alone have, but scaling.use_gpu is false; set "
            "fp32 or bf16"
        )


def _check_gpus(scaling: ScalingConfig) -> None:
    expected = float(scaling.use_gpu)
    if (gpus := scaling.resources_per_worker.get("GPU", expected)) != expected:
        raise ConfigError(
            f"scaling.resources_per_worker.GPU is {gpus:g}, but scaling.use_gpu is "
            f"{str(scaling.use_gpu).lower()}, which gives each worker {expected:g}; remove GPU"
        )


def without_effect(config: Config, manifest: Manifest, schema: Schema) -> Iterator[str]:
    """One line per setting that has no effect in this run."""
    tables, tasks = ({entry.name for entry in part} for part in (schema.tables, schema.tasks))
    for name in config.tables.overrides:
        if name not in tables and not any(fnmatchcase(table, name) for table in tables):
            yield f"tables.overrides.{name}: no selected feature reads such a table"
    for pattern in config.training.trainable if config.training.ids_only else ():
        if not any(matches(pattern, table) for table in tables):
            yield f"training.trainable.{pattern}: training.ids_only freezes the dense part anyway"
    for name in config.training.task_weights:
        if name not in tasks:
            yield f"training.task_weights.{name}: this task isn't selected"
    if config.training.teacher is not None and not config.training.teacher.weight:
        yield "training.teacher: its weight is 0, so it isn't loaded"
    steps, schedule = _total_steps(config, manifest), config.schedule
    warmup = max(schedule.of("sparse").warmup_steps, schedule.of("dense").warmup_steps)
    if warmup >= steps:
        yield (
            f"schedule.warmup_steps: the run ends after about {steps:,} steps, within the warm-up "
            f"of {warmup:,}: it never reaches the full learning rate"
        )
    kept, every = config.checkpoint.keep_every_steps, config.checkpoint.every_steps
    if kept and every and kept % every:
        yield (
            f"checkpoint.keep_every_steps: checkpoints are written every {every:,} steps, so only "
            f"those at multiples of {math.lcm(kept, every):,} are kept; set a multiple of "
            "checkpoint.every_steps"
        )
    if config.sharding.topology is not None and config.sharding.plan != "auto":
        yield "sharding.topology: only an automatic plan uses it, and sharding.plan names a file"
    yield from _other_ingest(config, manifest)


def _other_ingest(config: Config, manifest: Manifest) -> Iterator[str]:
    """Settings of ingest that differ from the training set's, except for paths of raw files."""
    if config.ingest is None or manifest.source.get("source") != config.ingest.source:
        return
    made, now = (
        dict(flat("", s)) for s in (manifest.source, config.ingest.model_dump(mode="json"))
    )
    for key in sorted(made.keys() & now.keys()):
        if made[key] != now[key] and key.split(".")[-1] != "path":
            yield (
                f"ingest.{key}: the training set was made with {made[key]!r}, not {now[key]!r}; "
                "ingest again to apply it"
            )


def _total_steps(config: Config, manifest: Manifest) -> int:
    rows_per_step = config.data.batch_size * config.scaling.num_workers
    steps = config.training.epochs * math.ceil(manifest.split("train").rows / rows_per_step)
    return min(steps, config.training.max_steps or steps)
