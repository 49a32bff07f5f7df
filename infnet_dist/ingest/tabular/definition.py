"""The transforms of a tabular set as data."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from infnet_dist.config.ingest import TabularIngest
from infnet_dist.data.transforms import model_inputs
from infnet_dist.features.definition import (
    Definition,
    IdColumn,
    IdsColumn,
    IdTable,
    NumberColumn,
    RawType,
    SetColumn,
    VectorColumn,
    WeightsColumn,
)
from infnet_dist.features.storage import save_key_map
from infnet_dist.ingest.convert.kinds import RAW_TYPES, Kind
from infnet_dist.ingest.tabular.columns import weights_name
from infnet_dist.ingest.tabular.encoders import Bag, Categories, Encoder
from infnet_dist.schema import Schema


def make_definition(
    config: TabularIngest,
    schema: Schema,
    encoders: Sequence[Encoder],
    kinds: Mapping[str, Kind],
    folder: Path,
) -> Definition:
    """The transforms; vocabularies are written to `folder`.

    Args:
        config: columns and their roles.
        schema: the schema of the training set.
        encoders: the fitted encoders.
        kinds: kind by column of the files.
        folder: folder of the key maps.
    """
    tables: dict[str, IdTable] = {}
    columns: dict[str, SetColumn] = {}
    for number, encoder in enumerate(encoders):
        name = encoder.name
        if isinstance(encoder, Categories | Bag):
            vocabulary = encoder.vocabulary
            files = save_key_map(folder, number, vocabulary.key_map)
            tables[name] = IdTable("vocabulary", vocabulary.num_embeddings, files)
        if isinstance(encoder, Categories):
            columns[name] = IdColumn(name, name)
        elif isinstance(encoder, Bag):
            columns[name] = IdsColumn(name, name, encoder.column.max_length)
        else:
            columns[name] = NumberColumn(name, not_finite="null")
    for name, weights in config.weight_columns.items():
        cut = config.bags[name].max_length
        columns[weights_name(name)] = WeightsColumn(weights, name, cut)
    for name, vector in config.vectors.items():
        columns[name] = VectorColumn(name, vector.dim)
    used = {*(encoder.name for encoder in encoders), *config.vectors}
    used |= {*config.weight_columns.values()}
    raw: dict[str, RawType] = {n: RAW_TYPES[kind] for n, kind in kinds.items() if n in used}
    return Definition(
        generation=1,
        raw=raw,
        tables=tables,
        columns=columns,
        behaviours={},
        inputs=model_inputs(schema),
    )
