"""Runs stages of tasks, by any executor, and remembers what is done: a killed job goes on there."""

import contextlib
import errno
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from infnet_dist.errors import DataError
from infnet_dist.ingest.logs.shuffle_files import renamed

_LOOK_S = 0.5
_FULL_OR_FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
Outcome = dict[str, Any]
# Stage, "rows" or "tasks", how many are done and how many there are. At its start as well.
Progress = Callable[[str, str, int, int], None]


class Task(Protocol):
    """Work on files; picklable, and harmless to repeat."""

    def run(self) -> Outcome:
        """Write the files; the outcome is JSON."""
        ...


@dataclass(frozen=True)
class Recorded:
    """A task that writes its outcome, by rename, when all else is written."""

    task: Task
    path: Path

    def run(self) -> Outcome:
        """As the task.

        Raises:
            DataError: what the task raises; or nothing can be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            outcome = self.task.run()
            with renamed(self.path) as path:
                path.write_text(json.dumps(outcome))
        except OSError as error:
            raise as_data_error(error, self.path.parent) from None
        return outcome


def as_data_error(error: OSError, folder: Path) -> DataError:
    """An error of the file system while working in a folder, with the next move."""
    mend = "free space or mend the permissions, then " if error.errno in _FULL_OR_FORBIDDEN else ""
    return DataError(
        f"can't write {error.filename or folder} ({error.strerror or error}); {mend}run the same "
        "command again: it goes on where it stopped"
    )


# Runs tasks in any order and yields the number of each that ends, with its outcome; the first
# error is raised, and what hasn't begun by then is left.
Execute = Callable[[Sequence[Recorded]], Iterator[tuple[int, Outcome]]]


@dataclass(frozen=True)
class Stages:
    """One run of the stages.

    Attributes:
        folder: for outcomes; what is recorded there isn't done again.
        execute: the executor.
        progress: told after each task.
    """

    folder: Path
    execute: Execute
    progress: Progress

    def run(self, stage: str, tasks: Mapping[str, Task], rows: Sequence[int] = ()) -> list[Outcome]:
        """The outcomes of a stage's tasks, in their order.

        Args:
            stage: name.
            tasks: by name.
            rows: of each task, about, for the progress; none: count tasks.
        """
        if not tasks:
            return []
        paths = [self.folder / stage / f"{name}.json" for name in tasks]
        weights = list(rows) or [1] * len(paths)
        unit = "rows" if rows else "tasks"
        outcomes = {i: json.loads(p.read_text()) for i, p in enumerate(paths) if p.exists()}
        left = [i for i in range(len(paths)) if i not in outcomes]
        done, total = sum(weights) - sum(weights[i] for i in left), sum(weights)
        recorded = [Recorded(task, path) for task, path in zip(tasks.values(), paths, strict=True)]
        self.progress(stage, unit, done, total)
        for number, outcome in self.execute([recorded[i] for i in left]):
            outcomes[left[number]] = outcome
            done += weights[left[number]]
            self.progress(stage, unit, done, total)
        return [outcomes[i] for i in range(len(paths))]


def one_by_one(tasks: Sequence[Recorded]) -> Iterator[tuple[int, Outcome]]:
    """Executor: in this process."""
    for number, task in enumerate(tasks):
        yield number, task.run()


@contextlib.contextmanager
def processes(num_workers: int) -> Iterator[Execute]:
    """Executor: in so many processes of this machine, which end with the context."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, _end_with_parent, (os.getpid(),))

    def execute(tasks: Sequence[Recorded]) -> Iterator[tuple[int, Outcome]]:
        numbers = {pool.submit(task.run): number for number, task in enumerate(tasks)}
        try:
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BrokenProcessPool:
            raise DataError(
                "a process of the ingest was killed, perhaps for want of memory; lower "
                "ingest.memory_mib and run the same command again: it goes on where it stopped"
            ) from None

    try:
        yield execute
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent(parent: int) -> None:
    """Let this process end soon after its parent, which may be killed without a word to us."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
