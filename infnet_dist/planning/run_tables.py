"""The tables of a run, in the form that the planner takes."""

from collections.abc import Mapping

from pydantic import ValidationError

from infnet_dist.config.run import Config
from infnet_dist.data.statistics import TableUsage
from infnet_dist.errors import PlanError
from infnet_dist.io.parsing import first_error
from infnet_dist.lookups import Lookups, TableLookups
from infnet_dist.planning.checks import check_sharding_types
from infnet_dist.planning.costs.popularity import fit_zipf
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.schema import Schema, Table, sequence_keys

_MIN_LENGTH = 0.01  # mean length of a sequence that is always empty


def tables_of_run(config: Config, schema: Schema, usage: TableUsage | None = None) -> TableSet:
    """The tables that a run trains.

    Args:
        config: batch size, settings of the tables.
        schema: the selected features.
        usage: lookups of the training set; None: bags and sequences count as full, skew is
            unknown.

    Raises:
        PlanError: a table or the batch exceeds the limits of plans, or a table can't have a
            sharding type that it asks for; names them.
    """
    lookups = Lookups(schema, config)
    lengths = _mean_lengths(lookups, usage)
    try:
        table_set = TableSet(
            batch_size=config.data.batch_size,
            optimizer=config.sparse_optimizer.name,
            background_save=config.checkpoint.background,
            tables=tuple(_table(table, config, usage, lengths) for table in lookups.tables),
        )
    except ValidationError as error:
        raise PlanError(f"the run's tables can't be planned: {first_error(error)}") from None
    check_sharding_types(table_set)
    return table_set


def _mean_lengths(lookups: Lookups, usage: TableUsage | None) -> dict[str, float]:
    """Ids per row of a batch, by key."""
    if usage is not None:
        return {one.feature: max(usage.mean_lengths[one.feature], _MIN_LENGTH) for one in lookups}
    lengths = {one.feature: 1.0 for one in lookups}
    lengths |= {bag.name: float(bag.max_length) for bag in lookups.schema.bags}
    for sequence in lookups.schema.sequences:
        keys = sequence_keys(sequence)
        lengths |= dict.fromkeys(keys, float(sequence.max_length))
    return lengths


def _table(
    table: TableLookups, config: Config, usage: TableUsage | None, lengths: Mapping[str, float]
) -> PlanTable:
    settings = table.settings
    # A table that isn't trained has no optimizer state.
    optimizer = settings.optimizer if settings.trainable else "sgd"
    return PlanTable(
        name=table.name,
        num_embeddings=table.table.num_embeddings,
        embedding_dim=table.kernel_width,
        data_type=settings.data_type,
        pooling="none" if table.home == "sequence" else "sum",
        weighted=table.home == "weighted",
        optimizer=None if optimizer == config.sparse_optimizer.name else optimizer,
        zipf=_zipf(table.table, usage),
        features=tuple(PlanFeature(name=key, mean_length=lengths[key]) for key in table.keys),
        sharding_types=settings.sharding_types,
        min_column_width=4,
    )


def _zipf(table: Table, usage: TableUsage | None) -> float | None:
    if usage is None:
        return None
    return fit_zipf(
        num_embeddings=table.num_embeddings,
        lookups=usage.lookups[table.name],
        distinct=usage.distinct[table.name],
    )
