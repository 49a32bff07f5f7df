"""All settings of a run as frozen, strict models: one YAML file describes one run.

`load_config("configs/smoke.yaml", ["training.epochs=2"])` reads it. A YAML file holds only the
values that differ from the defaults below. Unknown keys and values of the wrong type raise a
one-line `ConfigError` that names the nearest valid key, or the expected type and unit.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, ValidationError, model_validator

from infnet_dist.config.ingest import IngestConfig
from infnet_dist.config.limits import MAX_TABLE_ROWS
from infnet_dist.config.logs import LogsIngest
from infnet_dist.config.messages import explain
from infnet_dist.config.model import InfnetConfig, ModelConfig, Section
from infnet_dist.config.optimizers import AdamWConfig, DenseOptimizerConfig, ScheduleConfig
from infnet_dist.config.overrides import apply_overrides
from infnet_dist.config.publish import PublishConfig
from infnet_dist.config.renamed import with_current_names
from infnet_dist.config.roll import RollConfig
from infnet_dist.config.tables import (
    SparseOptimizerConfig,
    TablesConfig,
    TableSettings,
    table_settings,
)
from infnet_dist.config.teacher import TeacherConfig
from infnet_dist.config.trainable import TrainableSection
from infnet_dist.config.warm_start import InitFromConfig
from infnet_dist.config.window import Time, Window
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


class RunConfig(Section):
    """Name, folder and seed of the run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run")
    folder: Path = Field(
        Path("runs"), description="parent folder of the run folders <name>/<run id>/"
    )
    seed: int = Field(0, ge=0, description="random seed of tables, tower and shuffling")


class CrossConfig(Section):
    """A combination of the values of features as one id, which reads a table of its own."""

    features: tuple[str, ...] = Field(
        min_length=2,
        max_length=3,
        description="names of categorical or bucketised features; the cross is unknown where one "
        "of them is",
    )
    num_embeddings: int = Field(
        ge=2, le=MAX_TABLE_ROWS, description="rows of the table, to which combinations are hashed"
    )


class DataConfig(Section):
    """The training set and how it is read."""

    path: Path = Field(description="folder of the training set (contains manifest.json)")
    features: tuple[str, ...] | None = Field(
        None,
        description="names of the features to train on; null: all features of the training set",
    )
    tasks: tuple[str, ...] | None = Field(
        None, description="names of the tasks to train; null: all"
    )
    crosses: dict[str, CrossConfig] = Field(
        default_factory=dict,
        description="combinations of features, by name, which is also that of their table",
    )
    window: Window = Field(
        None,
        description="rows of train that a run reads: `new`, the newest generation, or a section; "
        "null: all",
    )
    valid_from: Time | None = Field(
        None,
        description="first day or time of valid, in UTC unless it has an offset, or epoch ms: "
        "divides the rows of train and valid anew; null: as ingest divided them",
    )
    replay_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the rows of an epoch that are sampled from generations older than "
        "the window",
    )
    batch_size: int = Field(512, ge=1, lt=2**31, description="rows per worker and step")
    shuffle_rows: int = Field(
        65_536, ge=1, description="rows shuffled together in memory, per worker"
    )
    prefetch_batches: int = Field(4, ge=1, description="batches read ahead of the training step")
    max_bad_row_groups: int = Field(
        0,
        ge=0,
        description="maximum number of unreadable row groups skipped per worker; invalid values "
        "are never skipped",
    )
    reader: Literal["arrow", "petastorm"] = Field(
        "arrow", description="decoder of row groups; petastorm for Petastorm data sets"
    )
    petastorm_metadata: bool = Field(
        False, description="ingest also writes the metadata that petastorm's make_reader needs"
    )

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.replay_share and self.window is None:
            raise ValueError("replay_share has no effect without window; set window, or remove it")
        return self


class TrainingConfig(TrainableSection):
    """Length of training, logging and evaluation intervals."""

    epochs: int = Field(1, ge=1, description="number of passes over the train split")
    max_steps: int | None = Field(None, ge=1, description="maximum number of steps; null: no limit")
    log_every_steps: int = Field(50, ge=1, description="number of steps between two log lines")
    eval_every_steps: int | None = Field(
        None,
        ge=1,
        description="number of steps between evaluations; null: once per epoch, at its end",
    )
    accumulate_steps: int = Field(
        1,
        ge=1,
        le=2**20,
        description="number of steps whose mean gradient updates the dense part at once; tables "
        "are updated in each step",
    )
    pipeline: Literal["auto", "none", "sparse_dist"] = Field(
        "auto",
        description="sparse_dist: the ids of the next batch are exchanged, and copied to the GPU, "
        "during a step (TorchRec's train pipeline), with the same losses; none: after it; auto: "
        "sparse_dist with several workers or on GPUs",
    )
    task_weights: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="loss weight by task; 1 for tasks that aren't listed"
    )
    max_skipped_steps: int = Field(
        0,
        ge=0,
        description="maximum number of batches with a NaN or infinite loss that are skipped",
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32",
        description="of matrix products in training. tf32: those in fp32 on GPUs; bf16: autocast "
        "of tokens and tower; tables, losses, parameters, their updates and evaluations are fp32",
    )
    compile: bool = Field(
        False,
        description="compile tokens and tower for training by torch.compile; needs a C++ compiler",
    )
    teacher: TeacherConfig | None = Field(
        None,
        description="an older model whose scores the run learns beside the labels (distillation); "
        "null: none",
    )


class QCommsConfig(Section):
    """Data types in which workers exchange rows and their gradients (TorchRec's quantised comms).

    Half the bytes of float32, and rounding: fp16 loses gradients below 6e-8, bf16 keeps 8 bits.
    """

    forward_precision: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32", description="of the rows that are looked up"
    )
    backward_precision: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32", description="of their gradients"
    )


class ShardingConfig(Section):
    """Placement of the embedding tables on the workers, and their exchange of rows."""

    plan: Path | Literal["auto"] = Field(
        "auto", description="path of a plan file; auto: planned at start"
    )
    sequence_qcomms: QCommsConfig = Field(
        QCommsConfig(), description="tables that a sequence reads (EmbeddingCollection)"
    )
    bag_qcomms: QCommsConfig = Field(
        QCommsConfig(), description="all other tables (EmbeddingBagCollection)"
    )
    topology: Path | None = Field(
        None,
        description="topology (file or name) whose costs an automatic plan is made with, e.g. of "
        "infnet plan calibrate; null: that of the GPU, or cpu",
    )


class CheckpointConfig(Section):
    """When and where checkpoints are written, and which ones are kept."""

    folder: str | None = Field(
        None,
        description="parent folder (path or URL such as s3://...) of <name>/<run id>/step-...; "
        "null: checkpoints/ in the run folder",
    )
    every_steps: int | None = Field(
        None,
        ge=1,
        description="number of steps between checkpoints; null: once per epoch, at its end",
    )
    every_minutes: float | None = Field(
        None, gt=0, description="minutes between checkpoints; null: by steps and epochs only"
    )
    background: bool = Field(
        True,
        description="write while training continues; takes host memory of a quarter of the tables, "
        "on GPUs of all of them",
    )
    retry_s: float = Field(
        120.0, ge=0, description="seconds during which a failed write is retried"
    )
    keep_last: int = Field(2, ge=1, description="number of newest checkpoints that are kept")
    keep_every_steps: int | None = Field(
        None,
        ge=1,
        description="also keep checkpoints at multiples of this number of steps; null: none",
    )
    keep_best: str | None = Field(
        None,
        pattern=r"^valid/(auc|gauc|r2|log_loss|normalized_entropy|mae_s)/[^/]+$",
        description="metric whose best checkpoint is also kept, e.g. valid/auc/click; null: none",
    )
    init_from: InitFromConfig | None = Field(
        None,
        description="another run's checkpoint from which a new run starts; a run that has a "
        "checkpoint of its own resumes from that one; null: random initial values",
    )


class ScalingConfig(Section):
    """Workers and their resources, named as in `ray.train.ScalingConfig`."""

    num_workers: int = Field(2, ge=1, le=100_000, description="number of worker processes")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="minimum number of workers to continue with while nodes are missing; null: "
        "num_workers",
    )
    max_failures: int = Field(
        3, ge=0, description="maximum number of consecutive restarts without a new checkpoint"
    )
    use_gpu: bool = Field(False, description="use one GPU per worker")
    resources_per_worker: dict[str, NonNegativeFloat] = Field(
        default_factory=lambda: {"CPU": 1.0}, description="Ray resources by name, per worker"
    )
    timeout_s: float = Field(
        600.0, gt=0, description="timeout of a collective operation, in seconds"
    )
    hang_timeout_s: float = Field(
        300.0,
        gt=0,
        description="seconds without progress on any rank until the workers are stopped",
    )


class TrackingConfig(Section):
    """Where metrics are sent, in addition to the console and metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="mode of W&B; auto: online if there is an API key, otherwise offline"
    )
    project: str = Field("infnet_dist", description="name of the W&B project")


class Config(Section):
    """All sections of a run file."""

    run: RunConfig = RunConfig()
    ingest: IngestConfig | None = None
    data: DataConfig
    tables: TablesConfig = TablesConfig()
    model: ModelConfig = InfnetConfig()
    sparse_optimizer: SparseOptimizerConfig = SparseOptimizerConfig()
    dense_optimizer: DenseOptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    sharding: ShardingConfig = ShardingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    scaling: ScalingConfig = ScalingConfig()
    tracking: TrackingConfig = TrackingConfig()
    publish: PublishConfig = PublishConfig()
    roll: RollConfig = RollConfig()

    def table(self, name: str) -> TableSettings:
        """The settings of the table with this name."""
        settings = table_settings(self.tables, self.sparse_optimizer, name)
        return settings._replace(lr_factor=self.training.lr_factor(name))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run file and apply `key.path=value` overrides (values are YAML).

    Args:
        path: the YAML file.
        overrides: e.g. `["scaling.num_workers=1", "data.features=[user_id, item_id]"]`.

    Returns:
        The config; its paths are absolute, relative ones are resolved against $INFNET_ROOT.

    Raises:
        ConfigError: the file is missing or isn't a mapping, a key is unknown, or a value has the
            wrong type.
    """
    raw = read_sections(path)
    apply_overrides(raw, overrides)
    return parse_config(raw, source=str(path))


def config_of_text(text: str, source: str) -> Config:
    """The config in the config.yaml of a run or checkpoint; errors as in `load_config`.

    Keys of earlier versions are converted; those that saved no `tables.unknown_id_rate` dropped no
    ids.
    """
    raw = with_current_names(_sections(parse_saved_yaml, text, source))
    if isinstance(tables := raw.setdefault("tables", {}), dict):
        tables.setdefault("unknown_id_rate", 0.0)
    return parse_config(raw, source=source)


def read_sections(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file before validation; none if it is empty.

    Raises:
        ConfigError: the file is missing, or isn't a YAML mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no run file {path}; check the path (examples are in configs/)")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read as UTF-8 text ({type(error).__name__})") from None
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
            f"{source} contains a {type(raw).__name__}, expected sections such as 'data:'"
        )
    return raw


def parse_config(raw: dict[str, Any], source: str = "config") -> Config:
    """Validate nested dictionaries as a `Config`; paths and errors as in `load_config`."""
    try:
        check_plain(raw)
    except MalformedError as error:
        raise ConfigError(f"{source}: {error}") from None
    _reject_secrets(raw, source)
    try:
        config = checked(Config, raw)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(explain(error.errors(), Config))) from None
    return _with_absolute_paths(config)


def dump_config(config: Config) -> str:
    """The resolved config as YAML, from which `load_config` makes the same config."""
    return dump_yaml(config.model_dump(mode="json"))


def _with_absolute_paths(config: Config) -> Config:
    update: dict[str, object] = {
        "run": config.run.model_copy(update={"folder": resolve_path(config.run.folder)}),
        "data": config.data.model_copy(update={"path": resolve_path(config.data.path)}),
    }
    if isinstance(path := getattr(config.ingest, "path", None), Path):
        assert config.ingest is not None
        update["ingest"] = config.ingest.model_copy(update={"path": resolve_path(path)})
    if isinstance(config.ingest, LogsIngest):
        joins = {
            name: join.model_copy(update={"path": resolve_place(join.path)})
            for name, join in config.ingest.joins.items()
        }
        found = {"path": resolve_place(config.ingest.path), "joins": joins}
        update["ingest"] = config.ingest.model_copy(update=found)
    places: dict[str, object] = {}
    if config.checkpoint.folder is not None:
        places["folder"] = resolve_place(config.checkpoint.folder)
    if (init := config.checkpoint.init_from) and init.source.startswith("."):
        places["init_from"] = init.model_copy(update={"source": resolve_place(init.source)})
    update["checkpoint"] = config.checkpoint.model_copy(update=places)
    if (teacher := config.training.teacher) and teacher.source.startswith("."):
        teacher = teacher.model_copy(update={"source": resolve_place(teacher.source)})
        update["training"] = config.training.model_copy(update={"teacher": teacher})
    if config.publish.folder is not None:
        folder = {"folder": resolve_place(config.publish.folder)}
        update["publish"] = config.publish.model_copy(update=folder)
    files: dict[str, Path] = {}  # plans and topologies are kept with the code, not with the data
    if config.sharding.plan != "auto":
        files["plan"] = config.sharding.plan.absolute()
    if (topology := config.sharding.topology) and topology.suffix:  # otherwise it is a name
        files["topology"] = topology.absolute()
    update["sharding"] = config.sharding.model_copy(update=files)
    return config.model_copy(update=update)


def _reject_secrets(value: Any, source: str, key: str = "") -> None:
    """Reject URLs that contain secrets, before any other message could repeat one.

    Run files are saved with runs and checkpoints, and sent to W&B.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            _reject_secrets(name, source, key)
            _reject_secrets(inner, source, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            _reject_secrets(inner, source, key)
    elif isinstance(value, str) and (found := secrets_in(value)):
        raise ConfigError(
            f"{source}: {key}: the URL {without_secrets(value)} contains {' and '.join(found)}, "
            "and run files are saved with each run; remove it and set the environment variables of "
            "the store (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or use the role of "
            "the machine"
        )
