"""Notice that a worker of Ray is about to be lost: SIGTERM, or a node that is being drained.

All workers then save and stop, as they do at Ctrl-C, and the supervisor restarts them elsewhere.
"""

import signal
import threading
import time
from types import FrameType

from ray_jobs._ray_internals import preemption_info

_sigterm = threading.Event()  # this worker received one


def take_sigterm() -> None:
    """Take the first SIGTERM to this process for a notice; a second one has Ray's effect.

    Ray would end the worker. Only the main thread may call it, and Ray Train trains in another.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # a later Ray runs it elsewhere: a worker that gets SIGTERM is lost, as any other
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        _sigterm.set()

    signal.signal(signal.SIGTERM, handle)


def notice(rank: int) -> str:
    """Why this or another worker is about to be lost, as text; empty without a notice.

    Only rank 0 reports nodes that are being drained, since Ray tells all workers of them.
    """
    if _sigterm.is_set():
        return f"worker {rank} received SIGTERM"
    info = preemption_info() if rank == 0 else None
    if info is None:
        return ""
    ranks = ", ".join(map(str, info.preempted_ranks))
    left_s = (info.deadline_ms or 0) / 1000 - time.time()
    deadline = f", and is gone in {max(0.0, left_s):.0f} s" if info.deadline_ms else ""
    return f"the node of worker {ranks} is being drained (preempted){deadline}"
