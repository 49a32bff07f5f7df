"""Stage fit: vocabularies, boundaries and means from the rows before valid; then the schema."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.data.manifest import HashedTable
from infnet_dist.features.definition import KeyMapFiles
from infnet_dist.features.typed_json import typed
from infnet_dist.ingest.logs.context import IngestContext
from infnet_dist.ingest.logs.encoding.features import fit_dense, make_schema
from infnet_dist.ingest.logs.encoding.sketch import (
    colliding_share,
    estimate_distinct,
    smallest_hashes,
    unseen_share,
)
from infnet_dist.ingest.logs.encoding.vocabulary import MergeCounts
from infnet_dist.ingest.logs.reading.rules import Rules
from infnet_dist.ingest.logs.stages.deduplicate import Deduplicated, columns_of_table
from infnet_dist.ingest.logs.stages.shuffle_files import read_bucket
from infnet_dist.schema import Schema


def fit_vocabularies(
    context: IngestContext, rules: Rules, deduplicated: Deduplicated
) -> tuple[dict[str, int], dict[str, KeyMapFiles]]:
    """Number of ids and files of the key map, by table with a vocabulary."""
    config, tasks = context.config, {}
    context.transforms.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(config.table_names):
        if config.table(name).encoding != "vocabulary":
            continue
        columns = columns_of_table(config, name)
        kinds = {rules.kinds[column] for column in columns}
        tasks[name] = MergeCounts(
            table=config.table(name),
            number=number,
            num_tables=len(config.table_names),
            text=bool(kinds & {"text", "texts"}),
            inferred=tuple(column for column in columns if column in rules.inferred),
            counts=deduplicated.files("counts"),
            previous=context.last_vocabulary(name),
            pending_is_train=context.pending_is_train,
            out=context.staged / "vocabulary" / name / f"{context.generation_name}.parquet",
            transforms=context.transforms,
        )
        tasks[name].out.parent.mkdir(parents=True, exist_ok=True)
    outcomes = context.runner.run("fit", tasks)
    ids = {name: outcome["ids"] for name, outcome in zip(tasks, outcomes, strict=True)}
    key_maps = {
        name: typed(outcome["key_map"], KeyMapFiles)
        for name, outcome in zip(tasks, outcomes, strict=True)
    }
    return ids, key_maps


def fit_hashed_tables(context: IngestContext, deduplicated: Deduplicated) -> dict[str, HashedTable]:
    """Number of distinct values of the hashed tables, and how often they collide."""
    config, found = context.config, {}
    counts, names = deduplicated.files("counts"), config.table_names
    for number, name in enumerate(names):
        table = config.table(name)
        if table.encoding == "vocabulary":
            continue
        assert table.num_embeddings is not None
        met = read_bucket(counts, number, len(names))
        new, count, pending = (met[n].to_numpy() for n in ("value", "count", "pending"))
        files = context.state_files(f"sketch-{name}")
        known = np.concatenate([new[:0], *(pq.read_table(p)["hash"].to_numpy() for p in files)])
        sketch = smallest_hashes(np.concatenate([new, known]).view("u8"))
        if config.extendable:
            pq.write_table(pa.table({"hash": sketch}), context.state / f"sketch-{name}.parquet")
        values, rows = estimate_distinct(sketch), table.num_embeddings - 1
        found[name] = HashedTable(
            values=values,
            sharing=colliding_share(values, rows),
            indistinct=colliding_share(values, rows**table.num_hashes),
            unseen=unseen_share(new, count, pending, sketch, known),
        )
    return found


def fit_schema(
    context: IngestContext, deduplicated: Deduplicated, num_ids: Mapping[str, int]
) -> Schema:
    """The schema; boundaries and means of an existing set are kept."""
    config, outcomes = context.config, deduplicated.outcomes
    watched = sum(outcome.get("watched", 0) for outcome in outcomes)
    mean_ms = sum(outcome.get("watch_time_ms", 0) for outcome in outcomes) / max(watched, 1)
    if context.earlier is None:
        sample = pa.concat_tables([pq.read_table(path) for path in deduplicated.files("sample")])
        dense = fit_dense(config, sample)
    else:
        fitted = context.earlier.schema_
        dense = tuple(f for f in fitted.dense if f.name in config.dense)
        mean_ms = next((t.mean_ms for t in fitted.tasks if t.kind == "watch_time"), mean_ms)
    return make_schema(config, num_ids=num_ids, dense=dense, mean_watch_ms=mean_ms)
