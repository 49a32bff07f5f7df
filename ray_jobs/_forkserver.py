"""Starts the process that local workers are forked from.

With the standard library alone, so that it can be started before anything slow is imported.
"""

import os
import signal
import tempfile
import threading
from multiprocessing import forkserver, resource_tracker, util

# Bytes that the path of a Unix socket may have, and that multiprocessing adds to its folder.
_SOCKET_PATH = 107
_SOCKET_NAME = len("/pymp-12345678/listener-12345678")
_starting = threading.Lock()  # threads start trials


def start_forkserver(module: str) -> None:
    """Start the forkserver unless it runs; it imports `module` once for all workers.

    This process and the workers handle a SIGTERM to all processes of a job. The forkserver must
    ignore it, as the workers would die with it: it inherits a mask that blocks the signal.
    """
    with _starting:
        _use_a_short_temp_folder()
        forkserver.set_forkserver_preload([module])
        resource_tracker.ensure_running()  # the forkserver would start it, and unblock SIGTERM
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _use_a_short_temp_folder() -> None:
    """Let multiprocessing put its sockets in /tmp if $TMPDIR is too long for their paths."""
    if len(os.fsencode(tempfile.gettempdir())) + _SOCKET_NAME <= _SOCKET_PATH:
        return
    before, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        util.get_temp_dir()  # makes the folder, which is removed at exit
    finally:
        tempfile.tempdir = before
