"""The publications of a running loop: begun one at a time, logged when complete."""

import logging
import time

from infnet_dist.checkpoint import CheckpointManifest, CheckpointMetadata, NotFiniteError, Saver
from infnet_dist.config.publish import PublishConfig
from infnet_dist.deltas.live.publishing import Publisher
from infnet_dist.deltas.live.tracking import ChangedRows
from infnet_dist.distributed import heartbeat
from infnet_dist.errors import CheckpointError
from infnet_dist.training.run_log import RunLog
from infnet_dist.training.setup import TrainingSetup

log = logging.getLogger("infnet_dist")


class Publications:
    """Publishes nothing; the base of `RunPublications`."""

    wanted = False
    is_due = False
    next_is_full = False
    writes_full = False
    published: str | None = None

    def publish(self, metadata: CheckpointMetadata, run_log: RunLog) -> float:
        """Begin a publication, once the one before is complete; returns the seconds it took."""
        return 0.0

    def finish(self, run_log: RunLog, *, required: bool = False) -> None:
        """Wait for what is being published; only if `required` is a failure raised."""

    def close(self) -> None:
        """Wait for the last publication, complete or failed."""


class RunPublications(Publications):
    """Publishes the model of a run; all ranks make the same calls.

    Args:
        publisher: writes the publications.
        settings: of the run.

    Attributes:
        wanted: whether anything is published.
        is_due: `publish.every_minutes` have passed.
        next_is_full: the next one is a full one, whose copies are those of a checkpoint.
        writes_full: such a one is being written.
        published: identity of the publication since which the tracked rows changed.
    """

    wanted = True

    def __init__(self, publisher: Publisher, settings: PublishConfig) -> None:
        self._publisher = publisher
        self._minutes = settings.every_minutes
        self._published_at = time.monotonic()
        self._stall_s = 0.0

    @property
    def is_due(self) -> bool:  # type: ignore[override]
        """See the class."""
        age_s = time.monotonic() - self._published_at
        return self._minutes is not None and age_s >= 60 * self._minutes

    @property
    def next_is_full(self) -> bool:  # type: ignore[override]
        """See the class."""
        return self._publisher.next_is_full

    @property
    def writes_full(self) -> bool:  # type: ignore[override]
        """See the class."""
        return self._publisher.writes_full

    @property
    def published(self) -> str | None:  # type: ignore[override]
        """See the class."""
        return self._publisher.published

    def publish(self, metadata: CheckpointMetadata, run_log: RunLog) -> float:
        """As in the base class."""
        start = time.perf_counter()
        heartbeat.beat("publishing")
        self.finish(run_log)
        self._publisher.publish(metadata)
        self._published_at = time.monotonic()
        self._stall_s = time.perf_counter() - start
        return self._stall_s

    def finish(self, run_log: RunLog, *, required: bool = False) -> None:
        """As in the base class."""
        start = time.perf_counter()
        try:
            done = self._publisher.wait()
        except NotFiniteError:
            raise
        except CheckpointError as error:
            if required:
                raise
            run_log.warn("%s; training continues, its rows are in the next publication", error)
            return
        if done:
            run_log.published(done, self._stall_s + done.waited_s + time.perf_counter() - start)

    def close(self) -> None:
        """As in the base class."""
        self._publisher.close()


def tracked_rows(setup: TrainingSetup) -> ChangedRows | None:
    """Tracks the rows that change; None if the run publishes nothing."""
    return ChangedRows(setup.sharded) if setup.config.publish.folder else None


def open_publications(
    setup: TrainingSetup,
    rows: ChangedRows | None,
    saver: Saver,
    manifest: CheckpointManifest | None,
) -> Publications:
    """The publications of a run; every rank calls it.

    Args:
        setup: of the run.
        rows: of `tracked_rows`.
        saver: of the run's checkpoints.
        manifest: of the checkpoint that the run resumed from, whose chain is continued.
    """
    if rows is None:
        return Publications()
    config = setup.config
    publisher = Publisher(
        setup.sharded, config, setup.context, rows=rows, snapshots=saver.snapshots
    )
    if manifest is not None and manifest.published is not None:
        folder = saver.folder_of(manifest.progress.step)
        if not publisher.resume(folder, manifest) and setup.context.is_first:
            log.warning(
                "%s no longer has the publication that %s refers to: the next one is full",
                *(config.publish.folder, folder),
            )
    return RunPublications(publisher, config.publish)
