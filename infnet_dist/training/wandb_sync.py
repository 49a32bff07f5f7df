"""Uploads a run to W&B, whatever attempts it had and wherever they were killed.

    python -m infnet_dist.training.wandb_sync runs/my_run/20261122-111407

An offline W&B folder is made anew from the run's metrics.jsonl, which holds each step once, and
given to `wandb sync`. Earlier offline folders of the run are moved to wandb/replaced/.
"""

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from infnet_dist.config.run import Config, config_of_text
from infnet_dist.errors import DataError, UserError
from infnet_dist.io.json_files import write_json
from infnet_dist.tracking.tracker import METRICS, read_metrics
from infnet_dist.tracking.wandb_run import WandbRun
from infnet_dist.training.run_folder import wandb_id


def main(argv: Sequence[str] | None = None) -> int:
    """Make the folder and upload it; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m infnet_dist.training.wandb_sync", description="Upload a run to W&B."
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN_FOLDER", help="folder of a run")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        folder = rebuild(parser.parse_args(argv).run_folder.absolute())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return subprocess.run([sys.executable, "-m", "wandb", "sync", folder], check=False).returncode


def rebuild(run_folder: Path) -> str:
    """Make the offline W&B folder of a run anew from its metrics.jsonl; returns the folder.

    Raises:
        DataError: no run, nothing logged in it, or it is being trained.
    """
    config, records = _config_of(run_folder), read_metrics(run_folder / METRICS)
    if not records:
        raise DataError(f"nothing is logged in {run_folder / METRICS}; give a run's folder")
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
        raise DataError(f"{run_folder} is being trained; upload it when that has ended") from None
    return place


def _name_in_summary(path: Path, place: str) -> None:
    """Let the summary of a run that has ended name the new folder; the one before was moved."""
    if path.is_file():
        write_json(path, json.loads(path.read_text()) | {"wandb": place})


def _config_of(run_folder: Path) -> Config:
    path = run_folder / "config.yaml"
    if not path.is_file():
        raise DataError(f"no run in {run_folder}: it has no config.yaml; give a run's folder")
    return config_of_text(path.read_text(), source=str(path))


if __name__ == "__main__":
    sys.exit(main())
