"""Rebuilds the offline W&B folder of a run from its metrics.jsonl, which holds each step once."""

import json
from pathlib import Path

from filelock import FileLock, Timeout

from infnet_dist.config.run import Config, config_of_text
from infnet_dist.errors import DataError
from infnet_dist.io.json_files import write_json
from infnet_dist.tracking.tracker import METRICS, read_metrics
from infnet_dist.tracking.wandb_run import WandbRun
from infnet_dist.training.run_folder import wandb_id


def rebuild(run_folder: Path) -> str:
    """Rebuild the offline W&B folder; returns its path. Earlier ones are moved to wandb/replaced/.

    Raises:
        DataError: no run, or a run without metrics, or it is being trained.
    """
    config, records = _config_of(run_folder), read_metrics(run_folder / METRICS)
    if not records:
        raise DataError(f"{run_folder / METRICS} holds no metrics; pass the folder of a run")
    try:
        with FileLock(run_folder / ".lock", timeout=0):
            tracker = WandbRun(
                config.tracking.model_copy(update={"wandb": "offline"}),
                folder=run_folder,
                run_id=wandb_id(config, run_folder),
                settings=config.model_dump(mode="json"),
                before=records,
            )
            place = tracker.finish()
            assert place is not None
            _name_in_summary(run_folder / "summary.json", place)
    except Timeout:
        raise DataError(f"{run_folder} is being trained; upload it after its end") from None
    return place


def _name_in_summary(path: Path, place: str) -> None:
    """Name the new folder in the summary of a run that has ended."""
    if path.is_file():
        write_json(path, json.loads(path.read_text()) | {"wandb": place})


def _config_of(run_folder: Path) -> Config:
    path = run_folder / "config.yaml"
    if not path.is_file():
        raise DataError(f"no run in {run_folder}: it has no config.yaml; pass the folder of a run")
    return config_of_text(path.read_text(), source=str(path))
