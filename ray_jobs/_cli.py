"""What all entry points share: logging, exit codes, and errors as one last line."""

import argparse
import datetime
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from infnet_dist.config.run import Config, load_config
from infnet_dist.errors import CheckpointError, UserError
from infnet_dist.io.console import end_progress, set_up_logging
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.paths import resolve_place
from ray_jobs._cluster import disconnect

log = logging.getLogger("infnet_dist")


class StoppedError(Exception):
    """The job was asked to stop, and stopped after saving; `code` is the process's exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def read_config(arguments: argparse.Namespace) -> Config:
    """The run file with its overrides."""
    return load_config(arguments.config, arguments.overrides)


def new_run_id() -> str:
    """A run id that sorts by time, e.g. 20261122-111407 (UTC)."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")


def newest_checkpoint(config: Config, run: str | None) -> Folder:
    """The newest complete checkpoint of a run of `run.name`, or of all its runs.

    Raises:
        CheckpointError: there is none.
    """
    from infnet_dist.checkpoint import MANIFEST, newest  # brings torch, which not all jobs need
    from infnet_dist.training.run_folder import checkpoint_folder

    runs = config.run.folder / config.run.name
    all_runs = Folder(config.checkpoint.folder or config.run.folder) / config.run.name
    names = [run] if run else sorted(n for n, size in all_runs.entries().items() if size is None)
    found = [newest(checkpoint_folder(config, runs / name)) for name in names]
    complete = [folder for folder in found if folder is not None]
    if not complete:
        where = checkpoint_folder(config, runs / run) if run else all_runs
        raise CheckpointError(f"no complete checkpoint in {where}; train first")
    return max(complete, key=lambda folder: folder.modified_ns(MANIFEST))


def checkpoint_of(config: Config, arguments: argparse.Namespace) -> Folder:
    """The checkpoint of --checkpoint, or the newest of a run.

    Raises:
        CheckpointError: there is none, or --checkpoint is a folder of several.
    """
    from infnet_dist.checkpoint.discovery import open_checkpoint

    if not arguments.checkpoint:
        return newest_checkpoint(config, arguments.run_id)
    try:
        return open_checkpoint(resolve_place(arguments.checkpoint))[0]
    except CheckpointError as error:
        raise CheckpointError(f"{error}; --run-id takes the newest of a run") from None


def run_main(
    main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None
) -> None:
    """Run an entry point as this process, and end it with the exit code unless that is 0.

    Args:
        main: takes the arguments.
        argv: the arguments; None: those of this process.
    """
    set_up_logging()
    # The import of torchrec makes torch warn about a name that neither of us uses.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    if code := exit_code(main, argv):
        sys.stdout.flush()
        logging.shutdown()
        os._exit(code)  # Ray's atexit hooks would print after the error, which stays the last line


def exit_code(
    main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None
) -> int:
    """Run an entry point; the exit code. The root error is the last line on stderr, with code 1."""
    try:
        return main(argv) or 0
    except UserError as error:
        return _ended(f"error: {error}")
    except StoppedError as stopped:
        return _ended(str(stopped), stopped.code)
    except KeyboardInterrupt:
        return _ended("error: interrupted", 130)
    except Exception as error:
        end_progress()
        traceback.print_exc()
        return _ended(f"error: {type(error).__name__}: {error}")


def _ended(message: str, code: int = 1) -> int:
    sys.stdout.flush()
    disconnect()
    end_progress()
    print(message, file=sys.stderr, flush=True)
    return code
