"""Relative paths of a run file are resolved against $INFNET_ROOT; can a folder be written to?"""

import os
import tempfile
from pathlib import Path

from infnet_dist.errors import ConfigError

ROOT_VARIABLE = "INFNET_ROOT"


def resolve_path(path: Path) -> Path:
    """Make a path of a run file absolute: relative ones are resolved against $INFNET_ROOT.

    Without the variable they are resolved against the current folder, except in a submitted Ray
    job: that runs in a throw-away copy of the working folder.

    Raises:
        ConfigError: a relative path in a Ray job without $INFNET_ROOT, or one that begins with ~.
    """
    if path.is_absolute():
        return path
    if str(path).startswith("~"):
        raise ConfigError(f"path {str(path)!r}: ~ isn't expanded; write the folder out")
    root = os.environ.get(ROOT_VARIABLE)
    if root is None and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise ConfigError(
            f"path {str(path)!r} is relative, and a Ray job runs in a throw-away copy of the "
            f"working folder; make it absolute, or submit with --runtime-env-json "
            f'\'{{"env_vars": {{"{ROOT_VARIABLE}": "/where/data/and/runs/are"}}}}\''
        )
    return Path(root or Path.cwd()).resolve() / path


def resolve_place(place: str) -> str:
    """A path made absolute as in `resolve_path`, a URL as it is."""
    return place if "://" in place else str(resolve_path(Path(place)))


def make_writable(folder: Path, keys: str) -> None:
    """Make a folder unless it is there, and try to write to it: before work that would be lost.

    Args:
        folder: the folder.
        keys: what the user may set to choose another one, for the error.

    Raises:
        ConfigError: it can't be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"x")  # a full disk takes the file alone
    except OSError as error:
        raise ConfigError(
            f"can't write to the folder {folder} ({error.strerror or error}); set {keys} to a "
            "place that can be written to"
        ) from None
