"""Stages clean and settle: the logs' rows, cleaned, by partition of their users, each once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infnet_dist.ingest.listing import Listing
from infnet_dist.ingest.logs.context import Workplace
from infnet_dist.ingest.logs.deduplicate import Settle, settled_path
from infnet_dist.ingest.logs.fragments import fragments, raise_for, state_fragments
from infnet_dist.ingest.logs.id_types import check_spellings, find_id_types
from infnet_dist.ingest.logs.partition import Scatter
from infnet_dist.ingest.logs.rules import Rules, make_rules
from infnet_dist.ingest.logs.sizes import how_many, power_of_two
from infnet_dist.ingest.logs.source import Fragment
from infnet_dist.ingest.logs.stages import Outcome

_SAMPLE_ROWS = 1_000_000  # from which boundaries are fitted
_LONG_AGO_MS = -(2**62)


@dataclass(frozen=True)
class Cleaned:
    """What stage clean made.

    Attributes:
        fragments: that could be read.
        outcomes: of each.
        unreadable: the reason by file, of those that couldn't.
        num_partitions: of users.
    """

    fragments: list[Fragment]
    outcomes: list[Outcome]
    unreadable: dict[str, str]
    num_partitions: int

    @property
    def rows(self) -> int:
        """Good new rows."""
        return sum(outcome["rows"] for outcome in self.outcomes)

    @property
    def read(self) -> int:
        """New rows, bad ones included."""
        return sum(outcome.get("read", 0) for outcome in self.outcomes)

    @property
    def unmatched(self) -> Counter[str]:
        """By join, new rows that it has no row for."""
        return sum((Counter[str](o.get("unmatched", {})) for o in self.outcomes), Counter[str]())

    @property
    def is_empty(self) -> bool:
        """Whether there is no new row, not even a bad one."""
        return not self.read

    @property
    def times_ms(self) -> tuple[int, int]:
        """Of the first row and of the last."""
        times = [outcome["times"] for outcome in self.outcomes if outcome.get("times")]
        return min(t[0] for t in times), max(t[1] for t in times)


@dataclass(frozen=True)
class Settled:
    """What stage settle made.

    Attributes:
        outcomes: by partition.
        num_counting: tasks of a group of counters.
        folder: of the files.
    """

    outcomes: list[Outcome]
    num_counting: int
    folder: Path

    @property
    def num_partitions(self) -> int:
        """Of users."""
        return len(self.outcomes)

    def files(self, name: str) -> tuple[Path, ...]:
        """Of a kind, by partition."""
        return tuple(settled_path(self.folder, p, name) for p in range(self.num_partitions))


def find_fragments(place: Workplace, new: Listing) -> tuple[list[Fragment], dict[str, str]]:
    """What to read, the set's state first; and files that can't be, with the reason.

    Raises:
        DataError: one can't be, and `ingest.skip_bad_files` is off.
    """
    state = state_fragments(place.state_files("rows"))
    found, bad = fragments(place.config, new.files, first_number=len(state))
    unreadable = new.unreadable | {entry.file.path: entry.reason for entry in bad}
    if not place.config.skip_bad_files:
        raise_for(unreadable)
    return [*state, *found] if found else [], unreadable


def find_rules(place: Workplace, found: Sequence[Fragment]) -> Rules:
    """What rows must be like, by the config and by what all files hold."""
    last_ms = place.before.last_time_ms if place.before else None
    return make_rules(place.config, find_id_types(place, found), last_ms)


def clean(
    place: Workplace, found: Sequence[Fragment], rules: Rules, unreadable: dict[str, str]
) -> Cleaned:
    """Stage clean; files that turn out to be unreadable join those that are known as such.

    Raises:
        DataError: a column can't hold what it should, or ids are written in two ways.
    """
    num_partitions = how_many(sum(f.rows for f in found), place.sizes.partition)
    tasks = {
        f"{f.number:05d}": Scatter(
            config=place.config,
            rules=rules,
            fragment=f,
            num_partitions=num_partitions,
            out=_piece(place, f),
            quarantine=place.quarantine / f"{f.number:05d}.parquet",
        )
        for f in found
    }
    outcomes = place.stages.run("clean", tasks, rows=[fragment.rows for fragment in found])
    bad = {
        fragment.file.path: outcome["unreadable"]
        for fragment, outcome in zip(found, outcomes, strict=True)
        if "unreadable" in outcome
    }
    unreadable = unreadable | bad
    pairs = zip(found, outcomes, strict=True)
    read = [(f, outcome) for f, outcome in pairs if f.file.path not in unreadable]
    written = [(f.file.path, outcome["spellings"]) for f, outcome in read]
    check_spellings(place.config, written)
    return Cleaned(
        fragments=[f for f, _ in read],
        outcomes=[outcome for _, outcome in read],
        unreadable=unreadable,
        num_partitions=num_partitions,
    )


def settle(place: Workplace, cleaned: Cleaned) -> Settled:
    """Stage settle."""
    num_partitions, num_rows = cleaned.num_partitions, cleaned.rows
    num_counting = power_of_two(how_many(num_rows, place.sizes.counting))
    by_number = {fragment.number: fragment.file.path for fragment in cleaned.fragments}
    paths = tuple(by_number.get(i, "") for i in range(max(by_number) + 1))
    tasks = {
        f"{partition:05d}": Settle(
            config=place.config,
            partition=partition,
            num_partitions=num_partitions,
            num_counting=num_counting,
            pieces=tuple(_piece(place, fragment) for fragment in cleaned.fragments),
            paths=paths,
            sample_share=_SAMPLE_ROWS / max(num_rows, 1),
            events_from_ms=place.before.boundary_ms if place.before else _LONG_AGO_MS,
            out=place.file("settle", ""),
            quarantine=place.quarantine / f"duplicates-{partition:05d}.parquet",
        )
        for partition in range(num_partitions)
    }
    each = [max(num_rows // num_partitions, 1)] * num_partitions
    outcomes = place.stages.run("settle", tasks, rows=each)
    return Settled(outcomes, num_counting, place.file("settle", ""))


def _piece(place: Workplace, fragment: Fragment) -> Path:
    return place.file("clean", f"{fragment.number:05d}.rows")
