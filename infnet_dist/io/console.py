"""Log lines and a progress bar: fitted to a terminal; whole plain lines anywhere else.

A process on a terminal draws the bar itself. A process whose output another one shows on a terminal
(a Ray worker; a job of `infnet smoke`) is given its width, and prints progress as marked lines,
which `take_progress` turns into the bar. Several processes may write to one terminal, so each line
first erases whatever bar is there.
"""

import json
import logging
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS_VARIABLE = "INFNET_COLUMNS"  # width of the terminal on which another process shows ours
_ERASE = "\r\x1b[K"
_MARK = "#infnet-progress "
_MARK_S = 1.0  # at least this long between marked lines
_LEAST_COLUMNS = 20
_SEPARATOR = "  "
_CUT = "..."
_TIME = "%H:%M:%S"
_log = logging.getLogger("infnet_dist")


class Line:
    """A log message of several parts, the most important first.

    Args:
        parts: shown two spaces apart.
        short: parts for a terminal that is too narrow for `parts` (default: the same). Those that
            don't fit either are left out, the last ones first.
    """

    def __init__(self, *parts: str, short: tuple[str, ...] = ()) -> None:
        self._parts = parts
        self._short = short or parts

    def __str__(self) -> str:
        return _SEPARATOR.join(self._parts)

    def fit(self, width: int) -> str:
        """The line in at most `width` columns."""
        if len(text := str(self)) <= width:
            return text
        for count in range(len(self._short), 0, -1):
            cut = () if count == len(self._short) else (_CUT,)
            text = _SEPARATOR.join((*self._short[:count], *cut))
            if len(text) <= width:
                return text
        return text[: width - len(_CUT)] + _CUT


class Progress(NamedTuple):
    """How far a stage is, e.g. `train`, `step`, 40, 1500."""

    stage: str
    unit: str
    done: int
    total: int


class _NoBar:
    """Shows no progress."""

    shows = False

    def show(self, progress: Progress) -> None: ...

    def close(self) -> None: ...


class _TerminalBar:
    """A bar with rate and time left at the bottom of a terminal, one stage at a time."""

    shows = True

    def __init__(self, stream: TextIO) -> None:
        tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves
        self._stream = stream
        self._stage: tuple[str, int] | None = None
        self._bar: tqdm | None = None

    def show(self, progress: Progress) -> None:
        stage, unit, done, total = progress
        if self._bar is None or self._stage != (stage, total):
            self.close()
            self._stage = (stage, total)
            self._bar = tqdm(
                desc=stage,
                unit=unit,
                initial=done,
                total=total,
                file=self._stream,
                leave=False,
                dynamic_ncols=True,
            )
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _MarkedLines:
    """Marked lines, for the process that shows our output on a terminal."""

    shows = True

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage = ""
        self._next = 0.0

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.stage == self._stage and now < self._next and progress.done < progress.total:
            return
        self._stage, self._next = progress.stage, now + _MARK_S
        print(f"{_MARK}{json.dumps(progress)}", file=self._stream, flush=True)

    def close(self) -> None: ...


class _Handler(logging.StreamHandler[TextIO]):
    """Log lines; fitted to `columns()` if that is given."""

    def __init__(self, stream: TextIO, columns: Callable[[], int] | None) -> None:
        super().__init__(stream)
        self._columns = columns
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt=_TIME))

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if self._columns is None:
            return text
        width, time_shown = self._columns(), f"{record.asctime} "
        if isinstance(record.msg, Line):
            return time_shown + record.msg.fit(width - len(time_shown))
        return "\n".join(_wrap(line, width, len(time_shown)) for line in text.splitlines())

    def emit(self, record: logging.LogRecord) -> None:
        with bar_hidden():
            super().emit(record)


_bar: _NoBar | _TerminalBar | _MarkedLines = _NoBar()


def set_up_logging(columns: int | None = None) -> None:
    """Log to stderr: our lines at INFO, all others at WARNING.

    Args:
        columns: width of the terminal on which another process shows this one's output, if any.
    """
    global _bar
    stream = sys.stderr
    elsewhere = columns or _given_columns()
    width: Callable[[], int] | None = None
    _bar = _NoBar()
    if stream.isatty():
        width, _bar = _own_columns, _TerminalBar(stream)
    elif elsewhere:
        width, _bar = (lambda: elsewhere), _MarkedLines(stream)
    logging.basicConfig(level=logging.WARNING, handlers=[_Handler(stream, width)], force=True)
    _log.setLevel(logging.INFO)


def terminal_columns() -> int | None:
    """Width of the terminal that shows this process's log lines in the end; None: there is none."""
    return _own_columns() if sys.stderr.isatty() else _given_columns()


def show_progress(stage: str, unit: str, done: int, total: int) -> bool:
    """Show how far a stage is, on a terminal alone, and where INFO lines are shown.

    Returns:
        Whether it is shown.
    """
    if not _bar.shows or not _log.isEnabledFor(logging.INFO):
        return False
    with suppress(OSError):  # a run outlives its terminal
        _bar.show(Progress(stage, unit, done, total))
    return True


def take_progress(line: str) -> bool:
    """Whether a line of another process is its progress, which is then shown here."""
    if not line.startswith(_MARK):
        return False
    with suppress(ValueError, TypeError):  # cut off
        _bar.show(Progress(*json.loads(line.removeprefix(_MARK))))
    return True


@contextmanager
def bar_hidden() -> Iterator[None]:
    """Write to the terminal without the bar, of whichever process."""
    if not isinstance(_bar, _TerminalBar):
        yield
        return
    with tqdm.external_write_mode(file=sys.stderr):
        with suppress(OSError):  # a run outlives its terminal
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
        yield


def end_progress() -> None:
    """Remove the bar, before the process ends or prints its result."""
    _bar.close()
    with bar_hidden():
        pass


def wide_console(width: int = 140) -> "Console":
    """For tables: as wide as the terminal; `width` columns where there is none."""
    from rich.console import Console  # which workers don't need

    return Console() if sys.stdout.isatty() else Console(width=_given_columns() or width)


def _wrap(line: str, width: int, indent: int) -> str:
    """Break a line between words; paths stay whole, so that they can be copied."""
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _own_columns() -> int:
    return max(os.get_terminal_size(sys.stderr.fileno()).columns or 80, _LEAST_COLUMNS)


def _given_columns() -> int | None:
    given = os.environ.get(COLUMNS_VARIABLE, "")
    return max(int(given), _LEAST_COLUMNS) if given.isdecimal() else None
