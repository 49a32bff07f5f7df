"""Conditions on the columns of logs, from the checks and the roles of columns in the config."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from infnet_dist.config.log_columns import Check
from infnet_dist.config.logs import LogsIngest
from infnet_dist.errors import ConfigError
from infnet_dist.ingest.convert.ids import to_integers
from infnet_dist.ingest.convert.kinds import TYPES, Kind
from infnet_dist.ingest.logs.reading.id_types import IdType


@dataclass(frozen=True)
class Rules:
    """Conditions that `clean` tests; picklable.

    Attributes:
        kinds: kinds by column, in the order of the typed rows.
        checks: checks by column.
        time_column: name of the time column.
        time_unit: unit of its numbers.
        separators: by column of lists and vectors, the separator of items in text.
        dims: size by column of vectors.
        weights: by column of weighted bags, the column of their weights.
        sample_weight: column of the weights of rows; None: none.
        inferred: id columns whose type isn't in the config.
        max_ahead_h: maximum hours of a row after the last change of its file; None: no limit.
        monotone: whether times must not decrease within a file.
        after_ms: rows must be later than this epoch ms; None: no limit.
    """

    kinds: dict[str, Kind]
    checks: dict[str, Check]
    time_column: str
    time_unit: str
    separators: dict[str, str] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    sample_weight: str | None = None
    inferred: tuple[str, ...] = ()
    max_ahead_h: float | None = None
    monotone: bool = False
    after_ms: int | None = None

    @property
    def schema(self) -> pa.Schema:
        """Columns and types of good rows."""
        types = {name: TYPES[kind] for name, kind in self.kinds.items()}
        vectors = {name: pa.list_(pa.float32(), dim) for name, dim in self.dims.items()}
        return pa.schema(types | vectors)


def make_rules(config: LogsIngest, types: Mapping[str, IdType], after_ms: int | None) -> Rules:
    """The rules of a config.

    Args:
        config: columns, their roles and checks.
        types: types of all id columns.
        after_ms: rows must be later than this epoch ms; None: no limit.

    Raises:
        ConfigError: the roles of a column conflict.
    """
    kinds: dict[str, Kind] = {config.time.column: "time"}
    for names, kind in (
        (config.dense, "float"),
        ([config.watch_time] if config.watch_time else [], "watch_time"),
        (config.flags, "flag"),
        ([config.sample_weight] if config.sample_weight else [], "float"),
        ([*config.weight_columns.values(), *config.vectors], "floats"),
    ):
        for name in names:
            if kinds.get(name, kind) != kind:
                raise ConfigError(
                    f"ingest: column {name!r} has the roles {kinds[name]} and {kind}; keep one"
                )
            kinds[name] = kind  # type: ignore[assignment]
    for name in config.columns:
        if name in kinds and (kinds[name] != "flag" or name == config.user):
            if name in (config.user, *config.ids, *config.lists):
                raise ConfigError(
                    f"ingest: column {name!r} has the roles {kinds[name]} and id; keep one"
                )
        elif name not in kinds:
            many = name in config.lists
            if types[name] == "text":
                kinds[name] = "texts" if many else "text"
            else:
                kinds[name] = "ints" if many else "int"
    _check_tables(config, kinds)
    for name, check in config.checks.items():
        _check_check(name, check, kinds[name])
    return Rules(
        kinds={name: kinds[name] for name in config.columns},
        checks={**config.checks, config.user: _user_check(config)},
        time_column=config.time.column,
        time_unit=config.time.unit,
        separators=_separators(config),
        dims={name: column.dim for name, column in config.vectors.items()},
        weights=config.weight_columns,
        sample_weight=config.sample_weight,
        inferred=tuple(n for n in types if config.checks.get(n, Check()).type is None),
        max_ahead_h=config.time.max_ahead_h,
        monotone=config.time.monotone,
        after_ms=after_ms,
    )


def _separators(config: LogsIngest) -> dict[str, str]:
    """Separators of items in text; weights have that of their list."""
    found = {name: column.separator for name, column in (config.lists | config.vectors).items()}
    return found | {weights: found[name] for name, weights in config.weight_columns.items()}


def _user_check(config: LogsIngest) -> Check:
    """The check of the user column: rows without a user would share one history."""
    return config.checks.get(config.user, Check()).model_copy(update={"nulls": "quarantine"})


def _check_tables(config: LogsIngest, kinds: dict[str, Kind]) -> None:
    """Raise ConfigError if a table has both integers and texts."""
    by_table: dict[str, dict[bool, str]] = {}
    tables = config.ids | {name: column.table for name, column in config.lists.items()}
    for column, table in tables.items():
        by_table.setdefault(table, {})[kinds[column] in ("text", "texts")] = column
    for table, columns in by_table.items():
        if len(columns) > 1:
            raise ConfigError(
                f"ingest: table {table!r} has texts of column {columns[True]!r} and integers of "
                f"{columns[False]!r}; use two tables, or set checks.COLUMN.type"
            )


def _check_check(name: str, check: Check, kind: Kind) -> None:
    """Raise ConfigError if a check doesn't apply to the kind of its column."""
    text = kind in ("text", "texts")
    whole = kind in ("int", "ints", "flag", "time", "watch_time")
    if text and (check.min is not None or check.max is not None):
        raise ConfigError(f"ingest.checks.{name}: min and max don't apply to texts; use allowed")
    for value in check.allowed or ():
        if isinstance(value, str) != text or not (text or _is_number(value, whole)):
            expected = "texts" if text else "integers of 64 bits" if whole else "numbers of float32"
            raise ConfigError(f"ingest.checks.{name}.allowed: got {value!r}, expected {expected}")
    if check.type is not None and kind not in ("int", "text", "ints", "texts"):
        raise ConfigError(
            f"ingest.checks.{name}.type: applies to ids only, {name!r} is {kind}; remove it"
        )


def _is_number(value: int | float | str, whole: bool) -> bool:
    """Whether a value of a config is a number that a column can contain."""
    if isinstance(value, str):
        return False
    if not whole:
        return abs(value) < 2**128
    return (isinstance(value, int) or value.is_integer()) and -(2**63) <= value < 2**64


def allowed_values(check: Check, kind: Kind) -> pa.Array:
    """`checks.COLUMN.allowed` as texts, float64 or int64 (uint64 with the same bits)."""
    assert check.allowed is not None
    if kind in ("text", "texts"):
        return pa.array(list(check.allowed), pa.large_string())
    if kind in ("float", "floats"):
        return pa.array([float(value) for value in check.allowed])
    return to_integers(pa.array([str(int(value)) for value in check.allowed]))[0]
