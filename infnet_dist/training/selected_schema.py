"""The schema of a run: what it selects of a training set, and the crosses that it adds."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from infnet_dist.config.run import Config, CrossConfig
from infnet_dist.data.schema_changes import adapt_schema
from infnet_dist.errors import ConfigError, unknown_name
from infnet_dist.ingest.column_names import is_free
from infnet_dist.schema import CrossFeature, Schema, Table


def selected_schema(config: Config, whole: Schema, trained: Schema | None = None) -> Schema:
    """The features and tasks that a run reads.

    Args:
        config: the run.
        whole: the schema of the training set.
        trained: the schema of a trained model that reads the set; replaces the features and crosses
            that `config` selects. Only the names of columns come from the set.

    Raises:
        DataError: unknown names of features or tasks in data.features or data.tasks.
        ConfigError: unknown names elsewhere, or a cross that can't be made.
    """
    made = config.data.crosses if trained is None else {}
    _check_crosses(made, whole)
    of_model = trained.tables if trained is not None else ()
    tables = [*(table.name for table in (*whole.tables, *of_model)), *made]
    _check_names("tables.overrides", "table", config.tables.overrides, tables)
    tasks = [task.name for task in whole.tasks]
    _check_names("training.task_weights", "task", config.training.task_weights, tasks)
    best = [config.checkpoint.keep_best.split("/")[2]] if config.checkpoint.keep_best else []
    _check_names("checkpoint.keep_best", "task", best, tasks)
    if trained is not None:
        return adapt_schema(trained, whole).schema
    for name in sorted(made.keys() & set(config.data.features or ())):
        raise ConfigError(
            f"data.features: {name!r} is in data.crosses, which are always read; leave it out"
        )
    return _with_crosses(whole.select(config.data.features, config.data.tasks), made)


def _check_names(key: str, kind: str, used: Iterable[str], known: Iterable[str]) -> None:
    """Check that each name is known; names of tables may be patterns."""
    names = list(dict.fromkeys(known))
    for name in used:
        matched = any(fnmatchcase(one, name) for one in names) and kind == "table"
        if name not in names and not matched:
            raise ConfigError(f"{key}: {unknown_name(kind, name, names)}")


def _check_crosses(made: Mapping[str, CrossConfig], whole: Schema) -> None:
    """Check the names of crosses, and of the features that they combine."""
    single = [f.name for f in whole.categorical] + [f.name for f in whole.bucketised]
    taken = {t.name for t in whole.tables} | set(whole.feature_names)
    for name, cross in made.items():
        key = f"data.crosses.{name}"
        if name in taken:
            raise ConfigError(
                f"{key}: the training set has a feature or table of this name; rename the cross"
            )
        if not is_free(name):
            raise ConfigError(f"{key}: the name is reserved or has a dot; rename the cross")
        for feature in cross.features:
            if feature not in single:
                message = unknown_name("categorical or bucketised feature", feature, single)
                raise ConfigError(f"{key}.features: {message}")
        if len(set(cross.features)) < len(cross.features):
            raise ConfigError(
                f"{key}.features: {', '.join(cross.features)} has a feature twice; remove one"
            )


def _with_crosses(schema: Schema, made: Mapping[str, CrossConfig]) -> Schema:
    """The schema with the crosses, each with a table of its own, after all others."""
    selected = {field.key for field in schema.fields}
    for name, cross in made.items():
        for feature in cross.features:
            if feature not in selected:
                raise ConfigError(
                    f"data.crosses.{name}.features: {feature!r} isn't selected; add it to "
                    "data.features, or remove the cross"
                )
    crosses = [CrossFeature(name=n, features=cross.features, table=n) for n, cross in made.items()]
    tables = [Table(name=n, num_embeddings=cross.num_embeddings) for n, cross in made.items()]
    return schema.model_copy(
        update={
            "crosses": (*schema.crosses, *crosses),
            "tables": (*schema.tables, *tables),
        }
    )
