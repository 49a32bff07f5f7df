"""Ends a run in which nothing moves any more, and says which rank hangs, and in what.

Workers train in step: when one hangs, all others wait for it in a collective, for minutes or hours,
and none of them can tell why. So each rank has a thread that tells the others, by the store that
the process group was made with, how far it has come. Ranks 0 and 1 watch: once *no* rank has moved
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

from infnet_dist.distributed.context import WorkerContext

EXIT_CODE = 75  # EX_TEMPFAIL: starting again may help
_TELL_S = 1.0
_VERDICT = "verdict"
_WATCHERS = (0, 1)
log = logging.getLogger("infnet_dist")


class Beat(NamedTuple):
    """How far a rank has come.

    Attributes:
        told: how often its thread has told; stands still if the whole process is stopped.
        moves: how often its main thread said that it goes on.
        step: the step that it makes or made last.
        doing: in words.
        collectives: that it has begun.
    """

    told: int
    moves: int
    step: int
    doing: str
    collectives: int


class Watchdog:
    """Context manager, on every rank, around what should make progress.

    Args:
        context: this worker.
        timeout_s: seconds without any progress after which the run ends.
        last_words: file for the verdict, which the launcher shows.
    """

    def __init__(self, context: WorkerContext, timeout_s: float, last_words: Path | None) -> None:
        self._context = context
        self._timeout_s = timeout_s
        self._last_words = last_words
        self._moves, self._step, self._doing = 0, 0, "start"
        self._ended = threading.Event()
        store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        self._store = dist.PrefixStore("watchdog", store)
        self._answered_at = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self._tell(0)
        self._context.barrier()  # all have told once
        for loop in (self._watch, self._wait_for_store):
            threading.Thread(target=loop, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def moves(self, doing: str, step: int | None = None) -> None:
        """The main thread goes on to do this."""
        self._doing = doing
        self._step = self._step if step is None else step
        self._moves += 1

    def moved(self) -> None:
        """Another thread, for which the main thread may be waiting, goes on."""
        self._moves += 1

    def _watch(self) -> None:
        """Tell the others; on the watching ranks, look whether any of them moves."""
        seen: list[Beat] = []
        moved_at = time.monotonic()
        told = 0
        while not self._ended.wait(_TELL_S):
            try:
                told += 1
                self._tell(told)
                if self._store.check([_VERDICT]):
                    self._end(self._store.get(_VERDICT).decode())
                beats = self._look() if self._context.rank in _WATCHERS else []
                self._answered_at = time.monotonic()
                if [beat.moves for beat in beats] != [beat.moves for beat in seen]:
                    seen, moved_at = beats, time.monotonic()
                elif beats and time.monotonic() - moved_at > self._timeout_s:
                    verdict = verdict_of(dict(enumerate(seen)), dict(enumerate(beats)))
                    self._store.set(_VERDICT, f"{verdict}; nothing moved for {self._timeout_s:g} s")
            except RuntimeError:  # rank 0 and its store are gone: the main thread hears of it too
                self._ended.set()

    def _wait_for_store(self) -> None:
        """End this process if the store, which rank 0 holds, doesn't answer any more."""
        while not self._ended.wait(_TELL_S):
            if time.monotonic() - self._answered_at > self._timeout_s + _TELL_S:
                self._end(
                    f"rank 0 hangs in step {self._step}: its process is stopped or cut off; "
                    f"nothing moved for {self._timeout_s:g} s"
                )

    def _tell(self, told: int) -> None:
        group = self._context.group or dist.group.WORLD
        assert group is not None
        begun = group._get_sequence_number_for_group()  # type: ignore[attr-defined]
        beat = Beat(told, self._moves, self._step, self._doing, begun)
        self._store.set(str(self._context.rank), json.dumps(beat))

    def _look(self) -> list[Beat]:
        keys = [str(rank) for rank in range(self._context.world_size)]
        return [Beat(*json.loads(value)) for value in self._store.multi_get(keys)]

    def _end(self, verdict: str) -> None:
        """Show where this process is, leave the verdict for the launcher, and end."""
        log.error("%s; this is rank %s:", verdict, self._context.rank)
        faulthandler.dump_traceback(2, all_threads=True)
        if self._last_words is not None:
            with suppress(OSError), self._last_words.open("x") as file:  # the first to say so
                file.write(verdict)
        if self._context.rank == 0:
            time.sleep(2 * _TELL_S)  # the others read the verdict from the store that it holds
        os._exit(EXIT_CODE)


def verdict_of(before: Mapping[int, Beat], now: Mapping[int, Beat]) -> str:
    """Which rank hangs, by what each told at two times with no move between them.

    A rank whose thread doesn't tell any more is stopped. Otherwise the one that hangs hasn't begun
    a collective in which the others wait.
    """
    stopped = [rank for rank, beat in now.items() if beat.told == before[rank].told]
    if stopped and len(stopped) < len(now):
        step = max(beat.step for beat in now.values())  # what the stopped one told last is old
        return f"{_ranks(stopped)} hangs in step {step}: its process is stopped or cut off"
    least = min((beat.step, beat.collectives) for beat in now.values())
    behind = [r for r, beat in now.items() if (beat.step, beat.collectives) == least]
    beat = now[behind[0]]
    if len(behind) == len(now):
        return f"all ranks hang in step {beat.step} ({beat.doing}), at the same place"
    return (
        f"{_ranks(behind)} hangs in step {beat.step} ({beat.doing}): the others wait for it in a "
        "collective"
    )


def _ranks(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
