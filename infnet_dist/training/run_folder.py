"""The folder of a run: its config, plan and versions, its metrics, its summary.

<run.folder>/<run.name>/<run id>/
config.yaml, versions.json, plan.json, plan.txt   of the newest attempt
attempts/001/                           the same of each, and attempt.json: when it began, and where
init.json                               what checkpoint.init_from took of which checkpoint
teacher.json                            which checkpoint training.teacher named
metrics.jsonl                           one line per log call; each step once, whatever happened
summary.json, curves.png                once it has ended; of the attempt that trained last
checkpoints/                            unless checkpoint.folder names another place
"""

import json
import logging
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infnet_dist.checkpoint import CheckpointManifest
from infnet_dist.config.run import Config, dump_config
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.json_files import write_json
from infnet_dist.io.parsing import parse_json
from infnet_dist.planning.plan import Plan
from infnet_dist.planning.plan_file import save_plan
from infnet_dist.planning.review.render import describe
from infnet_dist.tracking.tracker import METRICS, Tracker, make_tracker, plot_curves
from infnet_dist.training.provenance import versions

ATTEMPTS = "attempts"
INIT = "init.json"
TEACHER = "teacher.json"
PLAN_TEXT = "plan.txt"
log = logging.getLogger("infnet_dist")


def checkpoint_folder(config: Config, run_folder: Path) -> Folder:
    """The folder of the checkpoints of a run."""
    if config.checkpoint.folder is None:
        return Folder(run_folder / "checkpoints")
    return Folder(config.checkpoint.folder) / config.run.name / run_folder.name


def open_run_folder(
    config: Config, plan: Plan, run_folder: Path, manifest: CheckpointManifest | None
) -> Tracker:
    """Write config, plan and versions of an attempt; open its metrics after the checkpoint."""
    own = run_folder / ATTEMPTS / f"{1 + newest_attempt(run_folder):03d}"
    own.mkdir(parents=True)
    begun = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "after_step": manifest.progress.step if manifest else 0,
        "num_workers": plan.made_for.topology.world_size,
    }
    write_json(own / "attempt.json", begun)
    for folder in (own, run_folder):
        (folder / "config.yaml").write_text(dump_config(config))
        write_json(folder / "versions.json", versions())
        save_plan(plan, folder / "plan.json")
        text = describe(plan, most_tables=len(plan.tables))
        (folder / PLAN_TEXT).write_text(f"{text}\n", encoding="utf-8")
    lost = cut_log(run_folder / METRICS, manifest)
    if lost:
        log.info(
            "removed %s lines of metrics logged after the checkpoint",
            f"{lost:,}",
        )
    return make_tracker(
        config.tracking,
        folder=run_folder,
        run_id=wandb_id(config, run_folder),
        settings=config.model_dump(mode="json") | init_settings(run_folder),
    )


def read_init(run_folder: Path, name: str = INIT) -> dict[str, Any] | None:
    """The content of `init.json`, or of `teacher.json`; None for a run that didn't have another's.

    Raises:
        CheckpointError: it is damaged.
    """
    path = run_folder / name
    if not path.is_file():
        return None
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it") from None
    if not isinstance(found, dict) or not {"requested", "checkpoint"} <= found.keys():
        raise CheckpointError(f"{path} names no checkpoint; delete it")
    return found


def init_settings(run_folder: Path) -> dict[str, Any]:
    """The checkpoint from which a run started, for its settings in W&B."""
    found = read_init(run_folder)
    left_out = ("tensors", "notes")
    return {"init": {k: v for k, v in found.items() if k not in left_out}} if found else {}


def read_attempts(run_folder: Path) -> list[dict[str, Any]]:
    """Start, first step and number of workers of each attempt; the oldest first."""
    found: list[dict[str, Any]] = []
    for number in _attempts(run_folder):
        with suppress(OSError, ValueError):  # it was killed at its start
            path = run_folder / ATTEMPTS / f"{number:03d}" / "attempt.json"
            found.append(json.loads(path.read_text()))
    return found


def _attempts(run_folder: Path) -> list[int]:
    """Numbers of attempts, ascending."""
    names = [path.name for path in (run_folder / ATTEMPTS).glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def wandb_id(config: Config, run_folder: Path) -> str:
    """The id of a run in W&B, the same in all attempts."""
    return f"{config.run.name}-{run_folder.name}"


def newest_attempt(run_folder: Path) -> int:
    """The number of the newest attempt that began to train; 0 if there is none."""
    return max(_attempts(run_folder), default=0)


def close_run_folder(run_folder: Path, summary: dict[str, Any], *, trained: bool) -> dict[str, Any]:
    """Write the summary and draw the curves, unless an earlier attempt ended the run.

    Args:
        run_folder: of the run.
        summary: of this attempt.
        trained: whether this attempt trained a step.

    Returns:
        The run's summary: an earlier attempt's if this one had no step left to train.
    """
    earlier = None if trained else _read_summary(run_folder)
    if earlier and not earlier["stopped"] and earlier["steps"] == summary["steps"]:
        if place := summary.get("wandb"):  # a new offline folder replaces the earlier one
            earlier["wandb"] = place
            write_json(run_folder / "summary.json", earlier)
        return earlier
    write_json(run_folder / "summary.json", summary)
    try:
        plot_curves(run_folder / METRICS, run_folder / "curves.png")
    except Exception as error:
        log.warning("no curves.png (%s)", error)
    return summary


def _read_summary(run_folder: Path) -> dict[str, Any] | None:
    """The summary of an earlier attempt in this folder; None if missing or incomplete."""
    try:
        found = json.loads((run_folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    ours = isinstance(found, dict) and found.get("run_folder") == str(run_folder)
    return found if ours and {"stopped", "steps", "samples_per_s"} <= found.keys() else None


def cut_log(path: Path, manifest: CheckpointManifest | None) -> int:
    """Remove the metrics logged after the checkpoint that a run resumes from; returns the count.

    So each step is logged once, and the log describes the steps that led to the final weights.
    """
    if not path.is_file():
        return 0
    kept, cut = [], 0
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the process was killed while it wrote this line
        if manifest and _is_before(record, manifest):
            kept.append(line)
        else:
            cut += 1
    Folder(path.parent).put(path.name, "".join(f"{line}\n" for line in kept).encode())
    return cut


def _is_before(record: dict[str, Any], manifest: CheckpointManifest) -> bool:
    """Whether a line was logged before the checkpoint was saved.

    An attempt that resumed from it may have logged lines of the same step: an evaluation that the
    checkpoint lacks, and losses of the interval that an old checkpoint holds.
    """
    step = manifest.progress.step
    if record["step"] != step:
        return bool(record["step"] < step)
    if any(key.startswith("train/") for key in record):
        return not any(state and state[0] for state in manifest.interval)
    return bool(manifest.metrics)
