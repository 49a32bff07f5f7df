"""Descriptions of the tables to plan for, read from a YAML file; the tables needn't exist yet.

batch_size: 1024            # rows per worker and step
optimizer: rowwise_adagrad
background_save: true       # checkpoints are written while training continues
tables:
  - name: user
    num_embeddings: 2_000_000_000
    embedding_dim: 64
    data_type: fp16
    pooling: none           # a sequence of rows; sum or mean: one pooled row
    features: [{name: user_id}, {name: friends, mean_length: 20}]
  - name: tag
    num_embeddings: 100_000
    embedding_dim: 16
    weighted: true          # each id of a bag has a weight
    optimizer: adagrad      # otherwise that of all tables
    features: [{name: tags, mean_length: 5}]
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from infnet_dist.config.messages import explain
from infnet_dist.config.tables import DataType, ShardingTypeName, SparseOptimizerName
from infnet_dist.errors import PlanError
from infnet_dist.io.parsing import MalformedError, Model, Name, checked, parse_json, parse_yaml
from infnet_dist.lookups import Home

KernelName = Literal["dense", "fused", "fused_uvm", "fused_uvm_caching", "key_value"]
# Their state of a row depends on all of its floats, so each column shard has a state of its own.
ROW_STATE_OPTIMIZERS = ("rowwise_adagrad", "partial_rowwise_adam", "lamb")
_KINDS = {"none": "sequence", "sum": "bag", "mean": "mean bag"}

Integer = Annotated[int, Strict()]  # rejects text and booleans
Number = Annotated[float, Strict()]
Boolean = Annotated[bool, Strict()]

# Beyond any real table or batch, and small enough that no sum overflows 63 bits or a double.
MAX_TABLES = 10_000
MAX_TABLE_BYTES = 2**55
MAX_BATCH_SIZE = 2**24
MAX_MEAN_LENGTH = 1e6
MAX_IDS = 2**34  # looked up in one table per worker and step

# In a checkout and in the installed package.
TABLES = Path(__file__).parents[2] / "sharding_plans" / "tables"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PlanFeature(_Entry):
    """One feature that looks rows up in the table."""

    name: Name
    mean_length: Number = Field(
        1.0, ge=1e-6, le=MAX_MEAN_LENGTH, description="mean number of ids per row of a batch"
    )


class PlanTable(_Entry):
    """One table, and the constraints on its plan."""

    name: Name
    num_embeddings: Integer = Field(ge=1, le=10**14, description="rows")
    embedding_dim: Integer = Field(ge=4, le=2**20, multiple_of=4, description="floats per row")
    data_type: DataType = Field("fp32", description="type of the rows")
    pooling: Literal["none", "sum", "mean"] = Field(
        "sum",
        description="none: a sequence of rows (EmbeddingCollection); sum or mean: one pooled row",
    )
    weighted: Boolean = Field(False, description="pooled rows are multiplied by a weight per id")
    optimizer: SparseOptimizerName | None = Field(
        None, description="sparse optimizer; null: that of the other tables"
    )
    features: tuple[PlanFeature, ...] = Field(min_length=1, max_length=10_000)
    zipf: Number | None = Field(
        None, ge=0, le=20, description="skew of its ids: P(rank r) ~ r^-zipf; null: unknown"
    )
    sharding_types: tuple[ShardingTypeName, ...] | None = Field(
        None,
        min_length=1,
        description="allowed sharding types; null: table_wise, row_wise and, for pooled tables, "
        "table_row_wise over several nodes and (fp32 rows) data_parallel",
    )
    compute_kernels: tuple[KernelName, ...] | None = Field(
        None, min_length=1, description="allowed kernels; null: all but key_value"
    )
    cache_share: Number | None = Field(
        None, ge=1e-6, le=1, description="share of rows cached in HBM; null: the planner chooses"
    )
    min_column_width: Integer = Field(
        32, ge=4, le=2**20, multiple_of=4, description="minimum width of a column shard, in floats"
    )
    priority: Number = Field(
        1.0,
        ge=1e-6,
        le=1e6,
        description="weight of its time when memory is short; a higher one keeps more of it in HBM",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        size = self.num_embeddings * self.embedding_dim * (4 if self.data_type == "fp32" else 2)
        if size > MAX_TABLE_BYTES:
            raise ValueError(
                f"table {self.name!r}: num_embeddings {self.num_embeddings} x embedding_dim "
                f"{self.embedding_dim} {self.data_type} is {size:.2g} bytes, expected at most "
                f"{MAX_TABLE_BYTES:.2g} ({MAX_TABLE_BYTES // 2**50} PiB)"
            )
        if self.weighted and self.pooling == "none":
            raise ValueError(
                f"table {self.name!r}: weighted needs pooling sum or mean, got none: rows of a "
                "sequence have no weights"
            )
        return self

    @property
    def home(self) -> Home:
        """The collection that holds it: of sequences, bags or weighted bags."""
        if self.pooling == "none":
            return "sequence"
        return "weighted" if self.weighted else "bag"

    @property
    def kind(self) -> str:
        """How its rows are used: sequence, bag, mean bag, weighted bag or weighted mean bag."""
        return f"weighted {_KINDS[self.pooling]}" if self.weighted else _KINDS[self.pooling]

    @property
    def lengths(self) -> tuple[float, ...]:
        """Mean number of ids per row of a batch, by feature."""
        return tuple(feature.mean_length for feature in self.features)


class TableSet(_Entry):
    """All tables of a model, with batch size and optimizer."""

    batch_size: Integer = Field(ge=1, le=MAX_BATCH_SIZE, description="rows per worker and step")
    optimizer: SparseOptimizerName = Field("rowwise_adagrad", description="sparse optimizer")
    background_save: Boolean = Field(
        True,
        description="checkpoints are written while training continues, which takes host memory "
        "for copies of rows (checkpoint.background)",
    )
    tables: tuple[PlanTable, ...] = Field(min_length=1, max_length=MAX_TABLES)

    @model_validator(mode="after")
    def _check(self) -> Self:
        tables = Counter(table.name for table in self.tables)
        features = Counter(f.name for table in self.tables for f in table.features)
        for kind, counts in (("table", tables), ("feature", features)):
            name, count = max(counts.items(), key=lambda item: item[1])
            if count > 1:
                where = [t.name for t in self.tables if name in {f.name for f in t.features}]
                places = "" if kind == "table" else f", in tables {', '.join(where)}"
                raise ValueError(f"{kind} name {name!r} appears {count} times{places}; rename one")
        for table in self.tables:
            ids = self.batch_size * sum(table.lengths)
            if ids > MAX_IDS:
                raise ValueError(
                    f"table {table.name!r}: batch_size {self.batch_size} x mean_length "
                    f"{sum(table.lengths):g} is {ids:.2g} ids per worker and step, expected at "
                    f"most {MAX_IDS:.2g}"
                )
        return self

    def table(self, name: str) -> PlanTable:
        """The table `name`."""
        return next(table for table in self.tables if table.name == name)

    def optimizer_of(self, table: PlanTable) -> SparseOptimizerName:
        """The sparse optimizer of a table."""
        return table.optimizer or self.optimizer

    def complete(self, table: PlanTable) -> PlanTable:
        """The table with its optimizer, even if it is that of all tables."""
        return table.model_copy(update={"optimizer": self.optimizer_of(table)})

    def replace(self, name: str, **changes: object) -> "TableSet":
        """A copy with changes to the table `name`."""
        tables = [
            table.model_copy(update=changes) if table.name == name else table
            for table in self.tables
        ]
        return self.model_copy(update={"tables": tuple(tables)})


def load_table_set(name_or_path: str | Path) -> TableSet:
    """Read a tables file by its name in `sharding_plans/tables` or its path.

    Raises:
        PlanError: the file is missing or malformed; names the table and key.
    """
    return read_yaml(find_file(name_or_path, TABLES, "tables file"), TableSet, "tables file")


def find_file(name_or_path: str | Path, folder: Path, kind: str) -> Path:
    """The path of a YAML or JSON file, given by its path or by its name in `folder`.

    Raises:
        PlanError: the file doesn't exist; names those in `folder`.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        path = folder / f"{name_or_path}.yaml"
    if not path.is_file():
        ready = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise PlanError(f"no {kind} {name_or_path} ({path}); in {folder.name}/: {ready}")
    return path


def read_yaml(path: str | Path, model: type[Model], kind: str) -> Model:
    """Read a YAML or JSON file and validate it as `model`.

    Raises:
        PlanError: the file is missing, isn't YAML or JSON, or isn't valid; names the first wrong
            key.
    """
    path = Path(path)
    if not path.is_file():
        raise PlanError(f"no {kind} {path}")
    try:
        text = path.read_text(encoding="utf-8")
        raw = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except (OSError, UnicodeDecodeError, MalformedError) as error:
        language = "JSON" if path.suffix == ".json" else "YAML"
        raise PlanError(f"{path} is not {language}: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise PlanError(f"{path} holds a {type(raw).__name__}, expected keys such as 'tables:'")
    try:
        return checked(model, raw)
    except ValidationError as error:
        raise PlanError(f"{path}: {explain(error.errors(), model)[0]}") from None
