"""Context of an ingest of logs: its settings and the paths of its files."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import Ingested, Manifest
from infnet_dist.ingest.logs.extend import pending_is_train
from infnet_dist.ingest.logs.splits import Calendar
from infnet_dist.ingest.logs.stages.runner import StageRunner
from infnet_dist.ingest.logs.task_sizes import TaskSizes
from infnet_dist.ingest.writing.transforms import transforms_folder


@dataclass(frozen=True)
class IngestContext:
    """Settings and paths that all stages of one ingest share.

    Attributes:
        config: the `ingest` section.
        runner: runs the tasks of a stage.
        work: folder of the files that tasks exchange.
        folder: the training set.
        earlier: manifest of the existing training set; None for a new one.
    """

    config: LogsIngest
    runner: StageRunner
    work: Path
    folder: Path
    earlier: Manifest | None

    @cached_property
    def calendar(self) -> Calendar:
        """Time ranges of the splits."""
        return Calendar.of(self.config)

    @cached_property
    def sizes(self) -> TaskSizes:
        """Rows per task."""
        return TaskSizes.of(self.config)

    @property
    def ingested(self) -> Ingested | None:
        """What the existing training set contains."""
        return self.earlier.ingested if self.earlier is not None else None

    @property
    def pending_is_train(self) -> bool:
        """Whether all rows of the existing training set belong to train now."""
        return self.earlier is not None and pending_is_train(self.config, self.earlier)

    @property
    def generation(self) -> int:
        """Number of this ingest; the one that makes the set is 1."""
        return self.ingested.generation + 1 if self.ingested else 1

    @property
    def generation_name(self) -> str:
        """Name of the files that this ingest adds to the set."""
        return f"g{self.generation:04d}"

    @property
    def staged(self) -> Path:
        """Folder of the files that are moved into the set at the end."""
        return self.work / "set"

    @property
    def quarantine(self) -> Path:
        """Folder of the bad rows of this ingest."""
        return self.staged / "quarantine" / self.generation_name

    @property
    def state(self) -> Path:
        """Folder of the state that later ingests need."""
        return self.staged / "state" / self.generation_name

    @property
    def transforms(self) -> Path:
        """Folder of the transforms of this ingest: `transforms.json` and key maps."""
        return transforms_folder(self.staged, self.generation)

    def file(self, stage: str, name: str) -> Path:
        """A file that a stage writes for later ones; its folder is created."""
        folder = self.work / stage
        folder.mkdir(exist_ok=True)
        return folder / name

    def state_files(self, name: str) -> tuple[Path, ...]:
        """State files of one kind that the previous ingest kept."""
        if self.ingested is None:
            return ()
        folder = self.folder / "state" / f"g{self.ingested.generation:04d}"
        pattern = re.compile(re.escape(name) + r"(-\d+)?\.parquet")
        return tuple(sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name)))

    def last_vocabulary(self, table: str) -> Path | None:
        """The vocabulary file of a table that the previous ingest made."""
        if self.ingested is None:
            return None
        return self.folder / "vocabulary" / table / f"g{self.ingested.generation:04d}.parquet"
