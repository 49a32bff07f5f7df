"""The checks of a run that need no worker, made before any is started."""

from pathlib import Path

import torch

from infnet_dist.config.run import Config
from infnet_dist.model.build import build_train_model
from infnet_dist.model.settings_check import without_effect
from infnet_dist.planning.checks import check_plan
from infnet_dist.planning.plan_file import load_plan
from infnet_dist.planning.run_tables import tables_of_run
from infnet_dist.planning.topology import load_topology
from infnet_dist.training.begun_set import manifest_of_run
from infnet_dist.training.setup import open_for_training
from ray_jobs._cli import log


def check_run(config: Config, run_folder: Path | None = None) -> None:
    """Check data, settings and plan; warn of settings without effect.

    Args:
        config: the run.
        run_folder: of the run, if it may have begun before.

    Raises:
        UserError: the run can't be trained.
    """
    begun = manifest_of_run(config, run_folder) if run_folder is not None else None
    manifest, schema = open_for_training(config, begun)
    for line in without_effect(config, manifest, schema):
        log.warning("no effect: %s", line)
    build_train_model(config, schema, table_device=torch.device("meta"))  # finds wrong settings
    if config.sharding.topology is not None:
        load_topology(config.sharding.topology)
    if config.sharding.plan != "auto":
        # The number of workers per machine is checked by the workers.
        check_plan(
            load_plan(config.sharding.plan),
            tables_of_run(config, schema),
            world_size=config.scaling.num_workers,
            device="cuda" if config.scaling.use_gpu else "cpu",
        )
