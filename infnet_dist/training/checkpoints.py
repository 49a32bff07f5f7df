"""The checkpoints of a running loop: begun one at a time, logged when complete."""

import time

from infnet_dist.checkpoint import CheckpointManifest, CheckpointMetadata, NotFiniteError, Saver
from infnet_dist.distributed import heartbeat
from infnet_dist.errors import CheckpointError
from infnet_dist.io.filesystem import Folder
from infnet_dist.training.run_log import RunLog


class RunCheckpoints:
    """Saves the checkpoints of a run; all ranks make the same calls.

    Args:
        saver: writes them.
        log: of the run.
        saved_step: of the checkpoint that the run resumed from, if any.

    Attributes:
        saved_step: of the last checkpoint that was begun.
    """

    def __init__(self, saver: Saver, log: RunLog, saved_step: int | None) -> None:
        self.saved_step = saved_step
        self._saver = saver
        self._log = log
        self._saved_at = time.monotonic()
        self._stall_s = 0.0

    @property
    def age_s(self) -> float:
        """Seconds since the last checkpoint was begun."""
        return time.monotonic() - self._saved_at

    def folder_of(self, step: int) -> Folder:
        """The folder of a step's checkpoint."""
        return self._saver.folder_of(step)

    def save(self, metadata: CheckpointMetadata) -> float:
        """Begin a checkpoint, once the one before is complete; returns the seconds it took."""
        start = time.perf_counter()
        heartbeat.beat("saving")
        self.finish()
        self._saver.save(metadata)
        self.saved_step, self._saved_at = metadata.progress.step, time.monotonic()
        self._stall_s = time.perf_counter() - start
        return self._stall_s

    def finish(self, *, required: bool = False) -> None:
        """Wait for the checkpoint that is being written; only if `required` is a failure raised."""
        start = time.perf_counter()
        try:
            saved = self._saver.wait()
        except NotFiniteError:
            raise
        except CheckpointError as error:
            if required:
                raise
            self._log.warn("%s; training continues, the next one is due as scheduled", error)
            return
        if saved:
            waited_s = self._stall_s + saved.waited_s + time.perf_counter() - start
            self._log.saved(saved, waited_s)

    def amend(self, manifest: CheckpointManifest, metadata: CheckpointMetadata) -> None:
        """Add an evaluation to the checkpoint that the run resumed from; a failure only warns."""
        heartbeat.beat("saving")
        try:
            self._saver.amend(manifest, metadata)
        except CheckpointError as error:
            self._log.warn("%s; training continues, the checkpoint only lacks its metrics", error)
