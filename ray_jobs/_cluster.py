"""The one place that connects to Ray: to the cluster of $RAY_ADDRESS, or to one started here.

Without that variable, which a submitted job has, no Ray that happens to run on this machine is
used, as it may be another user's. A Ray is started that listens on loopback alone, asks for a token
of its own, has no dashboard, keeps its files in a temporary folder, and ends with this process.
"""

import atexit
import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from infnet_dist.errors import UserError
from infnet_dist.io.console import bar_hidden, take_progress
from ray_jobs._auth import token_environ, write_token
from ray_jobs._ray_internals import filter_worker_lines, keep_to_loopback

_own_folder: Path | None = None


def connect() -> None:
    """Connect to Ray, unless this process is connected already.

    Raises:
        UserError: the cluster doesn't answer, or asks for another token.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    disconnect()  # removes the files of an own Ray that has ended
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else every line appears twice
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_DISABLE_WORKER_LOG_PREFIX", "1")  # and its colour
    if address := os.environ.get("RAY_ADDRESS"):
        _join(address)
    else:
        _start_own()
    if sys.stderr.isatty():
        filter_worker_lines(take_progress, bar_hidden)


def is_own() -> bool:
    """Whether the Ray was started here, and ends with this process."""
    return _own_folder is not None


def submission_id() -> str | None:
    """The id of the submitted Ray job whose driver this is; None outside of one."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    found = (config.get("metadata") or {}).get("job_submission_id")
    return None if found is None else str(found)


def disconnect() -> None:
    """End the Ray that was started here, and remove its files; a cluster is left alone."""
    global _own_folder
    if _own_folder is None:
        return
    import ray

    ray.shutdown()
    shutil.rmtree(_own_folder, ignore_errors=True)
    _own_folder = None


def _join(address: str) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    # Ray's actors, unlike its drivers, otherwise look for a Ray among this machine's processes, and
    # give up if there are several: then nobody frees the resources of a lost controller.
    environ = {} if address == "auto" else {"RAY_ADDRESS": address}
    try:
        ray.init(logging_level=logging.WARNING, runtime_env={"env_vars": environ})
    except (AuthenticationError, ConnectionError) as error:
        reason = str(error).splitlines()[0].partition(" Note: ")[0]
        raise UserError(
            f"can't connect to the Ray cluster at RAY_ADDRESS={address} ({reason}); if it asks for "
            "a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file with its token"
        ) from error


def _start_own() -> None:
    folder = _make_own_folder()
    os.environ.update(token_environ(write_token(folder)))  # else Ray keeps one in the user's home
    # Ray sets the mode to "token" by itself, with a warning. A mode that is set before has no
    # effect on a Ray module that is imported already.
    del os.environ["RAY_AUTH_MODE"]
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    keep_to_loopback()
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder),
    )


def _make_own_folder() -> Path:
    global _own_folder
    # Short and under /tmp: Ray's socket paths may have 107 characters in all.
    _own_folder = Path(tempfile.mkdtemp(prefix="inf-", dir="/tmp"))
    atexit.register(disconnect)
    return _own_folder
