"""Every command that a document teaches is one that its program takes."""

import argparse
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from infnet_dist.config.run import load_config
from tests.conftest import REPOSITORY
from tests.documented import blocks, documents, spans, words

ALL = [
    block
    for path in documents()
    for block in [*blocks(path), *(spans(path) if path.suffix == ".md" else [])]
]
# Not whole commands: the reader fills them in.
INCOMPLETE = re.compile(r"\[--|\.\.\.|COMMAND$|^\S*python -m \S+$|^\S*infnet( \S+)?$")


class ParsedError(BaseException):
    """The arguments were taken."""


def python_commands() -> dict[str, list[str]]:
    """Where a command is documented -> the arguments of `python` that run it."""
    found = {}
    for block in ALL:
        for number, command in enumerate(block.commands):
            inner = words(command)
            if inner[:3] == ["ray", "job", "submit"]:
                inner = inner[inner.index("--") + 1 :]
            if INCOMPLETE.search(command):
                continue
            if inner[0].endswith("python"):
                found[f"{block.where}/{number}"] = inner[1:]
            elif inner[0].endswith("infnet"):
                found[f"{block.where}/{number}"] = ["-m", "ray_jobs", *inner[1:]]
    return found


COMMANDS = python_commands()


def test_commands_are_found() -> None:
    texts = {" ".join(command) for command in COMMANDS.values()}
    assert len(texts) >= 40
    assert "-m ray_jobs.train --config configs/smoke.yaml" in texts
    assert {path.name for path in documents()} >= {Path(key.split(":")[0]).name for key in COMMANDS}


@pytest.mark.parametrize("where", COMMANDS)
def test_a_documented_command_is_taken(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args
    seen: list[argparse.Namespace] = []

    def parse_and_end(parser: argparse.ArgumentParser, *given: Any, **more: Any) -> NoReturn:
        seen.append(parse(parser, *given, **more))
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
    monkeypatch.chdir(REPOSITORY)
    kind, *rest = COMMANDS[where]
    name, arguments = (rest[0], rest[1:]) if kind == "-m" else (kind, rest)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    with pytest.raises(ParsedError):
        if kind == "-m":
            runpy.run_module(name, run_name="__main__", alter_sys=False)
        else:
            runpy.run_path(str(REPOSITORY / name), run_name="__main__")
    config = getattr(seen[0], "config", None)
    if config and (REPOSITORY / config).exists() and not Path(config).name.startswith("compare_"):
        load_config(config, getattr(seen[0], "overrides", ()))


def test_documented_make_targets_exist() -> None:
    commands = {tuple(words(line)) for block in ALL for line in block.commands}
    targets = [command for command in commands if command[0] == "make"]
    assert ("make", "smoke") in targets
    for command in targets:
        subprocess.run([*command, "--dry-run"], cwd=REPOSITORY, check=True, capture_output=True)
