"""What is looked up: the one list from which planner, model, checkpoints and reports are made.

Pure data, from schema and config. A table has one *home*, a TorchRec collection:

    sequence   EmbeddingCollection, one per width   tables that a sequence reads
    weighted   EmbeddingBagCollection, weighted     tables that a weighted bag reads
    bag        EmbeddingBagCollection               all others

A feature is pooled in its table's home, but for bags over a sequence's table, which are pooled
after the lookup. All collections sum: a mean is the sum divided by the number of ids (or the sum of
weights), so that it is exact under every sharding type.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from infnet_dist.config.run import Config
from infnet_dist.config.tables import TableSettings
from infnet_dist.schema import Schema, Table, sequence_key

Home = Literal["sequence", "bag", "weighted"]
_ROWS = re.compile(r"(?:^|\.)(?:embeddings|embedding_bags)\.([^.]+)\.weight$")


@dataclass(frozen=True)
class Lookup:
    """One key of the batch's KeyedJaggedTensors and the table that it reads.

    Attributes:
        feature: the key.
        table: name of the table.
        width: floats per row, `embedding_dim`.
        kind: single: one id per row of a batch; bag: several, pooled; sequence: several, each a
            token.
        home: the table's.
        pooling: of a bag.
        weighted: whether the ids of a bag have weights.
    """

    feature: str
    table: str
    width: int
    kind: Literal["single", "bag", "sequence"]
    home: Home
    pooling: Literal["sum", "mean"] | None = None
    weighted: bool = False


@dataclass(frozen=True)
class TableLookups:
    """A table, its settings, and all lookups of it."""

    table: Table
    settings: TableSettings
    home: Home
    lookups: tuple[Lookup, ...]

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.table.name

    @property
    def kernel_width(self) -> int:
        """Floats per row in the collection."""
        return padded_width(self.settings.embedding_dim)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the features that read it."""
        return tuple(lookup.feature for lookup in self.lookups)


class Lookups(Sequence[Lookup]):
    """All lookups of a run, in the order of `Schema.table_features`.

    Attributes:
        schema: the selected features.
        config: the run.
    """

    def __init__(self, schema: Schema, config: Config) -> None:
        """Widths and other settings of tables are those of `config`."""
        self.schema = schema
        self.config = config
        self._lookups = tuple(self._make())

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int or slice
        """The lookup, or lookups, at this place."""
        return self._lookups[index]

    def __len__(self) -> int:
        """Number of lookups."""
        return len(self._lookups)

    @property
    def fields(self) -> tuple[Lookup, ...]:
        """Those that give one embedding per row: singles, then bags."""
        return tuple(lookup for lookup in self if lookup.kind != "sequence")

    @cached_property
    def tables(self) -> tuple[TableLookups, ...]:
        """The tables that are read, in the order of the schema."""
        found = []
        for table in self.schema.tables:
            lookups = tuple(lookup for lookup in self if lookup.table == table.name)
            if lookups:
                settings = self.config.table(table.name)
                found.append(TableLookups(table, settings, lookups[0].home, lookups))
        return tuple(found)

    def _make(self) -> Iterator[Lookup]:
        bags = {bag.name: bag for bag in self.schema.bags}
        sequences = {sequence_key(s, a) for s in self.schema.sequences for a in s.attributes}
        for feature in self.schema.table_features:
            width = self.config.table(feature.table).embedding_dim
            home = self._home(feature.table)
            if feature.key in sequences:
                yield Lookup(feature.key, feature.table, width, "sequence", home)
            elif bag := bags.get(feature.key):
                weighted = bag.weight_column is not None
                yield Lookup(bag.name, bag.table, width, "bag", home, bag.pooling, weighted)
            else:
                yield Lookup(feature.key, feature.table, width, "single", home)

    def _home(self, table: str) -> Home:
        if any(a.table == table for s in self.schema.sequences for a in s.attributes):
            return "sequence"
        return "weighted" if table in self.schema.weighted_tables else "bag"


def padded_width(embedding_dim: int) -> int:
    """Floats per row in a collection: fbgemm's kernels need a multiple of 4."""
    return -(-embedding_dim // 4) * 4


def table_of(parameter: str) -> str | None:
    """The table whose rows a parameter of a model holds; None for other parameters."""
    found = _ROWS.search(parameter)
    return found[1] if found else None
