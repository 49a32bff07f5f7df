"""Runs the head of a Ray, and leaves no process and no file of it behind.

    python _ray_guard.py TEMP_DIR COMMAND...

`ray stop` would end every Ray on the machine. This process instead ends its own descendants, no
matter how they were orphaned, once the head ends or standard input closes. The latter happens
whenever the process that started the guard ends, even if it is killed.
"""

import ctypes
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

_END_GRACE_S = 2.0
_PR_SET_CHILD_SUBREAPER = 36


def guard(temp_dir: Path, command: Sequence[str]) -> int:
    """Run the head until it ends or standard input closes, then clean up; returns an exit code."""
    with suppress(OSError, AttributeError):  # Linux only: orphans below become our children
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    log = temp_dir / "head.log"
    with log.open("w") as out:
        head = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    while head.poll() is None and not select.select([sys.stdin], [], [], 0.5)[0]:
        pass
    code = head.poll()
    if code is not None:
        output = log.read_text(errors="replace")[-4000:]
        print(f"ray start ended with exit code {code}:\n{output}", file=sys.stderr, flush=True)
    _end_children()
    shutil.rmtree(temp_dir, ignore_errors=True)
    return 0 if code is None else 1


def _end_children() -> None:
    """Terminate all descendants of this process; kill those that remain after a grace period."""
    me = psutil.Process()
    deadline = time.monotonic() + _END_GRACE_S
    asked = set()
    while children := me.children(recursive=True):
        for child in children:
            with suppress(psutil.Error):
                if time.monotonic() > deadline:
                    child.kill()
                elif child not in asked:
                    child.terminate()
                    asked.add(child)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(guard(Path(sys.argv[1]), sys.argv[2:]))
