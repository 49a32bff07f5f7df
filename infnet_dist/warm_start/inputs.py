"""The ordered inputs and tasks of a model, and which of its dense parameters depend on them.

A dense parameter of equal shape may mean something else: a projection per field is one of another
field if the fields changed. So parameters are matched by the fields, behaviours, dense features and
tasks that they belong to. Which parameters do so, and how, is found by building the dense part with
one more of a kind, and comparing names and shapes; so a new tower needs nothing here.
"""

from dataclasses import dataclass
from typing import Literal

from infnet_dist.config.model import StackConfig
from infnet_dist.config.run import Config
from infnet_dist.lookups import Lookups
from infnet_dist.model.build import dense_shapes
from infnet_dist.schema import (
    CategoricalFeature,
    DenseFeature,
    Schema,
    SequenceAttribute,
    SequenceFeature,
    Table,
    Task,
)

Kind = Literal["fields", "behaviours", "dense features", "tasks"]
KINDS: tuple[Kind, ...] = ("fields", "behaviours", "dense features", "tasks")
_ONE_MORE = "+"  # no feature has this name


@dataclass(frozen=True)
class Entry:
    """A field, behaviour, dense feature or task; equal entries mean the same.

    Attributes:
        name: of the feature or task.
        facts: all else on which the meaning of its parameters depends.
    """

    name: str
    facts: tuple[object, ...] = ()


@dataclass(frozen=True)
class ModelInputs:
    """The inputs and tasks of a model.

    Attributes:
        entries: by kind, in the model's order.
        widths: the fields of each width, in the order of `FieldProjections.by_width`.
        tower: name of the tower, of a stack those of its parts.
    """

    entries: dict[Kind, tuple[Entry, ...]]
    widths: dict[int, tuple[Entry, ...]]
    tower: str

    @classmethod
    def of(cls, lookups: Lookups) -> "ModelInputs":
        """Those of a run."""
        schema, config = lookups.schema, lookups.config
        fields = [
            (Entry(f.feature, (f.table, f.kind, f.pooling, f.weighted, f.width)), f.width)
            for f in lookups.fields
        ]
        fields += [(Entry(v.name, ("vector", v.dim)), v.dim) for v in schema.vectors]
        widths: dict[int, tuple[Entry, ...]] = {}
        for entry, width in fields:
            widths[width] = (*widths.get(width, ()), entry)
        parents = config.model.conditional_on
        entries: dict[Kind, tuple[Entry, ...]] = {
            "fields": tuple(entry for entry, _ in fields),
            "behaviours": tuple(_behaviour(s, config) for s in schema.sequences),
            "dense features": tuple(Entry(feature.name) for feature in schema.standardised),
            "tasks": tuple(Entry(t.name, (t.kind, parents.get(t.name))) for t in schema.tasks),
        }
        return cls(entries, widths, _tower(config))


def _behaviour(sequence: SequenceFeature, config: Config) -> Entry:
    attributes = tuple(
        (a.name, a.table, config.table(a.table).embedding_dim) for a in sequence.attributes
    )
    gaps = sequence.time_gap_column is not None
    return Entry(sequence.name, (attributes, sequence.max_length, gaps))


def _tower(config: Config) -> str:
    model = config.model
    if not isinstance(model, StackConfig):
        return model.name
    return f"{model.sequence.name} + {model.interaction.name} + {model.head.name}"


@dataclass(frozen=True)
class Dependence:
    """How the dense parameters of a model depend on one kind of entries.

    Attributes:
        indexed: prefixes of names that an entry's number follows, e.g. `...tower.heads.heads.`.
        dims: by parameter, the dimension that has one element per entry.
        others: parameters whose shape depends on the number of entries in another way.
    """

    indexed: tuple[str, ...]
    dims: dict[str, int]
    others: frozenset[str]


def dependence(config: Config, schema: Schema, kind: Kind, count: int) -> Dependence:
    """How the dense parameters depend on the `count` entries of a kind."""
    base = dense_shapes(config, schema)
    more = dense_shapes(config, _with_one_more(schema, kind))
    indexed = {prefix for name in more if (prefix := _indexed(name, base, count))}
    dims, others = {}, set()
    for name, shape in base.items():
        grown = more.get(name, shape)
        if grown == shape:
            continue
        differing = [d for d, (a, b) in enumerate(zip(shape, grown, strict=True)) if a != b]
        if len(differing) == 1 and shape[differing[0]] == count == grown[differing[0]] - 1:
            dims[name] = differing[0]
        else:
            others.add(name)
    return Dependence(tuple(sorted(indexed)), dims, frozenset(others))


def _indexed(name: str, base: dict[str, tuple[int, ...]], count: int) -> str | None:
    """What precedes the entry's number in a name that only the larger model has."""
    parts = name.split(".")
    for place, part in enumerate(parts) if name not in base else ():
        if part == str(count) and ".".join([*parts[:place], "0", *parts[place + 1 :]]) in base:
            return ".".join([*parts[:place], ""])
    return None


def _with_one_more(schema: Schema, kind: Kind) -> Schema:
    """The schema with one more entry of a kind, which reads a table of its own."""
    one = _ONE_MORE
    field = CategoricalFeature.model_construct(name=one, table=one, column=one)
    attribute = SequenceAttribute.model_construct(name=one, table=one, column=one)
    behaviour = SequenceFeature.model_construct(name=one, attributes=(attribute,), max_length=1)
    added = {
        "fields": ("categorical", field),
        "behaviours": ("sequences", behaviour),
        "dense features": ("dense", DenseFeature.model_construct(name=one, column=one)),
        "tasks": ("tasks", Task.model_construct(name=one, column=one)),
    }
    part, entry = added[kind]
    changes = {part: (*getattr(schema, part), entry)}
    if kind in ("fields", "behaviours"):
        changes["tables"] = (*schema.tables, Table.model_construct(name=one, num_embeddings=2))
    return schema.model_copy(update=changes)
