"""How each column of a training set was made of raw columns, and how a model reads it: as data.

    raw column --(columns)--> column of the training set --(inputs)--> array that the model reads

`transforms.json` holds a `Definition`; key maps of vocabularies are beside it.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from infnet_dist.errors import DataError
from infnet_dist.features.typed_json import typed

FORMAT_VERSION = 1
RawType = Literal["integer", "text", "float", "flag", "integers", "texts", "floats"]


@dataclass(frozen=True)
class KeyMapFiles:
    """The files of a vocabulary: `<stem>.keys.npy` and `<stem>.ids.npy` beside the definition.

    Attributes:
        values: number of values with an id.
        sha256: hashes of the two files.
    """

    stem: str
    values: int
    sha256: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.sha256) != 2:
            raise DataError(f"sha256 has {len(self.sha256)} hashes, expected 2")


@dataclass(frozen=True)
class IdTable:
    """Ids of values. Id 0 is for null and unknown values in every encoding.

    Attributes:
        encoding: vocabulary: by the key map; hash: rows by SplitMix64; raw: 64-bit keys, which are
            hashed to rows when they are read; ids: values are ids already.
        num_ids: ids are in [0, num_ids); 0: any 64-bit key (raw).
        key_map: the vocabulary.
    """

    encoding: Literal["vocabulary", "hash", "raw", "ids"]
    num_ids: int
    key_map: KeyMapFiles | None = None

    def __post_init__(self) -> None:
        _at_least(self, num_ids={"hash": 2, "raw": 0}.get(self.encoding, 1))
        if (self.key_map is not None) != (self.encoding == "vocabulary"):
            raise DataError("a table has a key map if and only if it is encoded by vocabulary")


@dataclass(frozen=True)
class IdColumn:
    """One id per row, of the value of a raw column; null: 0."""

    raw: str
    table: str
    seed: int = 0
    kind: Literal["id"] = "id"


@dataclass(frozen=True)
class IdsColumn:
    """The ids of the first items of a list; null: an empty list."""

    raw: str
    table: str
    max_length: int
    seed: int = 0
    kind: Literal["ids"] = "ids"


@dataclass(frozen=True)
class WeightsColumn:
    """The weights, >= 0, of the items of the list `of`, another raw column, cut like it."""

    raw: str
    of: str
    max_length: int
    kind: Literal["weights"] = "weights"


@dataclass(frozen=True)
class GapsColumn:
    """Time gaps of a history in seconds, given as they are."""

    raw: str
    max_length: int
    kind: Literal["gaps"] = "gaps"


@dataclass(frozen=True)
class VectorColumn:
    """A vector of `dim` float32 per row, or null."""

    raw: str
    dim: int
    kind: Literal["vector"] = "vector"


@dataclass(frozen=True)
class NumberColumn:
    """A float32 per row.

    Attributes:
        null: keep: null stays null; fill: it becomes `fill`; error: it is refused.
        not_finite: what infinity and numbers that float32 can't represent are: null, or refused.
    """

    raw: str
    null: Literal["keep", "fill", "error"] = "keep"
    fill: float = 0.0
    not_finite: Literal["null", "error"] = "error"
    kind: Literal["number"] = "number"


@dataclass(frozen=True)
class HistoryIds:
    """Ids of the items of a behaviour, of a raw column of its events."""

    behaviour: str
    raw: str
    table: str
    seed: int = 0
    kind: Literal["history_ids"] = "history_ids"


@dataclass(frozen=True)
class HistoryActions:
    """1 plus one bit per action of the items of a behaviour; `raw` are flags of its events."""

    behaviour: str
    raw: tuple[str, ...]
    kind: Literal["history_actions"] = "history_actions"


@dataclass(frozen=True)
class HistoryGaps:
    """Seconds from each event of a behaviour to the row, rounded down, at least 1."""

    behaviour: str
    kind: Literal["history_gaps"] = "history_gaps"


SetColumn = (
    IdColumn | IdsColumn | WeightsColumn | GapsColumn | VectorColumn | NumberColumn
    | HistoryIds | HistoryActions | HistoryGaps
)  # fmt: skip


@dataclass(frozen=True)
class Behaviour:
    """One kind of event: a row has the newest `max_length` of its user before the row's cutoff.

    `where` is the raw column that is 1 for its events; None: every raw row is one.
    """

    max_length: int
    where: str | None = None

    def __post_init__(self) -> None:
        _at_least(self, max_length=1)


@dataclass(frozen=True)
class TimeColumn:
    """The raw column of times, of rows and of events, and which events a row may use.

    Attributes:
        unit: unit of its integers since 1970 in UTC.
        daily: rows use events before the last local midnight; otherwise before the row itself.
        offset_ms: local time minus UTC.
    """

    raw: str
    unit: Literal["s", "ms", "us", "ns"]
    daily: bool = False
    offset_ms: int = 0


@dataclass(frozen=True)
class IdInput:
    """One row of a table; raw ids are hashed to one."""

    key: str
    column: str
    num_embeddings: int
    raw: bool = False
    kind: Literal["id"] = "id"

    def __post_init__(self) -> None:
        _at_least(self, num_embeddings=2 if self.raw else 1)


@dataclass(frozen=True)
class BucketInput:
    """The bucket of a number; 0 for null."""

    key: str
    column: str
    boundaries: tuple[float, ...]
    kind: Literal["bucket"] = "bucket"


@dataclass(frozen=True)
class StandardisedInput:
    """A number, standardised."""

    key: str
    column: str
    mean: float
    std: float
    kind: Literal["standardised"] = "standardised"


@dataclass(frozen=True)
class CrossInput:
    """The combination of two or three `id` or `bucket` inputs, hashed to a row."""

    key: str
    of: tuple[str, ...]
    num_embeddings: int
    kind: Literal["cross"] = "cross"

    def __post_init__(self) -> None:
        _at_least(self, num_embeddings=2)


@dataclass(frozen=True)
class IdsInput:
    """Rows of a table: a bag, or one attribute of a sequence, cut after `max_length`."""

    key: str
    column: str
    num_embeddings: int
    max_length: int
    raw: bool = False
    kind: Literal["ids"] = "ids"

    def __post_init__(self) -> None:
        _at_least(self, num_embeddings=2 if self.raw else 1, max_length=1)


@dataclass(frozen=True)
class WeightsInput:
    """Weights of the ids of a bag."""

    key: str
    column: str
    max_length: int
    kind: Literal["weights"] = "weights"


@dataclass(frozen=True)
class GapsInput:
    """Buckets of the time gaps of a behaviour."""

    key: str
    column: str
    max_length: int
    kind: Literal["gaps"] = "gaps"


@dataclass(frozen=True)
class VectorInput:
    """The numbers of a vector; none where it is null."""

    key: str
    column: str
    kind: Literal["vector"] = "vector"


Input = (
    IdInput | BucketInput | StandardisedInput | CrossInput | IdsInput | WeightsInput | GapsInput
    | VectorInput
)  # fmt: skip


@dataclass(frozen=True)
class Definition:
    """All transforms of a training set.

    Attributes:
        generation: number of the ingest that wrote it; later ones only add ids to vocabularies.
        raw: type by raw column.
        tables: by name of the table.
        columns: by column of the training set.
        behaviours: by name; raw rows give their events under this name.
        inputs: what the model reads, in order.
        time: the raw column of times; None: there are no histories of raw events.
    """

    generation: int
    raw: dict[str, RawType]
    tables: dict[str, IdTable]
    columns: dict[str, SetColumn]
    behaviours: dict[str, Behaviour]
    inputs: tuple[Input, ...]
    time: TimeColumn | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise DataError(
                f"has format {self.format_version}, this version reads {FORMAT_VERSION}; ingest "
                "again"
            )
        columns = [i.column for i in self.inputs if not isinstance(i, CrossInput)]
        _known("column", columns, self.columns)
        single = [i.key for i in self.inputs if isinstance(i, IdInput | BucketInput)]
        _known("input", [n for i in self.inputs if isinstance(i, CrossInput) for n in i.of], single)
        made = self.columns.values()
        _known("table", [table for c in made if (table := getattr(c, "table", None))], self.tables)
        behaviours = [name for c in made if (name := getattr(c, "behaviour", None))]
        _known("behaviour", behaviours, self.behaviours)
        raw = [n for c in made for n in _names(getattr(c, "raw", ()))]
        _known("raw column", raw, self.raw)
        if behaviours and self.time is None:
            raise DataError("histories need a column of times")


def parse(value: Any) -> Definition:
    """The definition of a JSON value.

    Raises:
        DataError: a key is missing or unknown, or a value is of another type; names the key.
    """
    return typed(value, Definition)


def plain(definition: Definition) -> dict[str, Any]:
    """The definition as a JSON value."""
    return dataclasses.asdict(definition)


def _at_least(of: Any, **least: int) -> None:
    for name, low in least.items():
        if getattr(of, name) < low:
            raise DataError(f"{name} is {getattr(of, name)}, expected at least {low}")


def _known(kind: str, wanted: Any, known: Any) -> None:
    for name in wanted:
        if name not in known:
            raise DataError(f"an unknown {kind} {name!r} is used")


def _names(raw: str | tuple[str, ...]) -> tuple[str, ...]:
    return (raw,) if isinstance(raw, str) else raw
