"""What the stages of one ingest share: its settings, and where its files stand."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import Ingested, Manifest
from infnet_dist.ingest.logs.extend import pending_is_train
from infnet_dist.ingest.logs.sizes import Sizes
from infnet_dist.ingest.logs.splits import Calendar
from infnet_dist.ingest.logs.stages import Stages


@dataclass(frozen=True)
class Workplace:
    """Of one ingest.

    Attributes:
        config: what to make.
        stages: runs the tasks.
        work: folder for what tasks hand to one another.
        folder: the training set.
        earlier: its manifest; None if there is no set yet.
    """

    config: LogsIngest
    stages: Stages
    work: Path
    folder: Path
    earlier: Manifest | None

    @cached_property
    def calendar(self) -> Calendar:
        """Where the splits begin."""
        return Calendar.of(self.config)

    @cached_property
    def sizes(self) -> Sizes:
        """Rows per task."""
        return Sizes.of(self.config)

    @property
    def before(self) -> Ingested | None:
        """What the set has so far."""
        return self.earlier.ingested if self.earlier is not None else None

    @property
    def pending_is_train(self) -> bool:
        """Whether the rows that the set has so far are train now."""
        return self.earlier is not None and pending_is_train(self.config, self.earlier)

    @property
    def number(self) -> int:
        """Of this ingest into the set; the first is 1."""
        return self.before.generation + 1 if self.before else 1

    @property
    def generation(self) -> str:
        """Names what this ingest adds to the set."""
        return f"g{self.number:04d}"

    @property
    def staged(self) -> Path:
        """What will be moved into the set."""
        return self.work / "set"

    @property
    def quarantine(self) -> Path:
        """This ingest's bad rows."""
        return self.staged / "quarantine" / self.generation

    @property
    def state(self) -> Path:
        """What adding later logs will need."""
        return self.staged / "state" / self.generation

    def file(self, stage: str, name: str) -> Path:
        """What a stage hands to later ones; its folder is made."""
        folder = self.work / stage
        folder.mkdir(exist_ok=True)
        return folder / name

    def state_files(self, name: str) -> tuple[Path, ...]:
        """What the last ingest kept of a kind."""
        if self.before is None:
            return ()
        folder = self.folder / "state" / f"g{self.before.generation:04d}"
        pattern = re.compile(re.escape(name) + r"(-\d+)?\.parquet")
        return tuple(sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name)))

    def last_vocabulary(self, table: str) -> Path | None:
        """The one that the last ingest made."""
        if self.before is None:
            return None
        return self.folder / "vocabulary" / table / f"g{self.before.generation:04d}.parquet"
