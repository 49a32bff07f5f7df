"""Go on with the daily loop: ingest, evaluate, train, gate, publish.

    infnet roll --config configs/daily.yaml                 # once: what is new since the last time
    infnet roll --config configs/daily.yaml --every 1h      # again and again
    infnet roll --config configs/daily.yaml --one-by-one    # replay: a generation per log file

Each generation is what one ingest added. The current model is evaluated on it before any model has
seen it; then a model is trained from the current one, and replaces it if it passes the gate. Killed
at any moment, the same command continues: docs/daily.md.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from infnet_dist.config.logs import LogsIngest
from infnet_dist.config.run import Config
from infnet_dist.config.window import first_ms
from infnet_dist.data.manifest import MANIFEST, read_manifest
from infnet_dist.errors import ConfigError
from infnet_dist.ingest.logs.extend import known_files
from infnet_dist.ingest.logs.reading.files import list_files
from infnet_dist.io.console import Line
from infnet_dist.rolling.gate import check_gate
from infnet_dist.rolling.report import verdict, write_report
from infnet_dist.rolling.state import Generation, RollState, metrics_of, read_state, write_state
from infnet_dist.training.run_lock import held_by_driver
from ray_jobs._cli import log, read_config, run_main
from ray_jobs._cluster import submission_id
from ray_jobs._roll_stages import Stages
from ray_jobs._verbs import parse
from ray_jobs.ingest import ingest


def main(argv: Sequence[str] | None = None) -> None:
    """Roll until nothing is new; with --every, forever."""
    arguments = parse("roll", argv)
    config = read_config(arguments)
    logs = check(config)
    if arguments.until is not None and not arguments.one_by_one:
        raise ConfigError("--until needs --one-by-one: what is new is ingested as a whole")
    until_ms = None if arguments.until is None else _time_ms(arguments.until)
    folder = config.run.folder / config.run.name
    with held_by_driver(folder / "roll", config.scaling, submission_id()):
        while True:
            start = time.monotonic()
            _roll_all(config, logs, folder, arguments, until_ms)
            if arguments.every is None:
                return
            wait_s = max(0.0, arguments.every - (time.monotonic() - start))
            log.info("next look at %s in %.0f s", logs.path, wait_s)
            time.sleep(wait_s)


def check(config: Config) -> LogsIngest:
    """The `ingest` section, if the config fits the daily loop.

    Raises:
        ConfigError: it doesn't; names the key.
    """
    logs = config.ingest
    if not isinstance(logs, LogsIngest):
        got = "no ingest section" if logs is None else f"ingest.source {logs.source}"
        raise ConfigError(f"got {got}; infnet roll adds logs day by day: use ingest.source logs")
    if logs.valid_from is not None:
        raise ConfigError(
            f"ingest.valid_from is {logs.valid_from}; leave it out: infnet roll divides train and "
            "valid by roll.holdout_h"
        )
    if not logs.extendable:
        raise ConfigError("ingest.extendable is false, so no logs can be added; remove it")
    ours = {
        "data.window": config.data.window,
        "data.valid_from": config.data.valid_from,
        "checkpoint.init_from": config.checkpoint.init_from,
    }
    for key, value in ours.items():
        if value is not None:
            raise ConfigError(f"{key} is set; leave it out: infnet roll sets it")
    if config.training.ids_only:
        raise ConfigError("training.ids_only is set; use roll.update: ids_within_day instead")
    trained = config.data.tasks or (*logs.tasks, "watch_time")
    check_gate(
        config.roll,
        [task for task in logs.tasks if task in trained],
        watch_time=logs.watch_time is not None and "watch_time" in trained,
    )
    return logs


def _roll_all(
    config: Config,
    logs: LogsIngest,
    folder: Path,
    arguments: argparse.Namespace,
    until_ms: int | None,
) -> None:
    """Complete the generation that was begun, then roll all that is new."""
    stages = Stages(config, folder, arguments.launcher)
    stages.complete(read_state(folder))
    if arguments.one_by_one:
        for path in _new_sources(config, logs):
            newest = read_state(folder).newest
            if newest is not None and until_ms is not None and newest.last_time_ms >= until_ms:
                log.info("the training set has reached %s (--until)", arguments.until)
                return
            one = config.model_copy(update={"ingest": logs.model_copy(update={"path": path})})
            _roll_once(stages, one, folder)
    else:
        _roll_once(stages, config, folder)


def _time_ms(text: str) -> int:
    try:
        return first_ms("--until", text)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _new_sources(config: Config, logs: LogsIngest) -> Iterator[str]:
    """Files, or folders of files, below `ingest.path` that aren't in the set, in order of names."""
    earlier = read_manifest(config.data.path) if (config.data.path / MANIFEST).is_file() else None
    known = {file.path for file in known_files(earlier)}
    root = logs.path.rstrip("/")
    found = dict[str, None]()
    for file in sorted(file.path for file in list_files(logs, known_files(earlier)).files):
        if file in known:
            continue
        if not file.startswith(f"{root}/"):
            raise ConfigError(f"--one-by-one needs a folder as ingest.path, got {logs.path}")
        found[f"{root}/{file.removeprefix(f'{root}/').partition('/')[0]}"] = None
    yield from found


def _roll_once(stages: Stages, config: Config, folder: Path) -> None:
    """Ingest what is new, and roll it if that is something."""
    start = time.monotonic()
    ingest(config, stages.launcher)
    state = read_state(folder)
    generation = _generation(config, state, time.monotonic() - start)
    if generation is None:
        log.info("nothing is new; the current model is %s", _current(state))
        return
    write_state(folder, state.having(generation))
    stages.complete(read_state(folder))
    state = read_state(folder)
    newest = state.newest
    assert newest is not None
    page = write_report(folder, config.run.name, state)
    scores = [f"{name} {value:.4f}" for name, value in metrics_of(newest.before).items()]
    what = f"generation {newest.number}: {newest.rows:,} rows; gate: {verdict(newest)}"
    log.info(Line(what, *(s for s in scores if s.startswith(("auc", "calibration")))))
    log.info("the current model is %s; report: %s", _current(state), page)


def _generation(config: Config, state: RollState, seconds: float) -> Generation | None:
    """The generation that the training set has now; None if it was rolled before."""
    manifest = read_manifest(config.data.path)
    assert manifest.ingested is not None, "a manifest of logs has this section"
    newest = state.newest
    last = newest.number if newest is not None else 0
    number = manifest.ingested.generation
    if number == last:
        return None
    before = newest.num_embeddings if newest is not None else {}
    sizes = {table.name: table.num_embeddings for table in manifest.schema_.tables}
    parts = [part for split in manifest.splits.values() for part in split.parts]
    return Generation(
        number=number,
        last_time_ms=manifest.ingested.last_time_ms,
        rows=sum(part.rows for part in parts if (part.generation or 1) > last),
        num_embeddings=sizes,
        new_ids={name: size - before.get(name, 0) for name, size in sizes.items()},
        seconds={"ingest": seconds},
    )


def _current(state: RollState) -> str:
    return state.current.checkpoint if state.current is not None else "none yet"


if __name__ == "__main__":
    run_main(main)
