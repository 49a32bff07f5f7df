"""Make the training set of a run file: from raw logs, data sets that exist, or a synthetic world.

    python -m ray_jobs.ingest --config configs/smoke.yaml
    ray job submit --working-dir . -- python -m ray_jobs.ingest --config configs/kuairand_pure.yaml

Running it again with the same settings changes nothing; with others, it refuses to overwrite.
"""

import time
from collections.abc import Callable

from tqdm import tqdm

from infnet_dist import synthetic
from infnet_dist.config import Config, KuaiRandIngest, PetastormIngest, TabularIngest
from infnet_dist.data.manifest import Manifest, read_manifest
from infnet_dist.errors import ConfigError
from infnet_dist.ingest import kuairand, petastorm_sets, tabular
from infnet_dist.ingest.petastorm_metadata import write_petastorm_metadata
from infnet_dist.ingest.writer import training_set_is_current
from ray_jobs._cli import log, make_parser, read_config, run_main

_PROGRESS_S = 5.0


def main() -> None:
    """Ingest unless the training set is there already."""
    parser = make_parser("ray_jobs.ingest", "Make the training set of a run file.")
    config = read_config(parser.parse_args())
    if config.ingest is None:
        raise ConfigError("the run file has no 'ingest:' section; see configs/smoke.yaml")
    start = time.monotonic()
    folder = config.data.path
    if training_set_is_current(folder, config.ingest.model_dump(mode="json")):
        if config.data.petastorm_metadata:
            write_petastorm_metadata(folder, read_manifest(folder))
        log.info("%s is up to date", folder)
        return
    manifest = _make(config)
    if config.data.petastorm_metadata:
        write_petastorm_metadata(folder, manifest)
    for name, split in manifest.splits.items():
        rates = "  ".join(f"{task} {rate:.4f}" for task, rate in split.base_rates.items())
        log.info("%s: %s rows; label means %s", name, f"{split.rows:,}", rates)
    log.info("wrote %s in %.1f s", folder, time.monotonic() - start)


def _make(config: Config) -> Manifest:
    ingest = config.ingest
    if isinstance(ingest, KuaiRandIngest):
        return kuairand.make_training_set(ingest, config.data.path, _progress())
    if isinstance(ingest, TabularIngest):
        return tabular.make_training_set(ingest, config.data.path, _progress())
    if isinstance(ingest, PetastormIngest):
        return petastorm_sets.make_training_set(ingest, config.data.path, _progress())
    assert ingest is not None
    return synthetic.make_training_set(ingest, config.data.path, _progress())


def _progress() -> Callable[[int, int], None]:
    """Logs rows done, rate and time left, every few seconds."""
    start = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _PROGRESS_S and done < total:
            return
        last = now
        rate = done / max(now - start, 1e-9)
        left = tqdm.format_interval((total - done) / max(rate, 1e-9))
        log.info("%s/%s rows  %s rows/s  %s left", f"{done:,}", f"{total:,}", f"{rate:,.0f}", left)

    return report


if __name__ == "__main__":
    run_main(main)
