"""Failures of a checkpoint's storage: retries, the error to raise, and a probe before training."""

import logging
from collections.abc import Callable
from typing import TypeVar

import tenacity

from infnet_dist.config.run import Config
from infnet_dist.distributed import heartbeat
from infnet_dist.errors import CheckpointError, UserError
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.retries import one_line, retrying

T = TypeVar("T")
_PROBE = "probe"
# Of a wrong place, which waiting doesn't fix.
_LASTING = (
    UserError,
    FileExistsError,
    FileNotFoundError,
    NotADirectoryError,
    PermissionError,
)
log = logging.getLogger("infnet_dist")


def check_writable(folder: Folder, config: Config, *, resumed: bool) -> None:
    """Check before training, rather than at the first save, that `folder` can be written to.

    Failures are retried, as writes are, unless the place itself is wrong. A `resumed` run only
    warns, and at once: it could write before, and its saves are retried.

    Raises:
        CheckpointError: it can't be written to.
    """
    seconds = 0.0 if resumed else config.checkpoint.retry_s
    seconds = min(seconds, config.scaling.timeout_s / 2)  # the other ranks wait
    put = retrying_writes(seconds, _LASTING)
    try:
        as_checkpoint_error(folder, lambda: put(folder.put, _PROBE, b"can this be written?"))
    except CheckpointError as error:
        if not resumed:
            raise
        log.warning("%s; training continues", error)
        return
    try:
        folder.delete(_PROBE)
    except Exception as error:
        log.warning("can't delete %s (%s)", folder / _PROBE, one_line(error))


def retrying_writes(
    seconds: float, lasting: tuple[type[Exception], ...], longest_wait_s: float = 10.0
) -> tenacity.Retrying:
    """Retries after any error but the `lasting` ones, with a warning and a heartbeat."""

    def warn(error: BaseException, wait_s: float) -> None:
        heartbeat.beat()
        log.warning("checkpoint: can't write (%s); retrying in %.1f s", one_line(error), wait_s)

    return retrying(
        seconds,
        lambda error: not isinstance(error, lasting),
        longest_wait_s=longest_wait_s,
        before_retry=warn,
    )


def as_checkpoint_error(folder: Folder, action: Callable[[], T]) -> T:
    """Run `action`; any error becomes a CheckpointError."""
    try:
        return action()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"can't save to {folder}: {one_line(error)}; earlier checkpoints are untouched"
        ) from error
