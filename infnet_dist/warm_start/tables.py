"""The tables of a new run and of a checkpoint: whether an id means the same row, and what is taken.

A vocabulary only gains ids, after all earlier ones, so its table grows by rows at the end. A hash
modulo the number of rows gives all ids another row once that number changes.
"""

from collections.abc import Container, Mapping

from infnet_dist.checkpoint.saved_tensors import SavedTensor
from infnet_dist.lookups import Lookups, TableLookups
from infnet_dist.schema import Schema
from infnet_dist.warm_start.match import Match, Wanted, new, refused, status_of

_EXCLUDE = "checkpoint.init_from.exclude"
Saved = Mapping[str, SavedTensor]


def weight_of(table: str) -> str:
    """Name of the tensor with a table's rows."""
    return f"model.tables.{table}.weight"


def match_table(
    wanted: Wanted,
    table: TableLookups,
    *,
    lookups: tuple[Lookups, Lookups],
    saved: Saved,
    hashed: Container[str],
) -> Match:
    """What becomes of the rows of a table that isn't excluded.

    Args:
        wanted: its tensor.
        table: of the new run.
        lookups: of the checkpoint and of the new run.
        saved: the checkpoint's tensors.
        hashed: names of tables whose ids ingest or the reader hashes.
    """
    name, tensor = table.name, weight_of(table.name)
    before = next((old for old in lookups[0].tables if old.name == name), None)
    if before is None or tensor not in saved:
        return new(tensor, wanted, "the checkpoint has no such table")
    found = saved[tensor]
    fresh = f"or start it fresh: {_EXCLUDE}=[{name}]"
    if found.shape[1] != wanted.shape[1]:
        return refused(
            tensor,
            wanted,
            f"embedding_dim is {wanted.shape[1]}, was {found.shape[1]}; set "
            f"tables.overrides.{name}.embedding_dim={found.shape[1]}, {fresh}",
        )
    kinds = [_ids_of(name, one.schema, hashed) for one in lookups]
    rows, rows_now = found.shape[0], wanted.shape[0]
    if kinds[0] != kinds[1]:
        return refused(
            tensor, wanted, f"its ids are {kinds[1][0]}, were {kinds[0][0]} {_FIX}, {fresh}"
        )
    if rows != rows_now and (not kinds[1][-1] or rows > rows_now):
        why = "a vocabulary never shrinks" if kinds[1][-1] else f"its ids are {kinds[1][0]}"
        return refused(
            tensor,
            wanted,
            f"it has {rows_now:,} rows, had {rows:,}, and {why}, so each id would mean another "
            f"row; set its num_embeddings back to {rows:,}, {fresh}",
        )
    status, detail = status_of(wanted, found, grown=rows < rows_now)
    if rows < rows_now:
        growth = f"rows {rows:,} to {rows_now - 1:,} are new"
        detail = f"{growth}; {detail}" if detail else growth
    return Match(tensor, wanted.shape, status, detail, source=tensor, rows=(rows, rows_now))


_FIX = "(or other boundaries or features); use the training set and settings of its training"


def _ids_of(table: str, schema: Schema, hashed: Container[str]) -> tuple[str, object, bool]:
    """How the ids of a table are made, what they depend on, and whether rows may be added."""
    for feature in schema.bucketised:
        if feature.name == table:
            return "buckets", feature.boundaries, False
    for cross in schema.crosses:
        if cross.table == table:
            return "hashed combinations", cross.features, False
    if schema.table(table).raw:
        return "hashed by the reader", None, False
    if table in hashed:
        return "hashed by ingest", None, False
    return "a vocabulary's", None, True


def match_state(
    name: str, wanted: Wanted, rows: Match, *, saved: Saved, optimizers: tuple[str, str] | None
) -> Match:
    """What becomes of a state of a table's rows.

    Args:
        name: of the state.
        wanted: its tensor.
        rows: what becomes of the rows.
        saved: the checkpoint's tensors.
        optimizers: of the table, in the checkpoint and now; None: no state is to be taken.
    """
    if rows.rows is None:
        return new(name, wanted, "as its rows")
    if optimizers is None:
        return new(name, wanted, "optimizer_state is false")
    if optimizers[0] != optimizers[1] or name not in saved:
        return new(name, wanted, f"the optimizer is {optimizers[1]}, was {optimizers[0]}")
    found, (before, now) = saved[name], rows.rows
    if wanted.shape[1:] != found.shape[1:]:
        return new(name, wanted, f"its shape was {list(found.shape)}")
    blocks = found.shape[0] // before, wanted.shape[0] // now
    if blocks[0] != blocks[1]:
        detail = f"of {blocks[1]} column shards, was of {blocks[0]}: their mean by columns"
        return Match(name, wanted.shape, "converted", detail, name, rows.rows, blocks=blocks)
    status, detail = status_of(wanted, found, grown=before < now)
    return Match(name, wanted.shape, status, detail, name, rows.rows, blocks=blocks)
