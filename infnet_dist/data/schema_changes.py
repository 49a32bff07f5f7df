"""Differences between the schema that a model was trained with and that of a training set.

Shapes of tensors don't reveal them: a new feature changes the shape of some parameter, two swapped
features change none. So checkpoints store the schema, and schemas are compared.
"""

from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

from infnet_dist.data.manifest import Manifest
from infnet_dist.schema import BagFeature, DenseFeature, Schema, SequenceFeature, Table, Task

_MOST = 5  # changes listed in a message
_MOST_NAMES = 30
_FEATURES = "data.features"


class AdaptedSchema(NamedTuple):
    """The schema of a model, adapted to the columns of another training set.

    Attributes:
        schema: the schema of the model, with the training set's column names.
        notes: other differences of the training set, which are ignored.
    """

    schema: Schema
    notes: list[str]


def schema_differences(trained: Schema, here: Schema, *, statistics: bool = True) -> list[str]:
    """One line per difference other than column names; `trained` is the older schema.

    `statistics=False` ignores boundaries, means and units of watch times.
    """
    features = [_features(schema, statistics=statistics) for schema in (trained, here)]
    tasks = [_tasks(schema, statistics=statistics) for schema in (trained, here)]
    lines = _list_changes("feature", *features)
    lines += _list_changes("table", _tables(trained), _tables(here))
    lines += _list_changes("task", *tasks)
    weights = [schema.weight_column is not None for schema in (trained, here)]
    if weights[0] != weights[1]:
        lines.append(f"rows: weights {weights[0]}, now {weights[1]}")
    return lines


def grown_tables(trained: Schema, content_hash: str, manifest: Manifest) -> frozenset[str]:
    """Tables whose vocabulary gained ids since a model was trained; all earlier ids are the same.

    Args:
        trained: the schema of the model.
        content_hash: of the training set then.
        manifest: of the training set now.
    """
    if manifest.ingested is None or not manifest.grew_from(content_hash):
        return frozenset()
    rows = {table.name: table.num_embeddings for table in manifest.schema_.tables}
    fixed = {f.name for f in trained.bucketised} | {cross.table for cross in trained.crosses}
    fixed |= manifest.ingested.hashed.keys()
    return frozenset(
        table.name
        for table in trained.tables
        if not table.raw
        and table.name not in fixed
        and rows.get(table.name, 0) > table.num_embeddings
    )


def incompatibilities(
    trained: Schema, here: Schema, grown: Container[str] = frozenset()
) -> list[str]:
    """The differences because of which a model can't read the training set `here`.

    Crosses are the model's own: they are made from other features.

    Args:
        trained: the schema of the model.
        here: of the training set.
        grown: tables that may have gained rows (`grown_tables`).
    """
    ours, theirs = (_features(_without_crosses(schema), of_data=True) for schema in (trained, here))
    lines = _list_changes("feature", ours, theirs, only_trained=True)
    read = {f.table for f in _without_crosses(trained).table_features}
    read -= {f.name for f in trained.bucketised}
    tables = {name: facts for name, facts in _tables(trained).items() if name in read}
    known = {n: tables[n] if n in grown and n in tables else f for n, f in _tables(here).items()}
    lines += _list_changes("table", tables, known, only_trained=True)
    lines += _list_changes(
        "task", _tasks(trained, statistics=False), _tasks(here), only_trained=True
    )
    return lines


def missing_inputs(trained: Schema, here: Schema, grown: Container[str] = frozenset()) -> list[str]:
    """The differences because of which a batch of `here` isn't an input of a model.

    Unlike in `incompatibilities` the batch is made already: with these crosses, lengths of lists
    and statistics. It may have other features, and another order.

    Args:
        trained: the schema of the model.
        here: the selected features of the run whose batch it is.
        grown: tables that may have gained rows (`grown_tables`).
    """
    lines = _list_changes("feature", _features(trained), _features(here), only_trained=True)
    tables, known = _tables(trained), dict(_tables(here))
    known |= {name: tables[name] for name in known.keys() & tables.keys() if name in grown}
    lines += _list_changes("table", tables, known, only_trained=True)
    for part in ("unweighted_keys", "weighted_keys"):  # where a feature is looked up
        absent = set(getattr(trained, part)) - set(getattr(here, part))
        lines += [f"{key!r} isn't among the {part}" for key in sorted(absent) if not lines]
    return lines


def adapt_schema(trained: Schema, here: Schema) -> AdaptedSchema:
    """The model's schema with the column names of `here`; there must be no `incompatibilities`.

    Order, boundaries, means and units of watch times stay those of the model, so that a dense value
    means the same whatever other values the training set holds. So do crosses. Weights of rows are
    those of the set: they are part of no model. Ids that its vocabularies have gained are unknown.
    """
    num_ids = {table.name: table.num_embeddings for table in here.tables}
    own = {f.name for f in trained.bucketised} | {cross.table for cross in trained.crosses}
    parts = (here.categorical, here.dense, here.vectors, here.bags)
    columns = {f.name: f.column for part in parts for f in part}
    bags = {bag.name: bag for bag in here.bags}
    lists, tasks = {s.name: s for s in here.sequences}, {t.name: t for t in here.tasks}
    schema = trained.model_copy(
        update={
            "tables": tuple(
                table
                if table.raw or table.name in own
                else _with_ids(table, num_ids.get(table.name, 0))
                for table in trained.tables
            ),
            **{
                part: tuple(
                    f.model_copy(update={"column": columns[f.name]}) for f in getattr(trained, part)
                )
                for part in ("categorical", "dense", "vectors")
            },
            "bags": tuple(_bag_on(bag, bags[bag.name]) for bag in trained.bags),
            "sequences": tuple(_sequence_on(s, lists[s.name]) for s in trained.sequences),
            "tasks": tuple(
                tasks[t.name].model_copy(update={"mean_ms": t.mean_ms}) for t in trained.tasks
            ),
            "group_column": here.group_column,
            "time_column": here.time_column,
            "weight_column": here.weight_column,
        }
    )
    compared = (_without_crosses(schema), _without_crosses(here))
    return AdaptedSchema(schema, schema_differences(*compared))


def summary_of(lines: Iterable[str]) -> str:
    """The first differences in one line, and the number of the others."""
    found = list(lines)
    more = f"; and {len(found) - _MOST:,} more" if len(found) > _MOST else ""
    return "; ".join(found[:_MOST]) + more


def feature_names(schema: Schema) -> str:
    """The settings `data.features=[...]` and data.crosses that select the schema's features."""
    names = list(_features(_without_crosses(schema)))
    features = f"data.features=[{', '.join(names)}]" if len(names) <= _MOST_NAMES else _FEATURES
    made = ", ".join(cross.name for cross in schema.crosses)
    return f"{features}, data.crosses: {made}" if made else features


def _without_crosses(schema: Schema) -> Schema:
    """The schema without crosses and their tables."""
    made = {cross.table for cross in schema.crosses}
    tables = tuple(table for table in schema.tables if table.name not in made)
    return schema.model_copy(update={"crosses": (), "tables": tables})


def _with_ids(table: Table, num_ids: int) -> Table:
    if num_ids <= table.num_embeddings:
        return table
    return table.model_copy(update={"num_ids": num_ids})


def _bag_on(trained: BagFeature, here: BagFeature) -> BagFeature:
    weights = here.weight_column if trained.weight_column else None
    return trained.model_copy(update={"column": here.column, "weight_column": weights})


def _sequence_on(trained: SequenceFeature, here: SequenceFeature) -> SequenceFeature:
    columns = {a.name: a.column for a in here.attributes}
    attributes = tuple(a.model_copy(update={"column": columns[a.name]}) for a in trained.attributes)
    gaps = here.time_gap_column if trained.time_gap_column else None
    return trained.model_copy(update={"attributes": attributes, "time_gap_column": gaps})


Facts = Mapping[str, Mapping[str, Any]]  # by name, in order


def _features(schema: Schema, *, of_data: bool = False, statistics: bool = True) -> Facts:
    """Properties of each feature; `of_data`: only those that the training set must provide."""
    found: dict[str, dict[str, Any]] = {}
    for feature in schema.categorical:
        found[feature.name] = {"kind": "categorical", "table": feature.table}
    for cross in schema.crosses:
        names = " x ".join(cross.features)
        found[cross.name] = {"kind": "cross", "features": names, "table": cross.table}
    for bag in schema.bags:
        found[bag.name] = {"kind": "bag", "table": bag.table}
        if not of_data or bag.weight_column:
            found[bag.name]["weights"] = bag.weight_column is not None
        if not of_data:
            found[bag.name] |= {"pooling": bag.pooling, "max_length": bag.max_length}
    for vector in schema.vectors:
        found[vector.name] = {"kind": "vector", "dim": vector.dim}
    for sequence in schema.sequences:
        tables = {f"attribute {a.name!r}": a.table for a in sequence.attributes}
        found[sequence.name] = {"kind": "sequence", **tables}
        if not of_data or sequence.time_gap_column:
            found[sequence.name]["time gaps"] = sequence.time_gap_column is not None
        if not of_data:
            names = ", ".join(a.name for a in sequence.attributes)
            found[sequence.name] |= {"attributes": names, "max_length": sequence.max_length}
    for dense in schema.dense:
        found[dense.name] = {"kind": "dense"}
        if not of_data:
            found[dense.name]["in buckets"] = dense.boundaries is not None
        if statistics and not of_data:
            found[dense.name] |= _statistics(dense)
    return found


def _statistics(dense: DenseFeature) -> dict[str, Any]:
    if dense.boundaries is None:
        return {"boundaries": None, "mean": dense.mean, "std": dense.std}
    return {"boundaries": dense.boundaries}


def _tables(schema: Schema) -> Facts:
    return {table.name: _table(table) for table in schema.tables}


def _table(table: Table) -> dict[str, Any]:
    return {"rows": table.num_embeddings, "raw": table.raw}


def _tasks(schema: Schema, *, statistics: bool = True) -> Facts:
    return {task.name: _task(task, statistics) for task in schema.tasks}


def _task(task: Task, statistics: bool) -> dict[str, Any]:
    return {"kind": task.kind} | ({"mean_ms": task.mean_ms} if statistics else {})


def _list_changes(
    kind: str, trained: Facts, here: Facts, *, only_trained: bool = False
) -> list[str]:
    """One line per entry that is missing, new, moved or changed."""
    lines = [f"{kind} {name!r} is missing" for name in trained if name not in here]
    if not only_trained:
        lines += [f"{kind} {name!r} is new" for name in here if name not in trained]
        common = [name for name in trained if name in here]
        order = [name for name in here if name in trained]
        if common != order:
            moved = [a for a, b in zip(common, order, strict=True) if a != b]
            lines.append(f"{kind}s {', '.join(map(repr, moved[:_MOST]))} are in another order")
    for name, before in trained.items():
        after = here.get(name, before)
        for key in before if only_trained else {**before, **after}:
            if before.get(key) != after.get(key):
                one, other = _words(before.get(key), after.get(key))
                lines.append(f"{kind} {name!r}: {key} {one}, now {other}")
    return lines


def _words(one: Any, other: Any) -> tuple[str, str]:
    """Two different values as text; for boundaries their numbers, or the first that differ."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        if len(one) != len(other):
            return f"{len(one):,} values", f"{len(other):,} values"
        one, other = next((a, b) for a, b in zip(one, other, strict=True) if a != b)
    return _word(one), _word(other)


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value):,} values"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.9g}"
