"""The transforms of logs as data: from the config, the types of columns and the schema."""

from collections.abc import Iterator, Mapping

from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.transforms import model_inputs
from infnet_dist.features.definition import (
    Behaviour,
    Definition,
    HistoryActions,
    HistoryGaps,
    HistoryIds,
    IdColumn,
    IdsColumn,
    IdTable,
    KeyMapFiles,
    NumberColumn,
    RawType,
    SetColumn,
    TimeColumn,
    VectorColumn,
    WeightsColumn,
)
from infnet_dist.ingest.convert.kinds import RAW_TYPES, Kind
from infnet_dist.ingest.logs.encoding.features import id_features, item_features, weights_name
from infnet_dist.ingest.logs.splits import Calendar
from infnet_dist.schema import Schema


def make_definition(
    config: LogsIngest,
    schema: Schema,
    *,
    kinds: Mapping[str, Kind],
    key_maps: Mapping[str, KeyMapFiles],
    generation: int,
) -> Definition:
    """The transforms.

    Args:
        config: columns and their roles.
        schema: the schema of the training set.
        kinds: kind by column of the cleaned logs.
        key_maps: by table with a vocabulary.
        generation: number of the ingest.
    """
    calendar = Calendar.of(config)
    counters: dict[str, RawType] = dict.fromkeys(config.counters, "float")
    return Definition(
        generation=generation,
        raw={name: RAW_TYPES[kind] for name, kind in kinds.items()} | counters,
        tables=_tables(config, schema, key_maps),
        columns=dict(_columns(config, schema)),
        behaviours={n: Behaviour(b.length, b.where) for n, b in config.behaviours.items()},
        inputs=model_inputs(schema),
        time=TimeColumn(config.time.column, config.time.unit, calendar.daily, calendar.offset_ms),
    )


def _tables(
    config: LogsIngest, schema: Schema, key_maps: Mapping[str, KeyMapFiles]
) -> dict[str, IdTable]:
    tables = {}
    for name in config.table_names:
        encoding, found = config.table(name).encoding, schema.table(name)
        num_ids = 0 if encoding == "raw" else found.num_embeddings
        tables[name] = IdTable(encoding, num_ids, key_maps.get(name))
    return tables


def _columns(config: LogsIngest, schema: Schema) -> Iterator[tuple[str, SetColumn]]:
    for column, table in config.ids.items():
        for f in id_features(config, column, table):
            yield f.name, IdColumn(f.column, f.table, f.seed)
    for name, listed in config.lists.items():
        for f in id_features(config, name, listed.table):
            yield f.name, IdsColumn(name, f.table, listed.max_length, f.seed)
        if listed.weights is not None:
            yield weights_name(name), WeightsColumn(listed.weights, name, listed.max_length)
    for name, vector in config.vectors.items():
        yield name, VectorColumn(name, vector.dim)
    for feature in schema.dense:
        if feature.name in config.counters:
            yield feature.name, NumberColumn(feature.name, null="error")
        elif feature.boundaries is not None:
            yield feature.name, NumberColumn(feature.name)
        else:
            yield feature.name, NumberColumn(feature.name, null="fill", fill=feature.mean)
    for name, behaviour in config.behaviours.items():
        for f in item_features(config, behaviour):
            yield f"{name}_{f.name}", HistoryIds(name, f.column, f.table, f.seed)
        if behaviour.actions:
            yield f"{name}_actions", HistoryActions(name, behaviour.actions)
        if behaviour.time_gaps:
            yield f"{name}_gap_s", HistoryGaps(name)
