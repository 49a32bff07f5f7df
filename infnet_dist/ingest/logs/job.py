"""The stages of one ingest, in order: what each gets from those before it."""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_dist.data.manifest import HashedTable, Ingested, LogFile, Manifest
from infnet_dist.errors import DataError
from infnet_dist.ingest.logs.assemble import Assemble
from infnet_dist.ingest.logs.counting import Count, overlapping
from infnet_dist.ingest.logs.exchange import read_bucket
from infnet_dist.ingest.logs.extend import moment, pending_is_train
from infnet_dist.ingest.logs.features import fit_numbers, make_schema
from infnet_dist.ingest.logs.joins import join_all
from infnet_dist.ingest.logs.layout import Layout
from infnet_dist.ingest.logs.plan import check_side_tables, side_tables
from infnet_dist.ingest.logs.quarantine import tally
from infnet_dist.ingest.logs.rules import Rules, make_rules
from infnet_dist.ingest.logs.scatter import Scatter
from infnet_dist.ingest.logs.settle import (
    Settle,
    columns_of_table,
    counter_groups,
    group_name,
    settled_path,
)
from infnet_dist.ingest.logs.sizes import Sizes, expected_rows, how_many, power_of_two
from infnet_dist.ingest.logs.sketch import colliding_share, estimate_distinct, smallest_hashes
from infnet_dist.ingest.logs.source import (
    Fragment,
    file_schema,
    fragments,
    state_fragments,
)
from infnet_dist.ingest.logs.splits import SPLITS, Calendar
from infnet_dist.ingest.logs.stages import Outcome, Stages
from infnet_dist.ingest.logs.vocabulary import MergeCounts
from infnet_dist.ingest.parts import PartSummary
from infnet_dist.logs_config import LogsIngest
from infnet_dist.schema import DenseFeature, Schema
from infnet_dist.urls import without_secrets

log = logging.getLogger(__name__)
IntArray = npt.NDArray[np.int64]
_SAMPLE_ROWS = 1_000_000  # from which boundaries are fitted
_LONG_AGO_MS = -(2**62)


@dataclass(frozen=True)
class Made:
    """What an ingest made, in a folder of its own.

    Attributes:
        staged: the folder.
        parts: by split.
        pending_is_train: whether the rows that the set has so far are train now.
    """

    staged: Path
    schema: Schema
    parts: dict[str, list[PartSummary]]
    ingested: Ingested
    source: dict[str, Any]
    earlier: Manifest | None
    pending_is_train: bool


class Job:
    """One ingest.

    Args:
        config: what to make.
        stages: runs the tasks.
        work: folder for what tasks hand to one another.
        folder: the training set.
        earlier: its manifest; None if there is no set yet.
    """

    def __init__(
        self,
        config: LogsIngest,
        stages: Stages,
        work: Path,
        folder: Path,
        earlier: Manifest | None,
    ) -> None:
        self._config, self._stages, self._work, self._folder = config, stages, work, folder
        self._calendar, self._sizes = Calendar.of(config), Sizes.of(config)
        self._earlier = earlier
        self._before = earlier.ingested if earlier is not None else None
        self._pending_is_train = earlier is not None and pending_is_train(config, earlier)
        self._generation = f"g{self._before.generation + 1 if self._before else 1:04d}"
        self._staged = work / "set"
        self._num_partitions = self._num_counting = 1
        self._side_tables = side_tables(config)

    def run(self, files: Sequence[LogFile]) -> Made | None:
        """All stages over these files; None if they add nothing to the set.

        Raises:
            DataError: files can't be read, too many rows are bad, or a split has no rows.
        """
        config = self._config
        for name in ("state", "quarantine"):
            (self._staged / name / self._generation).mkdir(parents=True, exist_ok=True)
        found, unreadable = self._fragments(files)
        if not found:
            self._tell_of_nothing(unreadable)
            return None
        rules = self._rules(found)
        self._check_names()
        self._num_partitions = how_many(expected_rows(config, found), self._sizes.partition)
        cleaned = self._clean(found, rules)
        unreadable |= {
            fragment.file.path: outcome["unreadable"]
            for fragment, outcome in zip(found, cleaned, strict=True)
            if "unreadable" in outcome
        }
        read = [
            (fragment, outcome)
            for fragment, outcome in zip(found, cleaned, strict=True)
            if fragment.file.path not in unreadable
        ]
        cleaned = [outcome for _, outcome in read]
        num_rows = sum(outcome["rows"] for outcome in cleaned)
        if not num_rows and not any(outcome["bad"] for outcome in cleaned):
            self._tell_of_nothing(unreadable)
            return None
        if unreadable:
            log.warning("left out as unreadable: %s", ", ".join(unreadable))
        self._num_counting = power_of_two(how_many(num_rows, self._sizes.counting))
        settled = self._settle([fragment for fragment, _ in read], num_rows)
        quarantined = tally(config, self._staged / "quarantine", cleaned, settled)
        rows = self._rows_by_split(cleaned, settled)
        last_ms = max(outcome["times"][1] for outcome in cleaned if outcome.get("times"))
        num_ids, compiled = self._merge_counts(rules)
        schema = self._schema(settled, num_ids)
        boundary_ms = int(self._calendar.known_until(np.array([last_ms + 1]))[0])
        parts = self._write(schema, rows, compiled, boundary_ms)
        before = self._before
        ingested = Ingested(
            generation=int(self._generation[1:]),
            last_time_ms=last_ms,
            boundary_ms=boundary_ms,
            files=(
                *(before.files if before else ()),
                *(file for file in files if file.path not in unreadable),
            ),
            unreadable=unreadable,
            quarantined=_added(before.quarantined if before else {}, quarantined),
            left_out=_added(
                before.left_out if before else {},
                {name: rows[name] for name in ("early", "left_out")},
            ),
            hashed=self._hashed(),
        )
        return Made(
            self._staged,
            schema,
            parts,
            ingested,
            config.model_dump(mode="json"),
            self._earlier,
            self._pending_is_train,
        )

    def _tell_of_nothing(self, unreadable: Mapping[str, str]) -> None:
        """There are no new rows: an error for a new set, otherwise worth a warning at most."""
        if unreadable:
            log.warning("left out as unreadable: %s", ", ".join(unreadable))
        if self._earlier is None:
            shown = without_secrets(self._config.path)
            raise DataError(f"no file of {shown} has rows; check ingest.path")

    def _check_names(self) -> None:
        """Find now what would be found at the end otherwise."""
        sizes = dict.fromkeys(self._config.table_names, 1)
        numbers = tuple(DenseFeature(name=n, column=n) for n in self._config.numbers)
        make_schema(self._config, num_ids=sizes, numbers=numbers, mean_watch_ms=1.0)

    # ---- stage clean

    def _fragments(self, files: Sequence[LogFile]) -> tuple[list[Fragment], dict[str, str]]:
        """What to read, and files that can't be, with the reason."""
        state = state_fragments(self._state_files("rows"))
        found, bad = fragments(self._config, files, first_number=len(state))
        if bad and not self._config.skip_bad_files:
            raise DataError(
                f"{bad[0].file.path} can't be read ({bad[0].reason}){_and_others(len(bad) - 1)}; "
                "repair it, or leave out such files with ingest.skip_bad_files"
            )
        return [*state, *found] if found else [], {entry.file.path: entry.reason for entry in bad}

    def _rules(self, found: Sequence[Fragment]) -> Rules:
        last_ms = self._before.last_time_ms if self._before else None
        types = file_schema(self._config, found[0])
        wanted = self._config.in_files
        if types is not None and not found[0].state and set(wanted) <= set(types.names):
            types = join_all(self._config, types.empty_table().select(wanted)).schema
        return make_rules(self._config, types, last_ms)

    def _clean(self, found: Sequence[Fragment], rules: Rules) -> list[Outcome]:
        """What became of each fragment."""
        quarantine = self._staged / "quarantine" / self._generation
        tasks = {
            f"{f.number:05d}": Scatter(
                config=self._config,
                rules=rules,
                fragment=f,
                num_partitions=self._num_partitions,
                out=self._piece(f),
                quarantine=quarantine / f"{f.number:05d}.parquet",
            )
            for f in found
        }
        known = [fragment.rows for fragment in found]
        outcomes = self._stages.run("clean", tasks, rows=known if all(known) else ())
        check_side_tables(self._config, self._side_tables)
        return outcomes

    def _piece(self, fragment: Fragment) -> Path:
        return self._file("clean", f"{fragment.number:05d}.rows")

    # ---- stages settle and fit

    def _settle(self, read: Sequence[Fragment], num_rows: int) -> list[Outcome]:
        quarantine = self._staged / "quarantine" / self._generation
        by_number = {fragment.number: fragment.file.path for fragment in read}
        paths = tuple(by_number.get(i, "") for i in range(max(by_number) + 1))
        tasks = {
            f"{partition:05d}": Settle(
                config=self._config,
                partition=partition,
                num_partitions=self._num_partitions,
                num_counting=self._num_counting,
                pieces=tuple(self._piece(fragment) for fragment in read),
                paths=paths,
                sample_share=_SAMPLE_ROWS / max(num_rows, 1),
                events_from_ms=self._before.boundary_ms if self._before else _LONG_AGO_MS,
                out=self._file("settle", ""),
                quarantine=quarantine / f"duplicates-{partition:05d}.parquet",
            )
            for partition in range(self._num_partitions)
        }
        return self._stages.run("settle", tasks, rows=self._each(num_rows))

    def _rows_by_split(
        self, cleaned: Sequence[Outcome], settled: Sequence[Outcome]
    ) -> dict[str, int]:
        totals = np.sum([outcome["splits"] for outcome in settled], axis=0)
        rows = dict(zip((*SPLITS, "early", "left_out"), map(int, totals), strict=True))
        for split in {"train"} | self._calendar.starts_ms.keys():
            if not rows[split] + self._rows_there(split):
                times = [outcome["times"] for outcome in cleaned if outcome.get("times")]
                ends = (min(t[0] for t in times), max(t[1] for t in times))
                covered = " to ".join(map(moment, ends))
                raise DataError(
                    f"split {split} would have no rows: the new logs cover {covered}; change "
                    "ingest.train_from, valid_from or test_from"
                )
        return rows

    def _rows_there(self, split: str) -> int:
        """Rows that the split has so far, and keeps."""
        if self._earlier is None:
            return 0
        kept = {name: part.rows for name, part in self._earlier.splits.items()}
        if self._pending_is_train:
            kept = {"train": sum(kept.values())}
        return kept.get(split, 0)

    def _merge_counts(self, rules: Rules) -> tuple[dict[str, int], dict[str, Path]]:
        """By table with a vocabulary: ids in use, and the compiled file."""
        config, tasks = self._config, {}
        for number, name in enumerate(config.table_names):
            if config.table(name).encoding != "dense":
                continue
            kinds = {rules.kinds[column] for column in columns_of_table(config, name)}
            tasks[name] = MergeCounts(
                table=config.table(name),
                number=number,
                num_tables=len(config.table_names),
                text=bool(kinds & {"text", "texts"}),
                counts=self._settled("counts"),
                previous=self._vocabulary(name),
                pending_is_train=self._pending_is_train,
                out=self._staged / "vocabulary" / name / f"{self._generation}.parquet",
                compiled=self._file("fit", f"{name}.vocabulary"),
            )
            tasks[name].out.parent.mkdir(parents=True, exist_ok=True)
        outcomes = self._stages.run("fit", tasks)
        ids = {name: outcome["ids"] for name, outcome in zip(tasks, outcomes, strict=True)}
        return ids, {name: task.compiled for name, task in tasks.items()}

    def _hashed(self) -> dict[str, HashedTable]:
        """How many values the hashed tables have met, and how often they collide."""
        found = {}
        for number, name in enumerate(self._config.table_names):
            table = self._config.table(name)
            if table.encoding != "dense":
                assert table.num_embeddings is not None
                names = self._config.table_names
                new = read_bucket(self._settled("counts"), number, len(names))["value"].to_numpy()
                sketch = smallest_hashes(np.concatenate([new, *self._sketches(name)]).view("u8"))
                kept = self._staged / "state" / self._generation / f"sketch-{name}.parquet"
                if self._config.extendable:
                    pq.write_table(pa.table({"hash": sketch}), kept)
                values, rows = estimate_distinct(sketch), table.num_embeddings - 1
                found[name] = HashedTable(
                    values=values,
                    sharing=colliding_share(values, rows),
                    indistinct=colliding_share(values, rows**table.num_hashes),
                )
        return found

    def _sketches(self, table: str) -> list[IntArray]:
        return [pq.read_table(p)["hash"].to_numpy() for p in self._state_files(f"sketch-{table}")]

    def _vocabulary(self, table: str) -> Path | None:
        if self._before is None:
            return None
        return self._folder / "vocabulary" / table / f"g{self._before.generation:04d}.parquet"

    def _schema(self, settled: Sequence[Outcome], num_ids: Mapping[str, int]) -> Schema:
        watched = sum(outcome.get("watched", 0) for outcome in settled)
        mean_ms = sum(outcome.get("watch_time_ms", 0) for outcome in settled) / max(watched, 1)
        if self._earlier is None:
            sample = pa.concat_tables([pq.read_table(path) for path in self._settled("sample")])
            numbers = fit_numbers(self._config, sample)
        else:  # rows that are written already were made with these
            fitted = self._earlier.schema_
            numbers = tuple(f for f in fitted.dense if f.name in self._config.numbers)
            mean_ms = next((t.mean_ms for t in fitted.tasks if t.kind == "watch_time"), mean_ms)
        return make_schema(self._config, num_ids=num_ids, numbers=numbers, mean_watch_ms=mean_ms)

    # ---- stages count, assemble and layout

    def _write(
        self,
        schema: Schema,
        rows: Mapping[str, int],
        compiled: Mapping[str, Path],
        boundary_ms: int,
    ) -> dict[str, list[PartSummary]]:
        answers = self._count(boundary_ms)
        num_buckets = {s: how_many(rows[s], self._sizes.part) for s in SPLITS if rows[s]}
        state = self._staged / "state" / self._generation
        tasks = {
            f"{partition:05d}": Assemble(
                config=self._config,
                schema=schema,
                partition=partition,
                num_partitions=self._num_partitions,
                settled=self._settled("rows")[partition],
                answers=answers,
                compiled=compiled,
                num_buckets=num_buckets,
                rows_per_chunk=self._sizes.chunk,
                boundary_ms=boundary_ms,
                out=self._file("assemble", f"{partition:05d}.rows"),
                state=state / f"rows-{partition:05d}.parquet" if self._config.extendable else None,
            )
            for partition in range(self._num_partitions)
        }
        self._stages.run("assemble", tasks, rows=self._each(sum(rows.values())))
        return self._layout(schema, tuple(task.out for task in tasks.values()), num_buckets, rows)

    def _count(self, boundary_ms: int) -> tuple[tuple[Path, ...], ...]:
        """The answers' files, by group of counters."""
        number, tasks = self._num_counting, {}
        groups = counter_groups(self._config)
        state = self._staged / "state" / self._generation
        for by in groups:
            group = group_name(by)
            sums = self._state_files(group)
            for bucket in range(number):
                name = f"{group}-{bucket:05d}"
                tasks[name] = Count(
                    counters=tuple(n for n, c in self._config.counters.items() if c.by == by),
                    asked=self._settled(group),
                    bucket=bucket,
                    num_buckets=number,
                    num_partitions=self._num_partitions,
                    previous=overlapping(sums, bucket, number) if sums else (),
                    boundary_ms=boundary_ms,
                    out=self._file("count", f"{name}.rows"),
                    state=state / f"{name}.parquet" if self._config.extendable else None,
                )
        self._stages.run("count", tasks)
        outs = [task.out for task in tasks.values()]
        return tuple(tuple(outs[g * number : (g + 1) * number]) for g in range(len(groups)))

    def _layout(
        self,
        schema: Schema,
        assembled: tuple[Path, ...],
        num_buckets: Mapping[str, int],
        num_rows: Mapping[str, int],
    ) -> dict[str, list[PartSummary]]:
        prefix = "part" if self._before is None else f"{self._generation}-part"
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
                seed=self._config.seed,
                row_group_rows=self._config.row_group_rows,
                folder=self._staged,
                file=file,
            )
            for bucket, (split, file) in enumerate(files)
        }
        for split in num_buckets:
            (self._staged / split).mkdir(exist_ok=True)
        parts: dict[str, list[PartSummary]] = {split: [] for split in num_buckets}
        rows = [num_rows[split] // num_buckets[split] for split, _ in files]
        outcomes = self._stages.run("layout", tasks, rows=rows)
        for (split, _), outcome in zip(files, outcomes, strict=True):
            if outcome["rows"]:
                parts[split].append(PartSummary.model_validate(outcome["summary"]))
        return parts

    def _each(self, num_rows: int) -> list[int]:
        """Rows of each partition, about."""
        return [max(num_rows // self._num_partitions, 1)] * self._num_partitions

    # ---- files

    def _file(self, stage: str, name: str) -> Path:
        folder = self._work / stage
        folder.mkdir(exist_ok=True)
        return folder / name

    def _settled(self, name: str) -> tuple[Path, ...]:
        folder = self._file("settle", "")
        return tuple(settled_path(folder, p, name) for p in range(self._num_partitions))

    def _state_files(self, name: str) -> tuple[Path, ...]:
        """What the last ingest kept of a kind."""
        if self._before is None:
            return ()
        folder = self._folder / "state" / f"g{self._before.generation:04d}"
        pattern = re.compile(re.escape(name) + r"(-\d+)?\.parquet")
        return tuple(sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name)))


def _and_others(number: int) -> str:
    return f", nor can {number} others" if number else ""


def _added(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    return dict((Counter(before) + Counter(now)).most_common())
