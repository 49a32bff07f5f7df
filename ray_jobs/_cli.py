"""What all entry points share: arguments, logging, and errors as one last line."""

import argparse
import datetime
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from infnet_dist.config.run import Config, load_config
from infnet_dist.errors import CheckpointError, UserError
from infnet_dist.io.filesystem import Folder
from ray_jobs._cluster import disconnect

log = logging.getLogger("infnet_dist")


class StoppedError(Exception):
    """The job was asked to stop, and did so in good order; `code` is the process's exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def make_parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser with --config and --set."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--config", type=Path, required=True, help="run file, e.g. configs/x.yaml")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY.PATH=VALUE",
        action="append",
        default=[],
        help="override a key of the run file, e.g. --set training.epochs=2; repeatable",
    )
    return parser


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add --launcher."""
    parser.add_argument(
        "--launcher",
        choices=("ray", "local"),
        default="ray",
        help="ray: Ray Train on the cluster of $RAY_ADDRESS or a new one; local: plain processes "
        "on this machine, without Ray (default: ray)",
    )


def read_config(arguments: argparse.Namespace) -> Config:
    """The run file with its overrides."""
    return load_config(arguments.config, arguments.overrides)


def new_run_id() -> str:
    """A run id that sorts by time, e.g. 20261122-111407 (UTC)."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")


def run_id(text: str) -> str:
    """Type of --run-id: a plain folder name, as `run.name`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no plain name of letters, digits, . _ -")
    return text


def positive(text: str) -> int:
    """Type of options that count something."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


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


def run_main(main: Callable[[], None]) -> None:
    """Run an entry point: log to stderr, end with code 1 and the root error as the last line."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    log.setLevel(logging.INFO)
    # torchrec's import makes torch warn of a name that neither of us uses.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    try:
        main()
    except UserError as error:
        _end(f"error: {error}")
    except StoppedError as stopped:
        _end(str(stopped), stopped.code)
    except KeyboardInterrupt:
        _end("error: interrupted", 130)
    except Exception as error:
        traceback.print_exc()
        _end(f"error: {type(error).__name__}: {error}")


def _end(message: str, code: int = 1) -> None:
    sys.stdout.flush()
    disconnect()
    print(message, file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(code)  # Ray's atexit hooks would print after the error, which stays the last line
