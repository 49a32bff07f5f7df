"""Sources of training sets, behind one protocol.

A source has a section in `infnet_dist/config/ingest.py` and a module with the function
`make_training_set(config, folder, progress)`, named in `SOURCES`. Logs alone are different: their
sets can be extended, and their tasks run in parallel (`infnet_dist/ingest/logs`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from infnet_dist.config.ingest import IngestConfig
from infnet_dist.config.logs import LogsIngest
from infnet_dist.data.manifest import Manifest
from infnet_dist.ingest.lock import exclusive
from infnet_dist.ingest.logs.stages.runner import Execute, Progress
from infnet_dist.ingest.writing.existing import training_set_is_current
from infnet_dist.io.contrib import load_contrib
from infnet_dist.io.paths import make_writable


class MakeTrainingSet(Protocol):
    """The function of a source."""

    def __call__(self, config: Any, folder: Path, progress: Callable[[int, int], None]) -> Manifest:
        """Make a training set.

        Args:
            config: the section of the source.
            folder: the training set; empty or missing.
            progress: called with (rows done, rows in total).

        Raises:
            UserError: the raw data or the section is invalid; nothing is left in `folder`.
        """
        ...


@dataclass(frozen=True)
class Source:
    """The module of a source.

    Attributes:
        load: imports the module, when a run needs it.
        in_place: whether the set may be in the folder of its raw data. The parent of that folder
            may be read-only, so there is no lock file in it.
    """

    load: Callable[[], ModuleType]
    in_place: bool = False

    @property
    def make_training_set(self) -> MakeTrainingSet:
        """The function of the module."""
        make: MakeTrainingSet = self.load().make_training_set
        return make


SOURCES = {
    "synthetic": Source(partial(import_module, "infnet_dist.ingest.synthetic")),
    "tabular": Source(partial(import_module, "infnet_dist.ingest.tabular.source")),
    "kuairand": Source(partial(load_contrib, "kuairand.source")),
    "petastorm": Source(partial(load_contrib, "petastorm.source"), in_place=True),
}


def update_training_set(
    config: IngestConfig, folder: Path, execute: Execute, progress: Progress
) -> Manifest | None:
    """Make the training set of an `ingest` section, or add new logs to it.

    Args:
        config: the section.
        folder: the training set.
        execute: runs the tasks of logs.
        progress: called with stage, unit, units done and units in total.

    Returns:
        The manifest; None if the set is up to date.

    Raises:
        UserError: the raw data or the section is invalid, or `folder` contains something else.
    """
    if isinstance(config, LogsIngest):
        # It imports torch, which processes that only run tasks don't need.
        from infnet_dist.ingest.logs.pipeline import ingest_logs

        return ingest_logs(config, folder, execute, progress)
    if training_set_is_current(folder, config.model_dump(mode="json")):
        return None
    source = SOURCES[config.source]
    rows = partial(progress, "ingest", "rows")
    if source.in_place:
        return source.make_training_set(config, folder, rows)
    make_writable(folder.parent, "INFNET_ROOT or data.path")
    with exclusive(folder):
        return source.make_training_set(config, folder, rows)
