"""Stage fit: what rows before valid teach: ids, boundaries of numbers, means; then the schema."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.data.manifest import HashedTable
from infnet_dist.ingest.logs.context import Workplace
from infnet_dist.ingest.logs.deduplicate import columns_of_table
from infnet_dist.ingest.logs.features import fit_dense, make_schema
from infnet_dist.ingest.logs.read import Settled
from infnet_dist.ingest.logs.rules import Rules
from infnet_dist.ingest.logs.shuffle_files import read_bucket
from infnet_dist.ingest.logs.sketch import (
    colliding_share,
    estimate_distinct,
    smallest_hashes,
    unseen_share,
)
from infnet_dist.ingest.logs.vocabulary import MergeCounts
from infnet_dist.schema import Schema


def fit_vocabularies(
    place: Workplace, rules: Rules, settled: Settled
) -> tuple[dict[str, int], dict[str, Path]]:
    """By table with a vocabulary: ids in use, and the compiled file."""
    config, tasks = place.config, {}
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
            counts=settled.files("counts"),
            previous=place.last_vocabulary(name),
            pending_is_train=place.pending_is_train,
            out=place.staged / "vocabulary" / name / f"{place.generation}.parquet",
            compiled=place.file("fit", f"{name}.vocabulary"),
        )
        tasks[name].out.parent.mkdir(parents=True, exist_ok=True)
    outcomes = place.stages.run("fit", tasks)
    ids = {name: outcome["ids"] for name, outcome in zip(tasks, outcomes, strict=True)}
    return ids, {name: task.compiled for name, task in tasks.items()}


def fit_hashed(place: Workplace, settled: Settled) -> dict[str, HashedTable]:
    """How many values the hashed tables have met, and how often they collide."""
    config, found = place.config, {}
    counts, names = settled.files("counts"), config.table_names
    for number, name in enumerate(names):
        table = config.table(name)
        if table.encoding == "vocabulary":
            continue
        assert table.num_embeddings is not None
        met = read_bucket(counts, number, len(names))
        new, count, pending = (met[n].to_numpy() for n in ("value", "count", "pending"))
        files = place.state_files(f"sketch-{name}")
        known = np.concatenate([new[:0], *(pq.read_table(p)["hash"].to_numpy() for p in files)])
        sketch = smallest_hashes(np.concatenate([new, known]).view("u8"))
        if config.extendable:
            pq.write_table(pa.table({"hash": sketch}), place.state / f"sketch-{name}.parquet")
        values, rows = estimate_distinct(sketch), table.num_embeddings - 1
        found[name] = HashedTable(
            values=values,
            sharing=colliding_share(values, rows),
            indistinct=colliding_share(values, rows**table.num_hashes),
            unseen=unseen_share(new, count, pending, sketch, known),
        )
    return found


def fit_schema(place: Workplace, settled: Settled, num_ids: Mapping[str, int]) -> Schema:
    """The schema; what rows that are written already were made with stays as it was."""
    config, outcomes = place.config, settled.outcomes
    watched = sum(outcome.get("watched", 0) for outcome in outcomes)
    mean_ms = sum(outcome.get("watch_time_ms", 0) for outcome in outcomes) / max(watched, 1)
    if place.earlier is None:
        sample = pa.concat_tables([pq.read_table(path) for path in settled.files("sample")])
        dense = fit_dense(config, sample)
    else:
        fitted = place.earlier.schema_
        dense = tuple(f for f in fitted.dense if f.name in config.dense)
        mean_ms = next((t.mean_ms for t in fitted.tasks if t.kind == "watch_time"), mean_ms)
    return make_schema(config, num_ids=num_ids, dense=dense, mean_watch_ms=mean_ms)
