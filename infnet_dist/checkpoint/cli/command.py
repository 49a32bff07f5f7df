"""Looks after checkpoints: on any machine, without a GPU, workers or a training set.

    P="infnet checkpoint"
    $P list runs/my_run/20261122-111407
    $P verify runs/my_run/20261122-111407
    $P inspect runs/my_run/20261122-111407/checkpoints/step-00005000
    $P diff runs/a/1/checkpoints/step-00005000 runs/b/1/checkpoints/step-00005000
    $P export s3://bucket/my_run/1/step-00005000 item --output item.parquet
    $P prune runs/my_run/20261122-111407 --keep-last 2 --keep-best valid/auc/click --dry-run

All take paths and URLs. No command reads a whole table at once.
"""

import argparse
import importlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from infnet_dist.errors import UserError
from infnet_dist.io.command_line import HelpFormatter, add_json, examples, positive
from infnet_dist.io.urls import without_secrets

_PLACES = {name: "folder_reports" for name in ("list", "verify", "prune")}
_PLACES |= {name: "tensor_reports" for name in ("inspect", "diff", "export")}
_PROGRAM = "infnet checkpoint"
_FOLDER = "folder or URL of a run, or of its checkpoints"
_CHECKPOINT = "folder or URL of one checkpoint (step-...)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code. An error is one last line on stderr."""
    parser = argparse.ArgumentParser(prog=_PROGRAM)
    add_checkpoint_options(parser)
    arguments = parser.parse_args(argv)
    with _interrupted_by_sigterm():
        return _run(arguments)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C, so that no partial file stays."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: argparse.Namespace) -> int:
    try:
        # Only now, since it brings torch, which --help doesn't need.
        module = importlib.import_module(f"infnet_dist.checkpoint.cli.{_PLACES[arguments.command]}")
        code: int = getattr(module, f"{arguments.command}_command")(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError) as error:
        return _failed(_without_secrets(str(error), arguments))
    except KeyboardInterrupt:
        return _failed("interrupted", code=130)
    except Exception as error:
        text = _without_secrets("".join(traceback.format_exception(error)), arguments)
        print(text, end="", file=sys.stderr)
        return _failed(text.rstrip().rpartition("\n")[2])


def _without_secrets(text: str, arguments: argparse.Namespace) -> str:
    """The text without the secrets of URLs among the arguments."""
    for value in vars(arguments).values():
        for url in value if isinstance(value, list) else [value]:
            if isinstance(url, str):
                text = text.replace(url, without_secrets(url))
    return text


def _failed(message: str, code: int = 1) -> int:
    sys.stdout.flush()
    line = " ".join(message.split())
    print(f"error: {''.join(c if c.isprintable() else '?' for c in line)}", file=sys.stderr)
    return code


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands and their options."""
    parser.formatter_class = HelpFormatter
    parser.description = (
        "Look after checkpoints: list, verify, inspect, compare, export, delete. On any machine, "
        "without a GPU; paths and URLs (s3://...) alike.\n\n"
        "Exit code: 0; 1 after an error, and where verify or diff find differences; 2 for a wrong "
        "command line. docs/checkpoints.md shows the output of each."
    )
    parser.epilog = examples(_PROGRAM, "list runs/my_run/1\nCOMMAND --help")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_list(commands)
    _add_verify(commands)
    _add_inspect(commands)
    _add_diff(commands)
    _add_export(commands)
    _add_prune(commands)


def _add_list(commands: Any) -> None:
    command = _command(
        commands,
        "list",
        "the checkpoints of a run and their state",
        "A checkpoint is complete, incomplete (no manifest.json: being written, or left over), "
        "damaged, or unreadable (the storage gave an error). Sizes of files tell; their content "
        "isn't read: verify does that.",
        "list runs/my_run/1\nlist s3://bucket/my_run/1 --metric valid/gauc/click --json",
    )
    command.add_argument("folder", metavar="FOLDER", help=_FOLDER)
    command.add_argument(
        "--metric",
        dest="metrics",
        metavar="NAME",
        action="append",
        default=[],
        help="metric to show, e.g. valid/auc/click; repeatable (default: AUCs of up to 3 tasks)",
    )
    add_json(command)


def _add_verify(commands: Any) -> None:
    command = _command(
        commands,
        "verify",
        "read every byte, check every checksum",
        "Says which files and rows are wrong, and what the storage couldn't read. Exit code 1 if "
        "anything is. What is incomplete in a "
        "folder is left out, since no run loads it.",
        "verify runs/my_run/1\nverify runs/my_run/1/checkpoints/step-00005000",
    )
    command.add_argument(
        "places", nargs="+", metavar="CHECKPOINT|FOLDER", help="checkpoints, or folders of some"
    )
    add_json(command)


def _add_inspect(commands: Any) -> None:
    command = _command(
        commands,
        "inspect",
        "what a checkpoint holds: tables, dense part, progress, plan",
        "Reads all of it. A row whose optimizer state is 0 was never trained.",
        "inspect runs/my_run/1/checkpoints/step-00005000",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    add_json(command)


def _add_diff(commands: Any) -> None:
    command = _command(
        commands,
        "diff",
        "how two checkpoints differ",
        "Exit code 0 if all tensors are equal bit for bit, 1 if not (or after an error, which says "
        "so); keys of config.yaml that differ are listed, but don't count. The checkpoints may be "
        "of different numbers of workers and plans.",
        "diff runs/a/1/checkpoints/step-00005000 runs/b/1/checkpoints/step-00005000",
    )
    command.add_argument("first", metavar="A", help=_CHECKPOINT)
    command.add_argument("second", metavar="B", help="the other one")
    add_json(command)


def _add_export(commands: Any) -> None:
    command = _command(
        commands,
        "export",
        "a table as a Parquet file",
        "Columns: row (int64), embedding (a list of the table's width) and, if asked for, "
        "optimizer_state (a number, or a list of one per column shard). Rows are in order.",
        "export runs/my_run/1/checkpoints/step-00005000 item --output item.parquet\n"
        "export s3://bucket/my_run/1/step-00005000 user --output some.parquet --rows 0:1000",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    command.add_argument("table", metavar="TABLE", help="its name, e.g. item")
    command.add_argument("--output", required=True, metavar="FILE", help="path or URL to write")
    command.add_argument(
        "--rows",
        type=_rows,
        default=(0, None),
        metavar="A:B",
        help="rows A to B - 1; either may be left out (default: all)",
    )
    command.add_argument("--with-optimizer", action="store_true", help="the rows' state as well")
    command.add_argument("--force", action="store_true", help="replace a file that is there")


def _add_prune(commands: Any) -> None:
    command = _command(
        commands,
        "prune",
        "delete checkpoints that needn't be kept",
        "Lists what goes and what stays, then asks. The rules are those of a run file's "
        "checkpoint section. Also goes what is incomplete and hasn't been written to for an hour. "
        "Damaged ones don't count, and stay unless --damaged. The newest complete one stays, and "
        "what the storage can't read.",
        "prune runs/my_run/1 --keep-last 2 --dry-run\n"
        "prune runs/my_run/1 --keep-last 1 --keep-best valid/auc/click --verify --yes",
    )
    command.add_argument("folder", metavar="FOLDER", help=_FOLDER)
    command.add_argument(
        "--keep-last", type=positive, required=True, metavar="K", help="newest that stay"
    )
    command.add_argument(
        "--keep-every-steps", type=positive, metavar="N", help="multiples of N steps stay as well"
    )
    command.add_argument(
        "--keep-best", metavar="METRIC", help="the best by this, e.g. valid/auc/click, stays too"
    )
    command.add_argument(
        "--verify", action="store_true", help="read them first: wrong content counts as damaged"
    )
    command.add_argument("--damaged", action="store_true", help="delete the damaged as well")
    command.add_argument("--dry-run", action="store_true", help="list, delete nothing")
    command.add_argument("--yes", action="store_true", help="don't ask")
    add_json(command)


def _command(
    commands: Any, name: str, summary: str, text: str, lines: str
) -> argparse.ArgumentParser:
    found: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {text}",
        epilog=examples(_PROGRAM, lines),
        formatter_class=HelpFormatter,
    )
    return found


def _rows(text: str) -> tuple[int, int | None]:
    match = re.fullmatch(r"(\d{0,18}):(\d{0,18})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a range of rows such as 0:1000")
    return int(match[1] or 0), int(match[2]) if match[2] else None
