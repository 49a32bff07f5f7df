"""Lists, verifies, compares, exports and deletes checkpoints, without a GPU or a training set.

    P="infnet checkpoint"
    $P list runs/my_run/20261122-111407
    $P verify runs/my_run/20261122-111407
    $P inspect runs/my_run/20261122-111407/checkpoints/step-00005000
    $P diff runs/a/1/checkpoints/step-00005000 runs/b/1/checkpoints/step-00005000
    $P export s3://bucket/my_run/1/step-00005000 item --output item.parquet
    $P prune runs/my_run/20261122-111407 --keep-last 2 --keep-best valid/auc/click --dry-run
    $P delta A B --out DELTA
    $P apply A DELTA --out FULL
    $P compact DELTA1 DELTA2 --out DELTA

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

_OWN = "infnet_dist.checkpoint.cli"
# Imported by name: the room of deltas is below this one.
_PLACES = {name: f"{_OWN}.folder_reports" for name in ("list", "verify", "prune")}
_PLACES |= {name: f"{_OWN}.tensor_reports" for name in ("inspect", "diff", "export")}
_PLACES |= {name: "infnet_dist.deltas.command" for name in ("delta", "apply", "compact")}
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
        # Imported here, since it imports torch, which --help doesn't need.
        module = importlib.import_module(_PLACES[arguments.command])
        code: int = getattr(module, f"{arguments.command}_command")(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # from `| head`
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
        "List, verify, inspect, compare, export and delete checkpoints, and make and apply their "
        "deltas, on any machine without a GPU. Paths and URLs (s3://...) work alike.\n\n"
        "Exit codes: 0; 1 after an error, if verify finds a fault, or if diff finds a difference; "
        "2 for a wrong command line. docs/checkpoints.md shows the output."
    )
    parser.epilog = examples(_PROGRAM, "list runs/my_run/1\nCOMMAND --help")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_list(commands)
    _add_verify(commands)
    _add_inspect(commands)
    _add_diff(commands)
    _add_export(commands)
    _add_prune(commands)
    _add_delta(commands)
    _add_apply(commands)
    _add_compact(commands)


def _add_list(commands: Any) -> None:
    command = _command(
        commands,
        "list",
        "the checkpoints of a run and their state",
        "A checkpoint is complete, incomplete (no manifest.json: being written, or left over), "
        "damaged, or unreadable (the storage failed), judged by file sizes. The content isn't "
        "read: verify does that.",
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
        "Names damaged files and rows, and files that the storage couldn't read; exit code 1 if "
        "there are any. Incomplete checkpoints of a folder are skipped, since no run loads them.",
        "verify runs/my_run/1\nverify runs/my_run/1/checkpoints/step-00005000",
    )
    command.add_argument(
        "places",
        nargs="+",
        metavar="CHECKPOINT|FOLDER",
        help="checkpoints, or folders that hold some",
    )
    add_json(command)


def _add_inspect(commands: Any) -> None:
    command = _command(
        commands,
        "inspect",
        "a checkpoint's tables, dense part, progress and plan",
        "Reads all tensors. A row whose optimizer state is 0 was never trained.",
        "inspect runs/my_run/1/checkpoints/step-00005000",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    add_json(command)


def _add_diff(commands: Any) -> None:
    command = _command(
        commands,
        "diff",
        "the differences of two checkpoints",
        "Exit code 0 if all tensors are equal bit for bit, otherwise 1 (also after an error); "
        "differing keys of config.yaml are listed, but don't count. The checkpoints may have "
        "different numbers of workers and plans.",
        "diff runs/a/1/checkpoints/step-00005000 runs/b/1/checkpoints/step-00005000",
    )
    command.add_argument("first", metavar="A", help=_CHECKPOINT)
    command.add_argument("second", metavar="B", help="the other checkpoint")
    add_json(command)


def _add_export(commands: Any) -> None:
    command = _command(
        commands,
        "export",
        "a table as a Parquet file",
        "Columns: row (int64), embedding (a list of the table's width) and, on request, "
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
        help="rows A to B - 1; either may be omitted (default: all)",
    )
    command.add_argument(
        "--with-optimizer", action="store_true", help="export the optimizer state of the rows too"
    )
    command.add_argument("--force", action="store_true", help="replace an existing file")


def _add_prune(commands: Any) -> None:
    command = _command(
        commands,
        "prune",
        "delete checkpoints that the rules don't keep",
        "Lists what is deleted and kept, then prompts. The rules are those of a run file's "
        "checkpoint section. Incomplete checkpoints without a write for an hour are deleted too. "
        "Damaged ones don't count, and are kept unless --damaged. The newest complete one and "
        "unreadable ones are always kept.",
        "prune runs/my_run/1 --keep-last 2 --dry-run\n"
        "prune runs/my_run/1 --keep-last 1 --keep-best valid/auc/click --verify --yes",
    )
    command.add_argument("folder", metavar="FOLDER", help=_FOLDER)
    command.add_argument(
        "--keep-last", type=positive, required=True, metavar="K", help="number of newest to keep"
    )
    command.add_argument(
        "--keep-every-steps", type=positive, metavar="N", help="keep multiples of N steps too"
    )
    command.add_argument(
        "--keep-best",
        metavar="METRIC",
        help="keep the best by this metric too, e.g. valid/auc/click",
    )
    command.add_argument(
        "--verify",
        action="store_true",
        help="verify contents first: wrong content counts as damaged",
    )
    command.add_argument("--damaged", action="store_true", help="delete damaged ones too")
    command.add_argument("--dry-run", action="store_true", help="list, but delete nothing")
    command.add_argument("--yes", action="store_true", help="don't prompt")
    add_json(command)


def _add_delta(commands: Any) -> None:
    command = _command(
        commands,
        "delta",
        "the rows that changed between two checkpoints",
        "Compares all bytes of A and B, and writes the rows of B's tables that differ, with their "
        "optimizer state, and B's dense part. B's tables may have more rows than A's: all of those "
        "are written. A and the delta make up B (apply).",
        "delta runs/a/1/checkpoints/step-00005000 runs/a/1/checkpoints/step-00006000 --out delta",
    )
    command.add_argument("first", metavar="A", help=_CHECKPOINT)
    command.add_argument("second", metavar="B", help="the other checkpoint")
    _add_out(command)
    command.add_argument(
        "--rows",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="type of the rows; fp16 and int8 are rounded and need --without-optimizer "
        "(default: fp32)",
    )
    command.add_argument(
        "--without-optimizer", action="store_true", help="leave the optimizer state out"
    )


def _add_apply(commands: Any) -> None:
    command = _command(
        commands,
        "apply",
        "the checkpoint that a base and its deltas make up",
        "Deltas in order, all of them. Unless their rows are rounded, the tensors are those of the "
        "last publication, byte for byte.",
        "apply published/version-00000001 published/version-0000000[23] --out full",
    )
    command.add_argument("base", metavar="BASE", help="folder or URL of the base, a checkpoint")
    command.add_argument("deltas", nargs="+", metavar="DELTA", help="its deltas, in order")
    _add_out(command)


def _add_compact(commands: Any) -> None:
    command = _command(
        commands,
        "compact",
        "one delta in place of several",
        "They must follow one another. The result changes what the first one changes, and the "
        "delta after the last one fits on it.",
        "compact published/version-00000002 published/version-00000003 --out day",
    )
    command.add_argument("deltas", nargs="+", metavar="DELTA", help="deltas, in order")
    _add_out(command)


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", required=True, metavar="FOLDER", help="a new folder or URL")


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
