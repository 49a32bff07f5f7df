"""Suggests the width of each table from its rows, its use and a memory budget.

Two published rules, each where it holds:

- What a table can use: 6 n^(1/4) floats for n values (Wang et al., Deep & Cross Network,
  arXiv 1708.05123, implementation details). Here n is the *effective* number of rows, e^entropy of
  the lookups: all rows if they are looked up alike, fewer if few rows get most lookups.
- What memory allows: lambda p^alpha floats, where p is the number of lookups per row of the table
  (Ginart, Naumov et al., Mixed Dimension Embeddings, arXiv 1909.11810; their code, `md_solver` of
  DLRM, has alpha = 0.3): rows that are looked up rarely get few floats. lambda is the largest value
  within the budget.

A table gets the smaller of the two, in multiples of 4. Tables that one sequence reads count as one
table and get one width, since TorchRec has a collection, and an exchange, for each width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infnet_dist.errors import PlanError
from infnet_dist.io.filesystem import size_text
from infnet_dist.planning.costs.popularity import effective_rows
from infnet_dist.planning.costs.sizes import row_bytes
from infnet_dist.planning.tables import PlanTable, TableSet

_MULTIPLE = 4  # fbgemm's kernels need widths that are multiples of it
_STEPS = 60  # of the bisection


@dataclass(frozen=True)
class _Group:
    """Tables that get one width."""

    tables: tuple[PlanTable, ...]
    max_width: int

    @property
    def useful(self) -> float:
        """Floats that its largest table can use."""
        most = max(effective_rows(t.zipf or 0.0, t.num_embeddings) for t in self.tables)
        return 6.0 * most**0.25

    @property
    def lookups_per_row(self) -> float:
        """Of one sample."""
        lookups = sum(sum(table.lengths) for table in self.tables)
        return lookups / sum(table.num_embeddings for table in self.tables)


def suggest_widths(
    table_set: TableSet, *, budget_bytes: float, max_width: int | None = None, alpha: float = 0.3
) -> dict[str, int]:
    """The width of each table by name.

    Args:
        table_set: the tables.
        budget_bytes: rows and optimizer state of all tables, each counted once.
        max_width: of any table; None: no table gets wider than it is (of those that share a
            sequence, than the widest).
        alpha: exponent of the popularity; 0: memory is shared alike.

    Raises:
        PlanError: the tables exceed the budget at the least width; names the largest.
    """
    groups = [
        _Group(tables, max_width or max(table.embedding_dim for table in tables))
        for tables in _that_share_sequences(table_set)
    ]
    least = _widths(groups, 0.0, alpha)
    sizes = table_bytes(table_set, least)
    if sum(sizes.values()) > budget_bytes:
        largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:3]
        named = ", ".join(f"{name!r} {size_text(sizes[name])}" for name in largest)
        raise PlanError(
            f"at {_MULTIPLE} floats a row the tables take {size_text(sum(sizes.values()))}, more "
            f"than the budget of {size_text(budget_bytes)}; the largest: {named}; give a larger "
            "--budget-gib, or make these tables smaller"
        )
    most = max(group.max_width / group.lookups_per_row**alpha for group in groups)
    widths = _widths(groups, most, alpha)
    if sum(table_bytes(table_set, widths).values()) <= budget_bytes:
        return widths
    low, high = 0.0, most
    for _ in range(_STEPS):
        middle = (low + high) / 2
        fits = sum(table_bytes(table_set, _widths(groups, middle, alpha)).values())
        low, high = (middle, high) if fits <= budget_bytes else (low, middle)
    return _widths(groups, low, alpha)


def with_widths(table_set: TableSet, widths: Mapping[str, int]) -> TableSet:
    """The tables with other widths."""
    tables = tuple(
        table.model_copy(update={"embedding_dim": widths[table.name]}) for table in table_set.tables
    )
    return table_set.model_copy(update={"tables": tables})


def table_bytes(table_set: TableSet, widths: Mapping[str, int]) -> dict[str, float]:
    """Bytes of rows and optimizer state by table, each counted once, at these widths."""
    return {
        table.name: table.num_embeddings
        * row_bytes(table, table_set.optimizer_of(table), widths[table.name])
        for table in table_set.tables
    }


def _widths(groups: Sequence[_Group], factor: float, alpha: float) -> dict[str, int]:
    widths: dict[str, int] = {}
    for group in groups:
        allowed = factor * group.lookups_per_row**alpha
        width = _rounded(min(group.useful, allowed), group.max_width)
        widths |= {table.name: width for table in group.tables}
    return widths


def _rounded(width: float, max_width: int) -> int:
    nearest = _MULTIPLE * int(width / _MULTIPLE + 0.5)
    return max(min(nearest, max_width // _MULTIPLE * _MULTIPLE), _MULTIPLE)


def _that_share_sequences(table_set: TableSet) -> list[tuple[PlanTable, ...]]:
    """Tables grouped by the sequences that read them: `click.item`, `click.author` are one's."""
    groups: list[tuple[set[str], list[PlanTable]]] = []
    for table in table_set.tables:
        sequences = set()
        if table.pooling == "none":
            sequences = {f.name.rpartition(".")[0] for f in table.features} - {""}
        tables = [table]
        for group in [group for group in groups if group[0] & sequences]:
            groups.remove(group)
            sequences, tables = sequences | group[0], group[1] + tables
        groups.append((sequences, tables))
    return [tuple(tables) for _, tables in groups]
