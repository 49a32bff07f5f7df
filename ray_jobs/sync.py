"""Upload a run to W&B, however many attempts it had and wherever they were killed.

    infnet sync runs/my_run/20261122-111407

An offline W&B folder is written again from the run's metrics.jsonl, which holds each step once, and
passed to `wandb sync`. Earlier offline folders of the run are moved to wandb/replaced/. The exit
code is that of `wandb sync`.
"""

import subprocess
import sys
from collections.abc import Sequence

from infnet_dist.errors import DataError
from infnet_dist.training.wandb_sync import rebuild
from ray_jobs._cli import run_main
from ray_jobs._verbs import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder and upload it; returns the exit code."""
    try:
        folder = rebuild(parse("sync", argv).run_folder.absolute())
    except OSError as error:
        raise DataError(str(error)) from None
    return subprocess.run([sys.executable, "-m", "wandb", "sync", folder], check=False).returncode


if __name__ == "__main__":
    run_main(main)
