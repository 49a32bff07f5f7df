"""Stages count, assemble and layout: the rows of the training set, and its parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infnet_dist.ingest.logs.assemble import Assemble
from infnet_dist.ingest.logs.context import Workplace
from infnet_dist.ingest.logs.counting import Count, overlapping
from infnet_dist.ingest.logs.deduplicate import counter_groups, group_name
from infnet_dist.ingest.logs.read import Settled
from infnet_dist.ingest.logs.shuffle import Layout
from infnet_dist.ingest.logs.sizes import how_many
from infnet_dist.ingest.logs.splits import SPLITS
from infnet_dist.ingest.parts import PartSummary
from infnet_dist.schema import Schema


@dataclass(frozen=True)
class Encoding:
    """What turns settled rows into those of the training set, and into state.

    Attributes:
        schema: of the set.
        compiled: the vocabulary's file, by table.
        boundary_ms: the state gets all rows from then on, and sums and newest events before it.
    """

    schema: Schema
    compiled: Mapping[str, Path]
    boundary_ms: int


def make_parts(
    place: Workplace, settled: Settled, encoding: Encoding, rows: Mapping[str, int]
) -> dict[str, list[PartSummary]]:
    """The parts of each split, which has so many `rows`."""
    answers = _count(place, settled, encoding.boundary_ms)
    num_buckets = {s: how_many(rows[s], place.sizes.part) for s in SPLITS if rows[s]}
    assembled = _assemble(place, settled, encoding, rows, answers, num_buckets)
    return _lay_out(place, encoding.schema, assembled, rows, num_buckets)


def _count(place: Workplace, settled: Settled, boundary_ms: int) -> tuple[tuple[Path, ...], ...]:
    """The answers' files, by group of counters."""
    config, number, tasks = place.config, settled.num_counting, {}
    groups = counter_groups(config)
    for by in groups:
        group = group_name(by)
        sums = place.state_files(group)
        for bucket in range(number):
            name = f"{group}-{bucket:05d}"
            tasks[name] = Count(
                counters=tuple(n for n, c in config.counters.items() if c.by == by),
                asked=settled.files(group),
                bucket=bucket,
                num_buckets=number,
                num_partitions=settled.num_partitions,
                previous=overlapping(sums, bucket, number) if sums else (),
                boundary_ms=boundary_ms,
                out=place.file("count", f"{name}.rows"),
                state=place.state / f"{name}.parquet" if config.extendable else None,
            )
    place.stages.run("count", tasks)
    outs = [task.out for task in tasks.values()]
    return tuple(tuple(outs[g * number : (g + 1) * number]) for g in range(len(groups)))


def _assemble(
    place: Workplace,
    settled: Settled,
    encoding: Encoding,
    rows: Mapping[str, int],
    answers: tuple[tuple[Path, ...], ...],
    num_buckets: Mapping[str, int],
) -> tuple[Path, ...]:
    """The rows' files, by partition."""
    config = place.config
    tasks = {
        f"{partition:05d}": Assemble(
            config=config,
            schema=encoding.schema,
            partition=partition,
            num_partitions=settled.num_partitions,
            settled=rows_file,
            answers=answers,
            compiled=encoding.compiled,
            num_buckets=num_buckets,
            rows_per_chunk=place.sizes.chunk,
            boundary_ms=encoding.boundary_ms,
            out=place.file("assemble", f"{partition:05d}.rows"),
            state=place.state / f"rows-{partition:05d}.parquet" if config.extendable else None,
        )
        for partition, rows_file in enumerate(settled.files("rows"))
    }
    each = max(sum(rows.values()) // settled.num_partitions, 1)
    place.stages.run("assemble", tasks, rows=[each] * settled.num_partitions)
    return tuple(task.out for task in tasks.values())


def _lay_out(
    place: Workplace,
    schema: Schema,
    assembled: tuple[Path, ...],
    rows: Mapping[str, int],
    num_buckets: Mapping[str, int],
) -> dict[str, list[PartSummary]]:
    prefix = "part" if place.before is None else f"{place.generation}-part"
    files = [
        (split, f"{split}/{prefix}-{i:05d}.parquet")
        for split, number in num_buckets.items()
        for i in range(number)
    ]
    tasks = {
        f"{bucket:05d}": Layout(
            schema=schema,
            assembled=assembled,
            bucket=bucket,
            num_buckets=len(files),
            seed=place.config.seed,
            row_group_rows=place.config.row_group_rows,
            folder=place.staged,
            file=file,
        )
        for bucket, (_, file) in enumerate(files)
    }
    for split in num_buckets:
        (place.staged / split).mkdir(exist_ok=True)
    each = [rows[split] // num_buckets[split] for split, _ in files]
    outcomes = place.stages.run("layout", tasks, rows=each)
    parts: dict[str, list[PartSummary]] = {split: [] for split in num_buckets}
    for (split, _), outcome in zip(files, outcomes, strict=True):
        if outcome["rows"]:
            parts[split].append(PartSummary.model_validate(outcome["summary"]))
    return parts
