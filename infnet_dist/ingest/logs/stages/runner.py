"""Runs the tasks of a stage by any executor; recorded outcomes let a killed job resume."""

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
from infnet_dist.io.filesystem import published

_POLL_S = 0.5
_FULL_OR_FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
Outcome = dict[str, Any]
# Called with stage, "rows" or "tasks", how many are done and the total; at the start as well.
Progress = Callable[[str, str, int, int], None]


class Task(Protocol):
    """Work on files; picklable and idempotent."""

    def run(self) -> Outcome:
        """Write the files; returns an outcome that is JSON."""
        ...


@dataclass(frozen=True)
class Recorded:
    """A task that writes its outcome by rename, after all its files."""

    task: Task
    path: Path

    def run(self) -> Outcome:
        """Run the task.

        Raises:
            DataError: raised by the task; or a file can't be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            outcome = self.task.run()
            with published(self.path) as path:
                path.write_text(json.dumps(outcome))
        except OSError as error:
            raise as_data_error(error, self.path.parent) from None
        return outcome


def as_data_error(error: OSError, folder: Path) -> DataError:
    """The error of a failed write in a folder, with the next move."""
    fix = "free space or fix the permissions, then " if error.errno in _FULL_OR_FORBIDDEN else ""
    return DataError(
        f"can't write {error.filename or folder} ({error.strerror or error}); {fix}run the same "
        "command again to resume"
    )


# Runs tasks in any order and yields the index of each finished task with its outcome; the first
# error is raised, and tasks that haven't started are dropped.
Execute = Callable[[Sequence[Recorded]], Iterator[tuple[int, Outcome]]]


@dataclass(frozen=True)
class StageRunner:
    """Runs stages, skipping tasks whose outcomes are recorded.

    Attributes:
        folder: folder of the outcomes.
        execute: the executor.
        progress: called after each task.
    """

    folder: Path
    execute: Execute
    progress: Progress

    def run(self, stage: str, tasks: Mapping[str, Task], rows: Sequence[int] = ()) -> list[Outcome]:
        """Outcomes of the tasks of a stage, in the order of the tasks.

        Args:
            stage: name of the stage.
            tasks: tasks by name.
            rows: approximate rows per task, for the progress; empty: progress counts tasks.
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
    """Executor that runs tasks in this process."""
    for number, task in enumerate(tasks):
        yield number, task.run()


@contextlib.contextmanager
def processes(num_workers: int) -> Iterator[Execute]:
    """Executor that runs tasks in processes of this machine, which end with the context."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, _end_with_parent, (os.getpid(),))

    def execute(tasks: Sequence[Recorded]) -> Iterator[tuple[int, Outcome]]:
        numbers = {pool.submit(task.run): number for number, task in enumerate(tasks)}
        try:
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BrokenProcessPool:
            raise DataError(
                "a process of the ingest was killed, possibly out of memory; lower "
                "ingest.memory_mib and run the same command again to resume"
            ) from None

    try:
        yield execute
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent(parent: int) -> None:
    """Exit soon after the parent process, which may be killed without notice."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
