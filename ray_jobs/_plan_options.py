"""Options of `infnet plan`; see `_options`."""

import argparse
import re
from pathlib import Path
from typing import Any

from infnet_dist.io.command_line import add_json, positive
from ray_jobs._options import add_launcher, add_overrides

_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_MAX_BYTES = 1e18


def plan_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `infnet plan`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    make = _plan_command(commands, "make", "plan tables on a topology")
    _add_tables(make)
    _add_topology(make)
    make.add_argument("--output", type=Path, required=True, help="plan file to write")

    show = _plan_command(commands, "show", "show a plan: table, HTML page, PNG")
    show.add_argument("plan", type=Path, help="plan file")
    show.add_argument("--html", type=Path, help="write one self-contained page")
    show.add_argument("--png", type=Path, help="write a picture of the time and bytes per rank")
    show.add_argument(
        "--tables", type=positive, default=40, metavar="N", help="number of tables listed (40)"
    )

    check = _plan_command(commands, "check", "check a plan against a run, topology, checkpoint")
    check.add_argument("plan", type=Path, help="plan file")
    check.add_argument("--config", type=Path, help="run file")
    add_overrides(check)
    check.add_argument("--topology", help="topology: name or file")
    check.add_argument("--checkpoint", help="checkpoint folder or URL")

    diff = _plan_command(commands, "diff", "list what moves from one plan to another")
    diff.add_argument("before", type=Path, help="plan file")
    diff.add_argument("after", type=Path, help="plan file")

    extend = _plan_command(commands, "extend", "plan new tables beside those of a plan")
    extend.add_argument("plan", type=Path, help="plan file")
    _add_tables(extend)
    extend.add_argument(
        "--max-move",
        type=byte_size,
        default=0.0,
        metavar="SIZE",
        help="bytes of existing tables that may move, e.g. 50GB (default: 0)",
    )
    extend.add_argument("--output", type=Path, required=True, help="plan file to write")

    calibrate = _plan_command(
        commands, "calibrate", "measure the workers at hand and write a topology with their costs"
    )
    calibrate.add_argument(
        "--config", type=Path, help="run file: its scaling (default: this machine's cores or GPUs)"
    )
    add_overrides(calibrate)
    add_launcher(calibrate, default="local")
    calibrate.add_argument(
        "--world-size", type=positive, help="workers (default: the run file's; else all)"
    )
    calibrate.add_argument(
        "--like",
        help="name or file of a topology that has what isn't measured: reserves, links between "
        "nodes (default: that of the GPU, or cpu)",
    )
    calibrate.add_argument(
        "--output", type=Path, required=True, help="topology file to write (.json)"
    )

    whatif = _plan_command(commands, "whatif", "compare topologies and world sizes")
    _add_tables(whatif)
    whatif.add_argument("--topology", required=True, help="names or files, separated by commas")
    whatif.add_argument(
        "--world-size", required=True, help="numbers of workers, separated by commas"
    )
    whatif.add_argument(
        "--dense-ms",
        type=positive_number,
        metavar="MS",
        help="milliseconds of a step outside of lookups, on one worker: predict whole steps",
    )
    whatif.add_argument(
        "--dense-parameters",
        type=positive,
        default=0,
        metavar="N",
        help="parameters of the dense part, whose gradients are all-reduced (0)",
    )

    widths = _plan_command(commands, "widths", "suggest the width of each table")
    _add_tables(widths)
    _add_topology(widths)
    widths.add_argument(
        "--budget-gib",
        type=positive_number,
        metavar="GIB",
        help="rows and optimizer state of all tables, on all workers together, each table counted "
        "once (default: what they take now)",
    )
    widths.add_argument(
        "--max-width",
        type=positive,
        metavar="N",
        help="floats of the widest table, at least 4 (default: no table gets wider than it is)",
    )
    widths.add_argument(
        "--alpha",
        type=exponent,
        default=0.3,
        help="how much wider often used rows are: width ~ (lookups per row)^alpha where memory is "
        "short, 0 to 1 (0.3)",
    )

    cpu = _plan_command(commands, "to-cpu", "convert a plan to a few CPU ranks")
    cpu.add_argument("plan", type=Path, help="plan file")
    cpu.add_argument("--ranks", type=positive, required=True, help="CPU ranks, on one machine")
    rows = cpu.add_mutually_exclusive_group()
    rows.add_argument("--row-scale", type=float, default=1.0, help="factor on all rows (1)")
    rows.add_argument("--config", type=Path, help="run file: take the rows of its training set")
    add_overrides(cpu)
    cpu.add_argument("--output", type=Path, required=True, help="plan file to write")


def _plan_command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    add_json(command)
    return command


def _add_tables(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tables", help="tables file, or its name in sharding_plans/tables")
    source.add_argument("--config", type=Path, help="run file: the tables of its training set")
    add_overrides(parser)


def _add_topology(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology",
        help="name in sharding_plans/topologies, or a file (default: cpu, or h100x8 where the run "
        "file says scaling.use_gpu)",
    )
    parser.add_argument(
        "--world-size", type=positive, help="workers (default: the run file's, or one node)"
    )


def positive_number(text: str) -> float:
    """A finite number above 0."""
    number = _number(text)
    if not 0 < number < _MAX_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return number


def exponent(text: str) -> float:
    """A number from 0 to 1."""
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 1")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number") from None


def byte_size(text: str) -> float:
    """Bytes of a size such as 50GB or 1.5 TiB."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 50GB")
    size = float(match[1]) * _UNITS[match[2].upper()]
    if not size < _MAX_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size below {_MAX_BYTES:.0e} bytes")
    return size
