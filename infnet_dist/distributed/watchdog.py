"""Ends a run that makes no progress, and names the rank that hangs and its activity.

Workers train in lockstep: when one hangs, all others wait for it in a collective, for minutes or
hours, without a reason in any log. So a thread of each rank publishes the rank's heartbeat in the
store that the process group was made with. Ranks 0 and 1 watch: once *no* rank has made progress
for `timeout_s`, the one that is behind is named, all print their stacks, and all processes end.
"""

import faulthandler
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from infnet_dist.distributed import heartbeat
from infnet_dist.distributed.context import WorkerContext

EXIT_CODE = 75  # EX_TEMPFAIL: a restart may help
_REPORT_S = 1.0
_VERDICT = "verdict"
_WATCHERS = (0, 1)
log = logging.getLogger("infnet_dist")


class RankStatus(NamedTuple):
    """The progress of a rank, as its watchdog thread publishes it.

    Attributes:
        reports: published so far; constant while the whole process is stopped.
        beats: of its heartbeat: the progress counter.
        step: the training step that it is in.
        activity: of its main thread.
        collectives: that it has begun.
    """

    reports: int
    beats: int
    step: int
    activity: str
    collectives: int


class Watchdog:
    """Context manager, on every rank, around code that should make progress.

    Args:
        context: this worker.
        timeout_s: seconds without any progress after which the run ends.
        verdict_file: file for the verdict, which the launcher reports.
    """

    def __init__(self, context: WorkerContext, timeout_s: float, verdict_file: Path | None) -> None:
        self._context = context
        self._timeout_s = timeout_s
        self._verdict_file = verdict_file
        self._ended = threading.Event()
        store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        self._store = dist.PrefixStore("watchdog", store)
        self._answered_at = time.monotonic()

    def __enter__(self) -> "Watchdog":
        heartbeat.beat("start", step=0)
        self._publish(0)
        self._context.barrier()  # all ranks have published a status
        for loop in (self._watch, self._wait_for_store):
            threading.Thread(target=loop, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        """Publish this rank's status; on the watching ranks, check whether any rank progresses."""
        last: list[RankStatus] = []
        progress_at = time.monotonic()
        reports = 0
        while not self._ended.wait(_REPORT_S):
            try:
                reports += 1
                self._publish(reports)
                if self._store.check([_VERDICT]):
                    self._end(self._store.get(_VERDICT).decode())
                now = self._all_statuses() if self._context.rank in _WATCHERS else []
                self._answered_at = time.monotonic()
                if [status.beats for status in now] != [status.beats for status in last]:
                    last, progress_at = now, time.monotonic()
                elif now and time.monotonic() - progress_at > self._timeout_s:
                    verdict = verdict_of(dict(enumerate(last)), dict(enumerate(now)))
                    self._store.set(_VERDICT, f"{verdict}; {self._no_progress}")
            except RuntimeError:  # rank 0 and its store are gone; the main thread gets an error too
                self._ended.set()

    def _wait_for_store(self) -> None:
        """End this process if the store, which rank 0 holds, no longer answers."""
        while not self._ended.wait(_REPORT_S):
            if time.monotonic() - self._answered_at > self._timeout_s + _REPORT_S:
                _, step, _ = heartbeat.current()
                self._end(
                    f"rank 0 hangs in step {step}: its process is stopped or cut off; "
                    f"{self._no_progress}"
                )

    @property
    def _no_progress(self) -> str:
        return f"no progress for {self._timeout_s:g} s"

    def _publish(self, reports: int) -> None:
        group = self._context.group or dist.group.WORLD
        assert group is not None
        begun = group._get_sequence_number_for_group()  # type: ignore[attr-defined]
        status = RankStatus(reports, *heartbeat.current(), collectives=begun)
        self._store.set(str(self._context.rank), json.dumps(status))

    def _all_statuses(self) -> list[RankStatus]:
        keys = [str(rank) for rank in range(self._context.world_size)]
        return [RankStatus(*json.loads(value)) for value in self._store.multi_get(keys)]

    def _end(self, verdict: str) -> None:
        """Print this process's stacks, write the verdict for the launcher, and exit."""
        log.error("%s; this is rank %s:", verdict, self._context.rank)
        faulthandler.dump_traceback(2, all_threads=True)
        if self._verdict_file is not None:
            with suppress(OSError), self._verdict_file.open("x") as file:  # the first rank
                file.write(verdict)
        if self._context.rank == 0:
            time.sleep(2 * _REPORT_S)  # the others read the verdict from the store that it holds
        os._exit(EXIT_CODE)


def verdict_of(before: Mapping[int, RankStatus], now: Mapping[int, RankStatus]) -> str:
    """Name the rank that hangs, by the statuses at two times without progress between them.

    A rank whose thread no longer publishes is stopped. Otherwise the rank that hangs hasn't begun a
    collective in which the others wait.
    """
    stopped = [rank for rank, status in now.items() if status.reports == before[rank].reports]
    if stopped and len(stopped) < len(now):
        step = max(status.step for status in now.values())  # the stopped rank's status is old
        return f"{_ranks(stopped)} hangs in step {step}: its process is stopped or cut off"
    least = min((status.step, status.collectives) for status in now.values())
    behind = [rank for rank, status in now.items() if (status.step, status.collectives) == least]
    where = f"in step {now[behind[0]].step} ({now[behind[0]].activity})"
    if len(behind) == len(now):
        return f"all ranks hang {where}, at the same place"
    return f"{_ranks(behind)} hangs {where}: the others wait for it in a collective"


def _ranks(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
