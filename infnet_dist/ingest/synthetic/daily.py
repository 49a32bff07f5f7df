"""Synthetic logs as raw files, one per day, to try out the daily loop.

    python -m infnet_dist.ingest.synthetic.daily --config configs/smoke.yaml --folder logs

The rows are those of `ingest.source: synthetic` before histories are added; they have the columns
truth_<task>, so the optimal AUC of each day is known. Ingest the files with `ingest.source: logs`.
"""

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.config.ingest import SyntheticIngest
from infnet_dist.config.run import load_config
from infnet_dist.errors import ConfigError, UserError
from infnet_dist.ingest.synthetic.changes import days_of
from infnet_dist.ingest.synthetic.generate import (
    CHUNK_ROWS,
    impression_columns,
    label_columns,
    signal_columns,
)
from infnet_dist.ingest.synthetic.population import build_world
from infnet_dist.ingest.synthetic.world import DAY_MS, START_MS, TASKS, World
from infnet_dist.io.filesystem import published


def write_daily_logs(
    config: SyntheticIngest, folder: Path, days: Sequence[int] | None = None
) -> list[Path]:
    """Write the logs of some days, one Parquet file per day, named by its date.

    Args:
        config: the synthetic logs; its shares of splits have no effect.
        folder: created if it doesn't exist.
        days: days to write, from 0; None: all.

    Returns:
        The files, in the order of time.

    Raises:
        ConfigError: a day is outside of the logs.
    """
    wanted = range(config.num_days) if days is None else sorted(days)
    if wanted and not 0 <= wanted[0] <= wanted[-1] < config.num_days:
        raise ConfigError(
            f"days {', '.join(map(str, wanted))}: expected 0 to {config.num_days - 1} "
            "(ingest.num_days)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    world, files = build_world(config), []
    for day in wanted:
        date = datetime.fromtimestamp((START_MS + day * DAY_MS) / 1000, UTC)
        files.append(folder / f"{date:%Y-%m-%d}.parquet")
        with published(files[-1]) as path:
            _write(path, _rows_of_day(world, config, day))
    return files


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    writer: pq.ParquetWriter | None = None
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _rows_of_day(world: World, config: SyntheticIngest, day: int) -> Iterator[pa.Table]:
    """The rows of a day; chunks are those of the whole log, since they have random streams."""
    first = day * DAY_MS // world.step_ms
    stop = min((day + 1) * DAY_MS // world.step_ms + 1, config.num_rows)
    for start in range(first // CHUNK_ROWS * CHUNK_ROWS, stop, CHUNK_ROWS):
        rows = world.impressions(start, min(CHUNK_ROWS, config.num_rows - start))
        truth = world.truth(rows)
        labels = world.labels(start, truth)
        columns = impression_columns(world, rows, config)
        for number, task in enumerate(TASKS):
            columns |= label_columns(task, labels[:, number], truth[:, number])
        table = pa.table(columns | signal_columns(world, rows, config))
        yield table.filter(pa.array(days_of(rows.times_ms) == day))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the logs of a run file's `ingest` section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="run file with ingest.source: synthetic")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folder", required=True, type=Path, help="folder of the files")
    parser.add_argument("--days", type=int, nargs="*", help="days from 0; default: all")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config, arguments.set).ingest
        if not isinstance(config, SyntheticIngest):
            raise ConfigError(f"{arguments.config}: expected ingest.source: synthetic")
        for path in write_daily_logs(config, arguments.folder, arguments.days):
            print(path)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
