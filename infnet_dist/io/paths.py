"""Resolves relative paths of a run file against $INFNET_ROOT; checks that folders are writable."""

import os
import tempfile
from pathlib import Path

from infnet_dist.errors import ConfigError

ROOT_VARIABLE = "INFNET_ROOT"


def resolve_path(path: Path) -> Path:
    """Make a path of a run file absolute: relative ones are resolved against $INFNET_ROOT.

    Without the variable they are resolved against the current folder, except in a submitted Ray
    job, which runs in a temporary copy of the working folder.

    Raises:
        ConfigError: the path is relative in a Ray job without $INFNET_ROOT, or begins with ~.
    """
    if path.is_absolute():
        return path
    if str(path).startswith("~"):
        raise ConfigError(f"path {str(path)!r}: ~ isn't expanded; write the full path")
    root = os.environ.get(ROOT_VARIABLE)
    if root is None and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise ConfigError(
            f"path {str(path)!r} is relative, but a Ray job runs in a temporary copy of the "
            f"working folder; make it absolute, or submit with --runtime-env-json "
            f'\'{{"env_vars": {{"{ROOT_VARIABLE}": "/where/data/and/runs/are"}}}}\''
        )
    return Path(root or Path.cwd()).resolve() / path


def resolve_place(place: str) -> str:
    """A path made absolute as in `resolve_path`; a URL is unchanged."""
    return place if "://" in place else str(resolve_path(Path(place)))


def make_writable(folder: Path, keys: str) -> None:
    """Create a folder if necessary and check that it is writable, before the work starts.

    Args:
        folder: the folder.
        keys: settings that choose the folder, for the message.

    Raises:
        ConfigError: it can't be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"x")  # on a full disk an empty file can still be created
    except OSError as error:
        raise ConfigError(
            f"can't write to the folder {folder} ({error.strerror or error}); set {keys} to a "
            "writable place"
        ) from None
