"""Make the training set of a run file, from raw logs, existing data sets or synthetic logs.

    infnet ingest --config configs/smoke.yaml
    ray job submit --working-dir . -- python -m ray_jobs.ingest --config configs/logs.yaml

Running it again with the same settings changes nothing; other settings are an error, and nothing is
overwritten. Logs (`ingest.source: logs`) are ingested by parallel tasks, on a cluster or on
the cores of this machine. New files of such logs are added to the set; a killed job resumes.
"""

import time
from collections.abc import Sequence

from infnet_dist.config.run import Config
from infnet_dist.data.manifest import Manifest, read_manifest
from infnet_dist.errors import ConfigError
from infnet_dist.ingest.sources import update_training_set
from infnet_dist.io.console import Line
from infnet_dist.io.contrib import load_contrib
from infnet_dist.io.paths import make_writable
from infnet_dist.io.progress import ProgressLines
from infnet_dist.tracking.tracker import send_report
from ray_jobs._cli import log, new_run_id, read_config, run_main
from ray_jobs._tasks import executor
from ray_jobs._verbs import parse

# The processes of tasks import this module too, so imports that need torch are inside functions.


def main(argv: Sequence[str] | None = None) -> None:
    """Make the training set unless it is up to date, then its report."""
    arguments = parse("ingest", argv)
    ingest(read_config(arguments), arguments.launcher)


def ingest(config: Config, launcher: str) -> None:
    """Bring the training set of a run file up to date, and write its report.

    Raises:
        UserError: the raw data or the settings are invalid; the set is unchanged.
    """
    if config.ingest is None:
        raise ConfigError("the run file has no 'ingest:' section; see configs/smoke.yaml")
    start = time.monotonic()
    folder = config.data.path
    with executor(launcher) as execute:
        manifest = update_training_set(config.ingest, folder, execute, ProgressLines("ingest"))
    if manifest is None:
        log.info("%s is up to date", folder)
    else:
        _log_splits(manifest)
        log.info("wrote %s in %.1f s", folder, time.monotonic() - start)
    _describe(config, manifest)


def _log_splits(manifest: Manifest) -> None:
    """Log rows and label means of each split, and the rows in quarantine."""
    for name, split in manifest.splits.items():
        rates = [f"{task} {rate:.4f}" for task, rate in split.base_rates.items()]
        log.info(Line(f"{name}: {split.rows:,} rows; label means", *rates))
    ingested = manifest.ingested
    if ingested is not None and ingested.quarantined:
        reasons = "; ".join(f"{n:,} x {why}" for why, n in ingested.quarantined.items())
        log.warning("%s bad rows in quarantine/: %s", f"{ingested.num_bad:,}", reasons)


def _describe(config: Config, made: Manifest | None) -> None:
    """Write the report and, if `data.petastorm_metadata` is set, Petastorm's metadata."""
    from infnet_dist.ingest.report import REPORT, write_report

    folder = config.data.path
    manifest = made or read_manifest(folder)
    if config.data.petastorm_metadata:
        load_contrib("petastorm.metadata").write_petastorm_metadata(folder, manifest)
    page = folder / REPORT
    if made is None and page.exists() and manifest.content_hash in page.read_text():
        return
    report, run_id = write_report(folder, manifest), f"ingest-{new_run_id()}"
    run_folder = config.run.folder / config.run.name / run_id
    if config.tracking.wandb != "disabled":
        make_writable(run_folder, "INFNET_ROOT or run.folder")
    place = send_report(
        config.tracking,
        folder=run_folder,
        run_id=run_id,
        settings=config.model_dump(mode="json"),
        scores={f"{name}/rows": float(split.rows) for name, split in manifest.splits.items()},
        pages=[report],
    )
    log.info("report: %s%s", report, f"; W&B: {place}" if place else "")


if __name__ == "__main__":
    run_main(main)
