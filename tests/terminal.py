"""Commands on a pseudo-terminal, and what its user sees."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

_PIECES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|.|\n", re.S)


def run_on_terminal(
    command: Sequence[str], columns: int, *, cwd: Path, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a command on a terminal of that many columns; its exit code and all that it wrote."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command, cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            more = os.read(ours, 2**16)
        except OSError:  # so Linux says that nobody has the other end
            break
        if not more:
            break
        written += more
    os.close(ours)
    return process.wait(), written.decode()


def seen(written: str) -> tuple[list[str], int]:
    """The lines that stay on an endless screen, and the most columns that any took meanwhile."""
    lines: list[list[str]] = [[]]
    column = widest = 0
    for piece in _PIECES.findall(written):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            lines.append([])
            column = 0
        elif piece == "\x1b[K":
            del lines[-1][column:]
        elif piece.startswith("\x1b"):
            assert piece.endswith("m"), f"unknown escape {piece!r}"  # a colour
        else:
            lines[-1][column : column + 1] = [piece]
            column += 1
            widest = max(widest, column)
    return ["".join(line).rstrip() for line in lines], widest
