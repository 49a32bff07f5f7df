"""Train a run.

    ray job submit --working-dir . -- python -m ray_jobs.train --config configs/smoke.yaml
    infnet train --config configs/smoke.yaml --launcher local    # without Ray

A run's folder is <run.folder>/<run.name>/<run id>. With the --run-id of an earlier run, training
resumes from its newest checkpoint. Ctrl-C, SIGTERM and `ray job stop` save first (exit codes 130
and 143); lost workers and nodes are replaced: docs/faults.md. --dry-run stops before training.
"""

from collections.abc import Sequence
from pathlib import Path

from infnet_dist.config.changes import changes
from infnet_dist.config.run import Config, config_of_text
from infnet_dist.io.console import Line
from infnet_dist.training.initial_state import dry_run
from ray_jobs._cli import log, new_run_id, read_config, run_main
from ray_jobs._launch import launch
from ray_jobs._run_checks import check_run
from ray_jobs._supervise import train_with_restarts
from ray_jobs._verbs import parse


def main(argv: Sequence[str] | None = None) -> None:
    """Check everything that needs no workers, then train."""
    arguments = parse("train", argv)
    config = read_config(arguments)
    run_folder = config.run.folder / config.run.name / (arguments.run_id or new_run_id())
    check_run(config, run_folder)
    config = _resumed(config, run_folder)
    if arguments.dry_run:
        launch(dry_run, {"config": config, "run_folder": run_folder}, config, arguments.launcher)
        return
    summary = train_with_restarts(config, run_folder, arguments.launcher)
    trained = f"trained {summary['examples']:,} examples in {summary['steps']:,} steps"
    speed, path = f"{summary['samples_per_s']:.0f} samples/s", summary["checkpoint"]
    log.info(
        Line(
            f"{trained}, {speed}; checkpoint {path}",
            short=(trained, speed, path.rpartition("/")[2]),
        )
    )


def _resumed(config: Config, run_folder: Path) -> Config:
    """The settings of a resumed run; logs those that differ from its newest attempt.

    If the run file doesn't set `tables.unknown_id_rate`, a run keeps the rate that it began with.
    """
    try:
        text = (run_folder / "config.yaml").read_text(encoding="utf-8")
    except FileNotFoundError:
        return config
    saved = config_of_text(text, source=f"{run_folder}/config.yaml")
    if config.tables.unknown_id_rate is None:
        rate = {"unknown_id_rate": saved.tables.unknown_id_rate}
        config = config.model_copy(update={"tables": config.tables.model_copy(update=rate)})
    for key, (before, now) in changes(saved, config).items():
        log.warning("run %s resumes with %s = %s, was %s", run_folder.name, key, now, before)
    return config


if __name__ == "__main__":
    run_main(main)
