"""The one place that connects to Ray: to the cluster of $RAY_ADDRESS, or to one started here.

A job that was submitted to a cluster has the variable. Without it nothing that happens to run on
this machine is used, be it another user's: a Ray is started that listens on loopback alone, asks
for a token of its own, has no dashboard, keeps its files in a temporary folder, and ends with this
process.
"""

import atexit
import json
import logging
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

_own_folder: Path | None = None


def connect() -> None:
    """Connect to Ray, unless that was done before."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    disconnect()  # what is left of one that has ended
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else every line appears twice
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    if os.environ.get("RAY_ADDRESS"):
        import ray

        ray.init(logging_level=logging.WARNING)
        return
    folder = _make_folder()
    import ray
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False  # should somebody have imported ray before
    ray.init(
        address="local",
        include_dashboard=False,
        logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder),
    )


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


def _make_folder() -> Path:
    """The folder for a Ray of our own, and the variables that Ray reads when it is imported."""
    global _own_folder
    # Short and under /tmp: Ray's socket paths may have 107 characters in all.
    _own_folder = folder = Path(tempfile.mkdtemp(prefix="inf-", dir="/tmp"))
    atexit.register(disconnect)
    # Despite its name: without it, Ray listens on the machine's outer address (_local_ray.py).
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray asks for a token by default, and would keep it in the user's home.
    token = folder / "token"
    token.write_text(secrets.token_hex(32))  # in a folder that other users can't enter
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it tells of that
    return folder
