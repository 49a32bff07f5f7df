"""Small training sets and run configs for tests."""

from pathlib import Path
from typing import Any

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.config.run import Config, parse_config
from infnet_dist.ingest.synthetic import make_training_set


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
