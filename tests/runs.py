"""Small training sets and run configs for tests."""

import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.config.run import Config, parse_config
from infnet_dist.data.manifest import read_manifest
from infnet_dist.distributed.context import WorkerContext
from infnet_dist.ingest.synthetic import make_training_set
from infnet_dist.training.step import Step
from infnet_dist.training.trainer import train
from tests.hostile_parquet import forget_fingerprints


def make_tiny_set(folder: Path, **changes: Any) -> Path:
    """A synthetic training set of a few thousand rows; returns its folder."""
    settings: dict[str, Any] = {
        "source": "synthetic",
        "num_rows": 3_000,
        "num_users": 60,
        "num_items": 80,
        "num_authors": 12,
        "history_length": 6,
        "row_group_rows": 500,
        "rows_per_part": 900,
    }
    make_training_set(SyntheticIngest(**(settings | changes)), folder)
    return folder


def make_config(data: Path, runs: Path, /, **changes: Any) -> Config:
    """A config for a tiny run; `changes` are sections, merged key by key into the defaults."""
    raw: dict[str, Any] = {
        "run": {"name": "test", "folder": str(runs)},
        "data": {"path": str(data), "batch_size": 32, "shuffle_rows": 1_000},
        "tables": {
            "embedding_dim": 8,
            "overrides": {
                "user": {"sharding_types": ["row_wise"]},
                "item": {"sharding_types": ["row_wise"]},
                "author": {"sharding_types": ["table_wise"]},
            },
        },
        "model": {"name": "infnet", "token_dim": 8, "num_blocks": 2, "num_hubs": 4},
        "tracking": {"wandb": "disabled"},
    }
    for section, values in changes.items():
        raw[section] = raw.get(section, {}) | values
    return parse_config(raw)


def spoil(folder: Path, value: float) -> None:
    """Make one number of the train split's second part infinite, or the like."""
    path = folder / "train" / "part-00001.parquet"
    table = pq.read_table(path)
    name = read_manifest(folder).schema_.standardised[0].column
    column = table[name].to_numpy().copy()
    column[123] = value
    place = table.schema.get_field_index(name)
    table = table.set_column(place, table.schema.field(place), pa.array(column))
    pq.write_table(table, path, row_group_size=500)
    forget_fingerprints(folder)


def stop_one_rank_at_step(
    context: WorkerContext, *, config: Config, run_folder: Path, step: int
) -> dict:
    """Train; the last rank gets a signal as that step begins (from 0): the next one is the last."""
    original = Step.zero_grad

    def signalled(step_parts):
        if step_parts._next().step == step and context.rank == context.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(step_parts)

    Step.zero_grad = signalled
    return train(context, config, run_folder=run_folder)
