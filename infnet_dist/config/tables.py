"""Settings of the embedding tables: defaults, the sparse optimizer, and overrides by name."""

from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from pydantic import Field

from infnet_dist.config.model import Section

ShardingTypeName = Literal[
    "data_parallel",
    "table_wise",
    "column_wise",
    "row_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
]
SparseOptimizerName = Literal[
    "rowwise_adagrad", "adagrad", "sgd", "adam", "partial_rowwise_adam", "lamb"
]
GPU_OPTIMIZERS: tuple[SparseOptimizerName, ...] = ("adam", "partial_rowwise_adam", "lamb")
WITHOUT_DECAY: tuple[SparseOptimizerName, ...] = ("adagrad", "sgd")  # fbgemm's CPU kernels: all
DataType = Literal["fp32", "fp16"]
Initialization = Literal["uniform", "normal", "zeros"]


class TableConfig(Section):
    """Overrides for one embedding table, or all that match a pattern; null: no override."""

    embedding_dim: int | None = Field(
        None, ge=1, le=2**20, description="overrides tables.embedding_dim"
    )
    data_type: DataType | None = Field(None, description="overrides tables.data_type")
    sharding_types: tuple[ShardingTypeName, ...] | None = Field(
        None, min_length=1, description="sharding types the planner may choose from"
    )
    unknown_id_rate: float | None = Field(
        None, ge=0, lt=1, description="overrides tables.unknown_id_rate"
    )
    optimizer: SparseOptimizerName | None = Field(None, description="overrides sparse_optimizer")
    learning_rate: float | None = Field(
        None, gt=0, description="overrides sparse_optimizer.learning_rate"
    )
    weight_decay: float | None = Field(
        None, ge=0, description="overrides sparse_optimizer.weight_decay"
    )
    trainable: bool | None = Field(None, description="false: the rows aren't trained")
    initialization: Initialization | None = Field(None, description="overrides tables")
    initial_scale: float | None = Field(None, gt=0, description="overrides tables.initial_scale")


class TablesConfig(Section):
    """All embedding tables."""

    embedding_dim: int = Field(16, ge=1, le=2**20, description="floats per row")
    data_type: DataType = Field("fp32", description="data type of the embedding rows")
    unknown_id_rate: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of ids that training replaces by 0, so that the row of unknown ids is "
        "trained; null: up to 0.05 where valid or test have unknown ids, 0 in the user table, in "
        "hashed tables and for Petastorm data, where 0 may be a real id; a cross has the largest "
        "rate of its features",
    )
    initialization: Initialization = Field(
        "uniform", description="distribution of the initial values, around 0"
    )
    initial_scale: float | None = Field(
        None,
        gt=0,
        description="half width of `uniform`, standard deviation of `normal`; null: "
        "1/sqrt(number of rows)",
    )
    overrides: dict[str, TableConfig] = Field(
        default_factory=dict,
        description="overrides by table name or pattern, e.g. `tag_*`; a name goes before "
        "patterns, a later pattern before earlier ones",
    )

    def overrides_of(self, table: str) -> list[TableConfig]:
        """The overrides that match a table, the weakest first."""
        found = [o for p, o in self.overrides.items() if p != table and fnmatchcase(table, p)]
        return found + [o for p, o in self.overrides.items() if p == table]


class SparseOptimizerConfig(Section):
    """The optimizer of the embedding tables, fused into their backward pass."""

    name: SparseOptimizerName = Field(
        "rowwise_adagrad", description="adam, partial_rowwise_adam and lamb need GPUs"
    )
    learning_rate: float = Field(0.05, gt=0, description="learning rate")
    eps: float = Field(1e-8, gt=0, description="added to the square root of the accumulator")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="weight decay of the rows looked up, on GPUs alone: L2 of rowwise_adagrad, "
        "decoupled of adam, partial_rowwise_adam and lamb; adagrad and sgd have none",
    )
    max_gradient_norm: float | None = Field(
        None,
        gt=0,
        description="the gradient of each lookup of a row is scaled down to this norm; null: no "
        "limit",
    )


class TableSettings(NamedTuple):
    """The settings of one table, all overrides applied; see `TablesConfig` for their meaning."""

    embedding_dim: int
    data_type: DataType
    sharding_types: tuple[ShardingTypeName, ...] | None
    unknown_id_rate: float | None
    optimizer: SparseOptimizerName
    learning_rate: float
    eps: float
    weight_decay: float
    trainable: bool
    initialization: Initialization
    initial_scale: float | None
    lr_factor: float = 1.0  # of training.trainable

    @property
    def is_frozen(self) -> bool:
        """Whether no row changes in training."""
        return not self.trainable or not self.lr_factor


def table_settings(
    tables: TablesConfig, optimizer: SparseOptimizerConfig, table: str
) -> TableSettings:
    """The settings of the table with this name."""
    settings = TableSettings(
        embedding_dim=tables.embedding_dim,
        data_type=tables.data_type,
        sharding_types=None,
        unknown_id_rate=tables.unknown_id_rate,
        optimizer=optimizer.name,
        learning_rate=optimizer.learning_rate,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        trainable=True,
        initialization=tables.initialization,
        initial_scale=tables.initial_scale,
    )
    for override in tables.overrides_of(table):
        settings = settings._replace(**override.model_dump(exclude_none=True))
    return settings
