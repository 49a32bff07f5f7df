"""The tables of a run, in the form that the planner takes."""

from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from infnet_dist.config.run import Config
from infnet_dist.data.statistics import TableUsage
from infnet_dist.errors import PlanError
from infnet_dist.io.parsing import first_error
from infnet_dist.lookups import Lookups
from infnet_dist.planning.costs.popularity import fit_zipf
from infnet_dist.planning.tables import PlanFeature, PlanTable, TableSet
from infnet_dist.schema import Schema, Table, sequence_key

# Column-wise is excluded unless a table allows it: under row-wise Adagrad each column shard has its
# own state, so results differ from those of an unsharded table, and the state can't be resharded to
# another type.
DEFAULT_SHARDING_TYPES = ("table_wise", "row_wise")
_MIN_LENGTH = 0.01  # mean length of a sequence that is always empty


def tables_of_run(config: Config, schema: Schema, usage: TableUsage | None = None) -> TableSet:
    """The tables that a run trains.

    Args:
        config: batch size, width and type of the rows, allowed sharding types.
        schema: the selected features.
        usage: lookups of the training set; None: sequences count as full, skew is unknown.

    Raises:
        PlanError: a table or the batch exceeds the limits of plans; names it.
    """
    lengths = dict.fromkeys((feature.key for feature in schema.fields), 1.0)
    for sequence in schema.sequences:
        keys = [sequence_key(sequence, attribute) for attribute in sequence.attributes]
        lengths |= dict.fromkeys(keys, float(sequence.max_length))
    if usage is not None:
        lengths |= {key: max(usage.mean_lengths[key], _MIN_LENGTH) for key in lengths}
    try:
        tables = tuple(_tables(config, schema, usage, lengths))
        return TableSet(
            batch_size=config.data.batch_size,
            optimizer="rowwise_adagrad",
            background_save=config.checkpoint.background,
            tables=tables,
        )
    except ValidationError as error:
        raise PlanError(f"the run's tables can't be planned: {first_error(error)}") from None


def _tables(
    config: Config, schema: Schema, usage: TableUsage | None, lengths: Mapping[str, float]
) -> Iterator[PlanTable]:
    for table in Lookups(schema, config).tables:
        pooled = table.home != "sequence"
        yield PlanTable(
            name=table.name,
            num_embeddings=table.table.num_embeddings,
            embedding_dim=table.kernel_width,
            data_type=table.settings.data_type,
            pooling="sum" if pooled else "none",
            zipf=_zipf(table.table, usage),
            features=tuple(PlanFeature(name=k, mean_length=lengths[k]) for k in table.keys),
            sharding_types=table.settings.sharding_types or DEFAULT_SHARDING_TYPES,
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
