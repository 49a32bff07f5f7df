"""The commands in the documents: README, docs, configs, results, docstrings of entry points."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import REPOSITORY

PROGRAMS = ("infnet", ".venv/bin/infnet", "python", ".venv/bin/python", "ray", "wandb", "make")
SHELL = ("export", "source")  # set a block's environment up, and are no commands by themselves
_LINE = re.compile(rf"(\$ )?({'|'.join(map(re.escape, (*PROGRAMS, *SHELL)))}) ")


class Block(NamedTuple):
    """Commands that belong together.

    Attributes:
        where: file and line, e.g. `README.md:46`.
        script: one command a line, continuation lines joined, comments left out.
    """

    where: str
    script: str

    @property
    def commands(self) -> list[str]:
        """The commands, without the lines that set their environment up."""
        return [line for line in self.script.splitlines() if line.split()[0] in PROGRAMS]


def documents() -> list[Path]:
    """All documents with commands, in the order in which a newcomer reads them."""
    folders = ("configs", "docs", "benchmarks")
    return [
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
        *(
            path
            for folder in folders
            for path in sorted((REPOSITORY / folder).glob("*.md"))
            if path.name != "extending.md"  # its commands need its code: test_extending.py
        ),
        *sorted((REPOSITORY / "ray_jobs").glob("[a-z]*.py")),
    ]


def blocks(path: Path) -> list[Block]:
    """The indented blocks of a document (or of a module's docstring) that hold commands."""
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text), clean=True) or ""
    name = path.relative_to(REPOSITORY)
    found: list[Block] = []
    lines: list[str] = []
    for number, line in enumerate([*text.splitlines(), "end"], 1):
        if line.startswith("    ") or (lines and not line.strip()):
            lines.append(line[4:])
            continue
        script = "\n".join(_commands(lines))
        if script:
            found.append(Block(f"{name}:{number - len(lines)}", script))
        lines = []
    return found


def spans(path: Path) -> list[Block]:
    """Whole commands between backquotes in the prose of a document."""
    name = path.relative_to(REPOSITORY)
    return [
        Block(f"{name}:{number}", " ".join(command.split()))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if not line.startswith("    ")
        for command in re.findall(
            r"`((?:\.venv/bin/)?(?:infnet |python (?:-m|benchmarks/))[^`]+)`", line
        )
    ]


def words(command: str) -> list[str]:
    """The words of one command, without the comment at its end."""
    return shlex.split(command, comments=True)


def _commands(lines: list[str]) -> Iterator[str]:
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    for line in joined.splitlines():
        if _LINE.match(line):
            yield re.sub(r"\s+# .*", "", line.removeprefix("$ ")).rstrip()
