"""The optimizers of a checkpoint, and their comparison with those of a run."""

from collections.abc import Iterator

from infnet_dist.checkpoint.inspection import read_plain
from infnet_dist.checkpoint.manifest import CheckpointManifest
from infnet_dist.config.optimizers import SgdConfig
from infnet_dist.config.run import Config, config_of_text
from infnet_dist.errors import CheckpointError, ConfigError
from infnet_dist.io.filesystem import Folder
from infnet_dist.lookups import Lookups

_CONFIG = "config.yaml"


def read_config(folder: Folder, manifest: CheckpointManifest) -> Config | None:
    """The config that was saved with it; None without one.

    Raises:
        DamagedError: its checksum is wrong.
        CheckpointError: it isn't a config.
        OSError: it can't be read.
    """
    content = read_plain(folder, manifest, _CONFIG)
    if content is None:
        return None
    try:
        return config_of_text(content.decode(), source=str(folder / _CONFIG))
    except (ConfigError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{_CONFIG} in {folder} isn't a config: {error}") from None


def check_same_optimizers(folder: Folder, saved: Config, lookups: Lookups) -> None:
    """Check that a run has the optimizers of a checkpoint, whose states no other one can load.

    Learning rates and other numbers may differ. A table that isn't trained has no state, as under
    SGD.

    Args:
        folder: the checkpoint.
        saved: its config.
        lookups: of the run.

    Raises:
        CheckpointError: names the optimizers that differ.
    """
    there = dict(optimizers_of(saved, Lookups(lookups.schema, saved)))
    here = dict(optimizers_of(lookups.config, lookups))
    for part, name in here.items():
        if (before := there[part]) != name:
            raise CheckpointError(
                f"{folder} was trained with another optimizer: {part} is {name}, was {before}; "
                "restore it, or start a new run with another --run-id"
            )


def optimizers_of(config: Config, lookups: Lookups) -> Iterator[tuple[str, str]]:
    """By part of the model or key of the config, the optimizer that determines its state."""
    for table in lookups.tables:
        name = table.settings.optimizer if table.settings.trainable else "sgd"
        yield f"the optimizer of table {table.name!r}", name
    dense = config.dense_optimizer
    momentum = isinstance(dense, SgdConfig) and dense.momentum > 0
    yield "dense_optimizer.name", f"{dense.name} with momentum" if momentum else dense.name
    yield "dense_optimizer.first_order", dense.first_order.name if dense.first_order else "null"
    yield "dense_optimizer.ema_decay", "null" if dense.ema_decay is None else "a number"
