"""Every knob of a run, as frozen and strict models: one YAML file is one run.

Read with `load_config("configs/smoke.yaml", ["training.epochs=2"])`. A YAML file holds only what
differs from the defaults below. Unknown keys and ill-typed values raise `ConfigError` in one line
that names the nearest valid key, or the expected type and unit.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, ValidationError

from infnet_dist.config.ingest import (
    IngestConfig,
    KuaiRandIngest,
    PetastormIngest,
    TabularIngest,
)
from infnet_dist.config.logs import LogsIngest
from infnet_dist.config.messages import RENAMED, explain
from infnet_dist.config.model import InfnetConfig, ModelConfig, Section
from infnet_dist.config.overrides import apply_overrides
from infnet_dist.errors import ConfigError
from infnet_dist.io.parsing import (
    MalformedError,
    check_plain,
    checked,
    dump_yaml,
    parse_saved_yaml,
    parse_yaml,
)
from infnet_dist.io.paths import resolve_path, resolve_place
from infnet_dist.io.urls import secrets_in, without_secrets

ShardingTypeName = Literal["table_wise", "row_wise", "column_wise"]


class RunConfig(Section):
    """What the run is called and where its folder stands."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="run name")
    folder: Path = Field(Path("runs"), description="folder that holds <name>/<run id>/")
    seed: int = Field(0, ge=0, description="seed of tables, tower, shuffling")


class DataConfig(Section):
    """Which training set is read, and how."""

    path: Path = Field(description="training set folder (holds manifest.json)")
    features: tuple[str, ...] | None = Field(
        None, description="names of the features to use; null: all of the training set"
    )
    tasks: tuple[str, ...] | None = Field(None, description="tasks to train; null: all")
    batch_size: int = Field(512, ge=1, lt=2**31, description="rows per worker and step")
    shuffle_rows: int = Field(65_536, ge=1, description="rows shuffled together in memory")
    prefetch_batches: int = Field(4, ge=1, description="batches read ahead of the step")
    max_bad_row_groups: int = Field(
        0,
        ge=0,
        description="unreadable row groups per worker that may be left out; wrong values may not",
    )
    reader: Literal["arrow", "petastorm"] = Field(
        "arrow", description="what decodes row groups; petastorm for data sets of Petastorm"
    )
    petastorm_metadata: bool = Field(
        False, description="ingest adds what petastorm's make_reader needs to open the set"
    )


class TableConfig(Section):
    """Exceptions for one embedding table; its number of rows is a fact of the training set."""

    sharding_types: tuple[ShardingTypeName, ...] | None = Field(
        None,
        min_length=1,
        description="sharding types the planner may choose from; null: table_wise, row_wise",
    )
    unknown_id_rate: float | None = Field(
        None, ge=0, lt=1, description="as tables.unknown_id_rate; null: that"
    )


class TablesConfig(Section):
    """All embedding tables. TorchRec's EmbeddingCollection wants one width for all of them."""

    embedding_dim: int = Field(
        16, ge=4, le=2**20, multiple_of=4, description="floats per row, all tables"
    )
    data_type: Literal["fp32", "fp16"] = Field("fp32", description="type of the rows")
    unknown_id_rate: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the ids that training drops to 0, so that the row of unknown ids is "
        "learned; null: up to 0.05 where valid or test need it, not in the user's table; never in "
        "hashed tables, nor in Petastorm data, where 0 may be an id",
    )
    overrides: dict[str, TableConfig] = Field(default_factory=dict, description="by table name")


class SparseOptimizerConfig(Section):
    """Row-wise Adagrad, fused into the backward pass of the tables."""

    learning_rate: float = Field(0.05, gt=0, description="learning rate")
    eps: float = Field(1e-8, gt=0, description="added to the root of the accumulator")


class DenseOptimizerConfig(Section):
    """AdamW for everything that isn't a table."""

    learning_rate: float = Field(1e-3, gt=0, description="learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")


class ScheduleConfig(Section):
    """Factor on both learning rates: linear warm-up, constant, linear decay to 0."""

    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    decay_share: float = Field(0.0, ge=0, le=1, description="last share of all steps: decay")


class TrainingConfig(Section):
    """How long to train and how often to look."""

    epochs: int = Field(1, ge=1, description="passes over the train split")
    max_steps: int | None = Field(None, ge=1, description="stop after so many steps; null: don't")
    log_every_steps: int = Field(50, ge=1, description="steps between two log lines")
    eval_every_steps: int | None = Field(
        None, ge=1, description="steps between evaluations; null: at the end of each epoch"
    )
    task_weights: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="loss weight by task; 1 where not named"
    )
    max_skipped_steps: int = Field(
        0, ge=0, description="batches with a NaN or infinite loss that may be left out; then stop"
    )


class ShardingConfig(Section):
    """Where the rows of the tables live."""

    plan: Path | Literal["auto"] = Field("auto", description="plan file, or auto: made here")


class CheckpointConfig(Section):
    """When to save, where to, and which checkpoints to keep."""

    folder: str | None = Field(
        None,
        description="path or URL (s3://...) that gets <name>/<run id>/step-...; null: the run "
        "folder's checkpoints/",
    )
    every_steps: int | None = Field(
        None, ge=1, description="steps between checkpoints; null: at the end of each epoch"
    )
    every_minutes: float | None = Field(
        None, gt=0, description="minutes between checkpoints; null: steps and epochs alone"
    )
    background: bool = Field(
        True, description="write while training goes on; takes memory for a copy of the state"
    )
    retry_s: float = Field(
        120.0, ge=0, description="seconds for which a failed write is tried again"
    )
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_every_steps: int | None = Field(
        None, ge=1, description="checkpoints at multiples of so many steps are kept as well"
    )
    keep_best: str | None = Field(
        None,
        pattern=r"^valid/(auc|gauc|r2|log_loss|normalized_entropy|mae_s)/[^/]+$",
        description="metric, e.g. valid/auc/click, whose best checkpoint is kept as well",
    )


class ScalingConfig(Section):
    """Workers, as in `ray.train.ScalingConfig`."""

    num_workers: int = Field(2, ge=1, le=100_000, description="worker processes")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="go on with so few while nodes are missing, and grow back; null: num_workers",
    )
    max_failures: int = Field(
        3, ge=0, description="restarts in a row, without a new checkpoint between, then stop"
    )
    use_gpu: bool = Field(False, description="one GPU per worker")
    resources_per_worker: dict[str, NonNegativeFloat] = Field(
        default_factory=lambda: {"CPU": 1.0}, description="Ray resources per worker"
    )
    timeout_s: float = Field(600.0, gt=0, description="seconds a collective may take")
    hang_timeout_s: float = Field(
        300.0, gt=0, description="seconds without progress on any rank, then the workers are ended"
    )


class TrackingConfig(Section):
    """Where metrics go beside the console and metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online with an API key, otherwise offline"
    )
    project: str = Field("infnet_dist", description="W&B project")


class Config(Section):
    """One run."""

    run: RunConfig = RunConfig()
    ingest: IngestConfig | None = None
    data: DataConfig
    tables: TablesConfig = TablesConfig()
    model: ModelConfig = InfnetConfig()
    sparse_optimizer: SparseOptimizerConfig = SparseOptimizerConfig()
    dense_optimizer: DenseOptimizerConfig = DenseOptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    sharding: ShardingConfig = ShardingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    scaling: ScalingConfig = ScalingConfig()
    tracking: TrackingConfig = TrackingConfig()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run file and apply `key.path=value` overrides (values are YAML).

    Args:
        path: the YAML file.
        overrides: e.g. `["scaling.num_workers=1", "data.features=[user_id, item_id]"]`.

    Returns:
        The run; its paths are absolute, relative ones being resolved against $INFNET_ROOT.

    Raises:
        ConfigError: the file is missing or no mapping, a key is unknown, a value is ill-typed.
    """
    raw = read_sections(path)
    apply_overrides(raw, overrides)
    return parse_config(raw, source=str(path))


def config_of_text(text: str, source: str) -> Config:
    """The run that a config.yaml of a run or checkpoint describes; errors as in `load_config`.

    Configs of earlier versions are converted: keys get their present names, and where
    `tables.unknown_id_rate` is missing, no ids were dropped.
    """
    raw = _sections(parse_saved_yaml, text, source)
    for old, new in RENAMED.items():
        _rename_key(raw, old.split("."), new.split(".")[-1])
    if isinstance(tables := raw.setdefault("tables", {}), dict):
        tables.setdefault("unknown_id_rate", 0.0)
    return parse_config(raw, source=source)


def _rename_key(section: Any, path: Sequence[str], name: str) -> None:
    """Rename the key at `path` below `section`, if it is there."""
    for part in path[:-1]:
        section = section.get(part) if isinstance(section, dict) else None
    if isinstance(section, dict) and path[-1] in section:
        section.setdefault(name, section.pop(path[-1]))


def read_sections(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file, unchecked; none where it is empty.

    Raises:
        ConfigError: missing, no YAML, or no mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file {path}; the ready ones are in configs/")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read as text ({type(error).__name__})") from None
    return _sections(parse_yaml, text, str(path))


def _sections(parse: Callable[[str], Any], text: str, source: str) -> dict[str, Any]:
    try:
        raw = parse(text)
    except MalformedError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{source} holds a {type(raw).__name__}, expected sections such as 'data:'"
        )
    return raw


def parse_config(raw: dict[str, Any], source: str = "config") -> Config:
    """Turn nested dictionaries into a checked `Config` with absolute paths, as `load_config`."""
    try:
        check_plain(raw)
    except MalformedError as error:
        raise ConfigError(f"{source}: {error}") from None
    _refuse_secrets(raw, source)
    try:
        config = checked(Config, raw)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(explain(error.errors(), Config))) from None
    return _with_absolute_paths(config)


def dump_config(config: Config) -> str:
    """The resolved config as YAML; `load_config` of it gives the same config."""
    return dump_yaml(config.model_dump(mode="json"))


def _with_absolute_paths(config: Config) -> Config:
    update: dict[str, object] = {
        "run": config.run.model_copy(update={"folder": resolve_path(config.run.folder)}),
        "data": config.data.model_copy(update={"path": resolve_path(config.data.path)}),
    }
    if isinstance(config.ingest, KuaiRandIngest | TabularIngest | PetastormIngest):
        path = resolve_path(config.ingest.path)
        update["ingest"] = config.ingest.model_copy(update={"path": path})
    if isinstance(config.ingest, LogsIngest):
        joins = {
            name: join.model_copy(update={"path": resolve_place(join.path)})
            for name, join in config.ingest.joins.items()
        }
        found = {"path": resolve_place(config.ingest.path), "joins": joins}
        update["ingest"] = config.ingest.model_copy(update=found)
    if config.checkpoint.folder is not None:
        folder = {"folder": resolve_place(config.checkpoint.folder)}
        update["checkpoint"] = config.checkpoint.model_copy(update=folder)
    if config.sharding.plan != "auto":  # reviewed with the code, so it is found beside it
        plan = config.sharding.plan.absolute()
        update["sharding"] = config.sharding.model_copy(update={"plan": plan})
    return config.model_copy(update=update)


def _refuse_secrets(value: Any, source: str, key: str = "") -> None:
    """Refuse URLs with secrets, before any other message could repeat one.

    Run files are saved with runs and checkpoints, and shown by W&B.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_secrets(name, source, key)
            _refuse_secrets(inner, source, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            _refuse_secrets(inner, source, key)
    elif isinstance(value, str) and (found := secrets_in(value)):
        raise ConfigError(
            f"{source}: {key}: the URL {without_secrets(value)} holds {' and '.join(found)}, and "
            "run files are saved with each run; leave it out and set the store's own environment "
            "variables (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or use the machine's "
            "role"
        )
