"""Differences between the schema that a model was trained with and that of a training set.

Shapes of tensors don't reveal them: a new feature changes the shape of some parameter, two swapped
features change none. So checkpoints store the schema, and schemas are compared.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from infnet_dist.schema import DenseFeature, Schema, SequenceFeature, Table, Task

_MOST = 5  # changes listed in a message
_MOST_NAMES = 30


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
    return lines


def incompatibilities(trained: Schema, here: Schema) -> list[str]:
    """The differences because of which a model can't read the training set `here`."""
    ours, theirs = _features(trained, of_data=True), _features(here, of_data=True)
    lines = _list_changes("feature", ours, theirs, only_trained=True)
    read = {f.table for f in trained.table_features} - {f.name for f in trained.bucketised}
    tables = {name: facts for name, facts in _tables(trained).items() if name in read}
    lines += _list_changes("table", tables, _tables(here), only_trained=True)
    lines += _list_changes(
        "task", _tasks(trained, statistics=False), _tasks(here), only_trained=True
    )
    return lines


def adapt_schema(trained: Schema, here: Schema) -> AdaptedSchema:
    """The model's schema with the column names of `here`; there must be no `incompatibilities`.

    Order, boundaries, means and units of watch times stay those of the model, so that a dense value
    means the same whatever other values the training set holds.
    """
    columns = {f.name: f.column for f in here.categorical}
    columns |= {f.name: f.column for f in here.dense}
    lists, tasks = {s.name: s for s in here.sequences}, {t.name: t for t in here.tasks}
    schema = trained.model_copy(
        update={
            "categorical": tuple(
                f.model_copy(update={"column": columns[f.name]}) for f in trained.categorical
            ),
            "dense": tuple(f.model_copy(update={"column": columns[f.name]}) for f in trained.dense),
            "sequences": tuple(_sequence_on(s, lists[s.name]) for s in trained.sequences),
            "tasks": tuple(
                tasks[t.name].model_copy(update={"mean_ms": t.mean_ms}) for t in trained.tasks
            ),
            "group_column": here.group_column,
            "time_column": here.time_column,
        }
    )
    return AdaptedSchema(schema, schema_differences(schema, here))


def summary_of(lines: Iterable[str]) -> str:
    """The first differences in one line, and the number of the others."""
    found = list(lines)
    more = f"; and {len(found) - _MOST:,} more" if len(found) > _MOST else ""
    return "; ".join(found[:_MOST]) + more


def feature_names(schema: Schema) -> str:
    """The setting `data.features=[...]` that selects the schema's features."""
    names = list(_features(schema))
    return f"data.features=[{', '.join(names)}]" if len(names) <= _MOST_NAMES else "data.features"


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
