"""What is tested of the columns of logs: the config's checks and the roles of columns, together."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from infnet_dist.config.logs import Check, LogsIngest
from infnet_dist.errors import ConfigError
from infnet_dist.ingest.convert.ids import to_integers
from infnet_dist.ingest.convert.kinds import TYPES, Kind
from infnet_dist.ingest.logs.id_types import IdType


@dataclass(frozen=True)
class Rules:
    """What `clean` tests; picklable.

    Attributes:
        kinds: by column, in the order of the typed rows.
        checks: by column.
        time_column: one of the columns.
        time_unit: of numbers in it.
        separators: by column of lists, what lies between items where they are text.
        inferred: columns of ids whose type the config doesn't say.
        max_ahead_h: hours that a row may be later than its file's last change; None: any.
        monotone: whether times must not fall within a file.
        after_ms: rows must be later, epoch ms; None: no bound.
    """

    kinds: dict[str, Kind]
    checks: dict[str, Check]
    time_column: str
    time_unit: str
    separators: dict[str, str] = field(default_factory=dict)
    inferred: tuple[str, ...] = ()
    max_ahead_h: float | None = None
    monotone: bool = False
    after_ms: int | None = None

    @property
    def schema(self) -> pa.Schema:
        """Columns and types of good rows."""
        return pa.schema({name: TYPES[kind] for name, kind in self.kinds.items()})


def make_rules(config: LogsIngest, types: Mapping[str, IdType], after_ms: int | None) -> Rules:
    """The rules of a config.

    Args:
        config: columns, their roles and checks.
        types: of every column of ids.
        after_ms: rows must be later, epoch ms; None: no bound.

    Raises:
        ConfigError: a column has two roles that don't agree.
    """
    kinds: dict[str, Kind] = {config.time.column: "time"}
    for names, kind in (
        (config.dense, "float"),
        ([config.watch_time] if config.watch_time else [], "watch_time"),
        (config.flags, "flag"),
    ):
        for name in names:
            if name in kinds:
                raise ConfigError(f"ingest: column {name!r} is {kinds[name]} and {kind}; name one")
            kinds[name] = kind  # type: ignore[assignment]
    for name in config.columns:
        if name in kinds and (kinds[name] != "flag" or name == config.user):
            if name in (config.user, *config.ids, *config.lists):
                raise ConfigError(f"ingest: column {name!r} is {kinds[name]} and id; name one")
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
        separators={name: column.separator for name, column in config.lists.items()},
        inferred=tuple(n for n in types if config.checks.get(n, Check()).type is None),
        max_ahead_h=config.time.max_ahead_h,
        monotone=config.time.monotone,
        after_ms=after_ms,
    )


def _user_check(config: LogsIngest) -> Check:
    """Rows without a user are never kept: they would share one history."""
    return config.checks.get(config.user, Check()).model_copy(update={"nulls": "quarantine"})


def _check_tables(config: LogsIngest, kinds: dict[str, Kind]) -> None:
    """Raise ConfigError where a table would have both integers and texts."""
    by_table: dict[str, dict[bool, str]] = {}
    tables = config.ids | {name: column.table for name, column in config.lists.items()}
    for column, table in tables.items():
        by_table.setdefault(table, {})[kinds[column] in ("text", "texts")] = column
    for table, columns in by_table.items():
        if len(columns) > 1:
            raise ConfigError(
                f"ingest: table {table!r} has texts of column {columns[True]!r} and integers of "
                f"{columns[False]!r}; give them tables of their own, or set checks.COLUMN.type"
            )


def _check_check(name: str, check: Check, kind: Kind) -> None:
    """Raise ConfigError where a check doesn't suit its column."""
    text = kind in ("text", "texts")
    whole = kind in ("int", "ints", "flag", "time", "watch_time")
    if text and (check.min is not None or check.max is not None):
        raise ConfigError(f"ingest.checks.{name}: texts have no min and max; use allowed")
    for value in check.allowed or ():
        if isinstance(value, str) != text or not (text or _is_number(value, whole)):
            expected = "texts" if text else "integers of 64 bits" if whole else "numbers of float32"
            raise ConfigError(f"ingest.checks.{name}.allowed: got {value!r}, expected {expected}")
    if check.type is not None and kind not in ("int", "text", "ints", "texts"):
        raise ConfigError(f"ingest.checks.{name}.type: is of ids alone, {name!r} is {kind}")


def _is_number(value: int | float | str, whole: bool) -> bool:
    """Whether a value of a config is a number that a column can hold."""
    if isinstance(value, str):
        return False
    if not whole:
        return abs(value) < 2**128
    return (isinstance(value, int) or value.is_integer()) and -(2**63) <= value < 2**64


def allowed_values(check: Check, kind: Kind) -> pa.Array:
    """`checks.COLUMN.allowed` as texts, float64 or int64 (of uint64: the same bits)."""
    assert check.allowed is not None
    if kind in ("text", "texts"):
        return pa.array(list(check.allowed), pa.large_string())
    if kind == "float":
        return pa.array([float(value) for value in check.allowed])
    return to_integers(pa.array([str(int(value)) for value in check.allowed]))[0]
