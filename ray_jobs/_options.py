"""Options of all verbs, with the standard library alone: --help and completion are quick."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from infnet_dist.checkpoint.cli.command import add_checkpoint_options
from infnet_dist.io.command_line import HelpFormatter, add_json, examples, positive
from infnet_dist.tools.doctor import add_doctor_options

REPOSITORY = Path(__file__).resolve().parents[1]
_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_MAX_BYTES = 1e18


class Verb(NamedTuple):
    """A verb of the `infnet` command.

    Attributes:
        module: whose `main` takes the arguments.
        summary: what it does, for the list of verbs.
        examples: arguments, one example per line.
        add_options: adds its options to a parser.
    """

    module: str
    summary: str
    examples: str
    add_options: Callable[[argparse.ArgumentParser], None]


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb's arguments."""
    parser = argparse.ArgumentParser(prog=f"infnet {verb}")
    set_up(parser, verb)
    return parser


def set_up(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add a verb's options, description and examples to a parser."""
    known = VERBS[verb]
    parser.formatter_class = HelpFormatter
    parser.description = f"{known.summary[0].upper()}{known.summary[1:]}."
    parser.epilog = examples(f"infnet {verb}", known.examples)
    known.add_options(parser)


def parse(verb: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a verb; None: those of this process."""
    return parser_of(verb).parse_args(argv)


# ---- types


def run_id(text: str) -> str:
    """Type of --run-id: a plain folder name, as `run.name`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    return text


def byte_size(text: str) -> float:
    """Bytes of a size such as 50GB or 1.5 TiB."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 50GB")
    size = float(match[1]) * _UNITS[match[2].upper()]
    if not size < _MAX_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size below {_MAX_BYTES:.0e} bytes")
    return size


# ---- shared options


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="run file, e.g. configs/x.yaml")
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY.PATH=VALUE",
        action="append",
        default=[],
        help="override a key of the run file, e.g. --set training.epochs=2; repeatable",
    )


def _add_launcher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--launcher",
        choices=("ray", "local"),
        default="ray",
        help="ray: Ray Train on the cluster of $RAY_ADDRESS or a new one; local: plain processes "
        "on this machine, without Ray (default: ray)",
    )


# ---- the verbs


def _ingest(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    _add_launcher(parser)


def _train(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    _add_launcher(parser)
    parser.add_argument(
        "--run-id", type=run_id, help="name of the run's folder (default: the time, UTC)"
    )


def _evaluate(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    _add_launcher(parser)
    parser.add_argument("--split", default="valid", help="split to evaluate (default: valid)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--run-id", type=run_id, help="a run's folder name (default: the newest)")
    where.add_argument("--checkpoint", help="a checkpoint folder or URL")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON to write (default: evaluation-SPLIT-STEP.json in the run's folder)",
    )


def _compare(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    _add_launcher(parser)
    parser.add_argument(
        "--at-once",
        type=positive,
        help="most trials at the same time (default: as many as fit; with --launcher local: 1)",
    )


def _sync(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN_FOLDER", help="folder of a run")


def _smoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=REPOSITORY / "configs" / "smoke.yaml",
        help="run file (default: configs/smoke.yaml)",
    )
    parser.add_argument(
        "--root", type=Path, default=Path(".infnet"), help="folder for data and runs (.infnet)"
    )
    _add_overrides(parser)


def _plan(parser: argparse.ArgumentParser) -> None:
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
    _add_overrides(check)
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

    whatif = _plan_command(commands, "whatif", "compare topologies and world sizes")
    _add_tables(whatif)
    whatif.add_argument("--topology", required=True, help="names or files, separated by commas")
    whatif.add_argument(
        "--world-size", required=True, help="numbers of workers, separated by commas"
    )

    cpu = _plan_command(commands, "to-cpu", "convert a plan to a few CPU ranks")
    cpu.add_argument("plan", type=Path, help="plan file")
    cpu.add_argument("--ranks", type=positive, required=True, help="CPU ranks, on one machine")
    rows = cpu.add_mutually_exclusive_group()
    rows.add_argument("--row-scale", type=float, default=1.0, help="factor on all rows (1)")
    rows.add_argument("--config", type=Path, help="run file: take the rows of its training set")
    _add_overrides(cpu)
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
    _add_overrides(parser)


def _add_topology(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology",
        help="name in sharding_plans/topologies, or a file (default: cpu, or h100x8 where the run "
        "file says scaling.use_gpu)",
    )
    parser.add_argument(
        "--world-size", type=positive, help="workers (default: the run file's, or one node)"
    )


# In the order of a day.
VERBS = {
    "plan": Verb(
        "ray_jobs.plan",
        "plan the sharding of embedding tables; needs no GPU and no Ray",
        "make --tables TABLES.yaml --topology h100x8 --world-size 128 --output PLAN\n"
        "show PLAN --html PAGE.html",
        _plan,
    ),
    "ingest": Verb(
        "ray_jobs.ingest",
        "make the training set of a run file",
        "--config configs/smoke.yaml",
        _ingest,
    ),
    "train": Verb(
        "ray_jobs.train",
        "train a run, or resume it",
        "--config configs/smoke.yaml --launcher local\n"
        "--config configs/smoke.yaml --run-id 20261122-111407",
        _train,
    ),
    "evaluate": Verb(
        "ray_jobs.evaluate",
        "evaluate a checkpoint on a split",
        "--config configs/smoke.yaml --run-id 20261122-111407 --split test",
        _evaluate,
    ),
    "compare": Verb(
        "ray_jobs.compare",
        "train models under one protocol and compare them",
        "--config configs/compare_synthetic.yaml --launcher local --at-once 2",
        _compare,
    ),
    "checkpoint": Verb(
        "infnet_dist.checkpoint.cli.command",
        "list, verify, inspect, compare, export and delete checkpoints",
        "list runs/my_run/20261122-111407",
        add_checkpoint_options,
    ),
    "sync": Verb(
        "ray_jobs.sync",
        "upload a run to W&B that was trained offline",
        "runs/my_run/20261122-111407",
        _sync,
    ),
    "smoke": Verb(
        "ray_jobs.smoke",
        "ingest, train and evaluate on this machine, on a Ray of its own",
        "--config configs/smoke.yaml",
        _smoke,
    ),
    "doctor": Verb(
        "infnet_dist.tools.doctor",
        "check whether this machine can train; show a fix for each problem",
        "--workers 2",
        add_doctor_options,
    ),
}
