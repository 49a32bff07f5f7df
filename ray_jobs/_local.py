"""Runs a worker function in plain processes on this machine, for debugging and parity checks.

Workers end with the driver, however it ends: each holds the read end of a pipe (its lifeline) whose
write end only the driver has, and the kernel kills the worker once that is closed.
"""

import contextlib
import ctypes
import fcntl
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch

from infnet_dist.distributed.context import local_process_group
from infnet_dist.errors import UserError
from infnet_dist.io.console import set_up_logging
from infnet_dist.io.ports import free_ports
from ray_jobs._forkserver import start_forkserver
from ray_jobs._worker_errors import (
    BrokenCollectiveError,
    WorkerLostError,
    is_broken_collective,
    root_error,
)

_PR_SET_PDEATHSIG = 1
_GRACE_S = 2.0  # in which other ranks report the same error, before they are ended


def run_local(
    worker: Callable[..., Any],
    arguments: dict[str, Any],
    *,
    num_workers: int,
    use_gpu: bool = False,
    timeout_s: float = 600.0,
    start_method: str = "forkserver",
) -> list[Any]:
    """Run `worker(context, **arguments)` on `num_workers` processes with a process group.

    Args:
        worker: a module-level function (any function with start method "fork").
        arguments: keyword arguments, the same for all ranks.
        num_workers: processes.
        use_gpu: one GPU each.
        timeout_s: how long a collective may take.
        start_method: "forkserver", whose processes share their imports and so restart fast; or
            "fork" where the parent hasn't started threads (tests).

    Returns:
        The result of each rank, in rank order.

    Raises:
        UserError: raised by a worker.
        WorkerLostError: a worker died.
        RuntimeError: any other failure; the worker has printed its traceback.
    """
    methods = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        start_forkserver(worker.__module__)
    port = free_ports(1)[0]
    workers: list[_Worker] = []
    try:
        for rank in range(num_workers):
            settings = (worker, arguments, rank, num_workers, use_gpu, port, timeout_s)
            workers.append(_start(methods, rank, settings))
        return _collect(workers)
    finally:
        deadline = time.monotonic() + _GRACE_S
        for each in workers:
            each.process.join(max(0.0, deadline - time.monotonic()))
        for each in workers:
            each.process.kill()
            each.lifeline.close()  # ends it even if the forkserver, which kill() needs, was lost
            each.process.join(_GRACE_S)


class _Worker(NamedTuple):
    """A worker as the driver sees it: its process, the pipe of its result, its lifeline."""

    process: BaseProcess
    result: Connection
    lifeline: Connection


def _start(methods: BaseContext, rank: int, settings: tuple[Any, ...]) -> _Worker:
    """Start a worker.

    Raises:
        WorkerLostError: it died while it started, or the forkserver did.
    """
    result, sender = methods.Pipe(duplex=False)
    driver_lives, lifeline = methods.Pipe(duplex=False)
    process = methods.Process(  # type: ignore[attr-defined]
        target=_work, args=(sender, driver_lives, *settings), daemon=True
    )
    try:
        process.start()
    except (EOFError, OSError) as error:
        forkserver_lost = isinstance(error, EOFError | ConnectionError)
        reason = "the forkserver was lost" if forkserver_lost else error
        raise WorkerLostError(f"worker {rank} was lost while it started ({reason})") from error
    finally:
        sender.close()
        driver_lives.close()
    return _Worker(process, result, lifeline)


def _collect(workers: list[_Worker]) -> list[Any]:
    """The results in rank order; after a failure, the root error once others had time to report."""
    results: dict[int, Any] = {}
    failures: dict[int, BaseException] = {}
    open_pipes = {rank: each.result for rank, each in enumerate(workers)}
    deadline: float | None = None
    while open_pipes and (deadline is None or time.monotonic() < deadline):
        ready = wait(list(open_pipes.values()), timeout=0.2)
        for rank, pipe in list(open_pipes.items()):
            if pipe not in ready:
                continue
            del open_pipes[rank]
            try:
                kind, value = pickle.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                workers[rank].process.join(_GRACE_S)
                code = workers[rank].process.exitcode
                kind, value = "error", WorkerLostError(f"worker {rank} died (exit code {code})")
            (results if kind == "result" else failures)[rank] = value
        if failures and deadline is None:
            deadline = time.monotonic() + _GRACE_S
    if failures:
        raise root_error(failures)
    return [results[rank] for rank in range(len(workers))]


def _end_with_parents(driver_lives: Connection) -> None:
    """Have the kernel kill this process when its parent or the driver dies, whatever it does then.

    The parent is the forkserver. It outlives a killed driver, as all workers inherit the write end
    of the pipe by which it would notice.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    pipe = driver_lives.fileno()
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if driver_lives.poll():  # the driver ended before
        os._exit(1)


def _work(
    pipe: Connection,
    driver_lives: Connection,
    worker: Callable[..., Any],
    arguments: dict[str, Any],
    rank: int,
    num_workers: int,
    use_gpu: bool,
    port: int,
    timeout_s: float,
) -> None:
    _end_with_parents(driver_lives)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # see start_forkserver
    set_up_worker_logging()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the driver decides
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        with local_process_group(
            rank, num_workers, use_gpu=use_gpu, port=port, timeout_s=timeout_s
        ) as context:
            try:
                _send(pipe, "result", worker(context, **arguments))
            except BaseException as error:  # sent before the process group is destroyed
                _send_error(pipe, rank, error)
    except BaseException as error:
        _send_error(pipe, rank, error)
    finally:
        pipe.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # a forked child must not run its parent's exit handlers


def _send_error(pipe: Connection, rank: int, error: BaseException) -> None:
    if not isinstance(error, UserError):
        traceback.print_exception(error)
        kind = BrokenCollectiveError if is_broken_collective(error) else RuntimeError
        error = kind(f"worker {rank}: {type(error).__name__}: {error}")
    with contextlib.suppress(OSError):  # the driver may not listen any more
        _send(pipe, "error", error)


def _send(pipe: Connection, kind: str, value: object) -> None:
    """Send by plain pickle: multiprocessing's own shares tensors, which end with this process."""
    pipe.send_bytes(pickle.dumps((kind, value)))


def set_up_worker_logging(columns: int | None = None) -> None:
    """Log our lines at INFO to stderr, and of torchrec's and fbgemm's only errors.

    Args:
        columns: as in `set_up_logging`.
    """
    set_up_logging(columns)
    # Deprecations inside torch and torchrec, which their users can't fix.
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("torchrec", "fbgemm_gpu", "torch.distributed", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)
