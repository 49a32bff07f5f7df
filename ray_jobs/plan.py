"""Plan the sharding of embedding tables, also of tables that don't exist yet; no GPU, no Ray.

    P="python -m ray_jobs.plan"
    $P make --tables TABLES.yaml --topology h100x8 --world-size 128 --output PLAN
    $P make --config CONFIG --output PLAN
    $P show PLAN --html PAGE.html
    $P check PLAN --config CONFIG
    $P diff OLD NEW
    $P extend PLAN --tables TABLES.yaml --max-move 50GB --output NEW
    $P whatif --tables TABLES.yaml --topology h100x8,h200x8 --world-size 8,16,32
    $P to-cpu PLAN --ranks 2 --row-scale 0.001 --output NEW

Train under a plan with --set sharding.plan=PLAN.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infnet_dist.io.paths import make_writable
from ray_jobs import _plan_commands
from ray_jobs._cli import positive, run_main
from ray_jobs._plan_inputs import byte_size


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    for option in ("output", "html", "png"):
        if (path := getattr(arguments, option, None)) is not None:
            make_writable(path.parent, f"--{option}")
    arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs.plan",
        description="Plan the sharding of embedding tables, without a GPU and without Ray.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    make = _command(subparsers, "make", _plan_commands.make, "plan tables on a topology")
    _add_tables(make)
    _add_topology(make)
    make.add_argument("--output", type=Path, required=True, help="plan file to write")

    show = _command(subparsers, "show", _plan_commands.show, "show a plan: table, HTML page, PNG")
    show.add_argument("plan", type=Path)
    show.add_argument("--html", type=Path, help="write one self-contained page")
    show.add_argument("--png", type=Path, help="write a picture of the time and bytes per rank")
    show.add_argument(
        "--tables", type=positive, default=40, metavar="N", help="number of tables listed (40)"
    )

    check = _command(
        subparsers,
        "check",
        _plan_commands.check,
        "check a plan against a run, topology, checkpoint",
    )
    check.add_argument("plan", type=Path)
    check.add_argument("--config", type=Path, help="run file")
    _add_overrides(check)
    check.add_argument("--topology", help="topology: name or file")
    check.add_argument("--checkpoint", help="checkpoint folder or URL")

    diff = _command(
        subparsers, "diff", _plan_commands.diff, "list what moves from one plan to another"
    )
    diff.add_argument("before", type=Path)
    diff.add_argument("after", type=Path)

    extend = _command(
        subparsers, "extend", _plan_commands.extend, "plan new tables beside those of a plan"
    )
    extend.add_argument("plan", type=Path)
    _add_tables(extend)
    extend.add_argument(
        "--max-move",
        type=byte_size,
        default=0.0,
        metavar="SIZE",
        help="bytes of existing tables that may move, e.g. 50GB (default: 0)",
    )
    extend.add_argument("--output", type=Path, required=True, help="plan file to write")

    whatif = _command(
        subparsers, "whatif", _plan_commands.whatif, "compare topologies and world sizes"
    )
    _add_tables(whatif)
    whatif.add_argument("--topology", required=True, help="names or files, separated by commas")
    whatif.add_argument(
        "--world-size", required=True, help="numbers of workers, separated by commas"
    )

    cpu = _command(
        subparsers, "to-cpu", _plan_commands.to_cpu_plan, "convert a plan to a few CPU ranks"
    )
    cpu.add_argument("plan", type=Path)
    cpu.add_argument("--ranks", type=positive, required=True, help="CPU ranks, on one machine")
    rows = cpu.add_mutually_exclusive_group()
    rows.add_argument("--row-scale", type=float, default=1.0, help="factor on all rows (1)")
    rows.add_argument("--config", type=Path, help="run file: take the rows of its training set")
    _add_overrides(cpu)
    cpu.add_argument("--output", type=Path, required=True, help="plan file to write")
    return parser


def _command(subparsers: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print JSON, for programs")
    return command


def _add_tables(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tables", help="tables file, or its name in sharding_plans/tables")
    source.add_argument("--config", type=Path, help="run file: the tables of its training set")
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY.PATH=VALUE",
        action="append",
        default=[],
        help="override a key of the run file; repeatable",
    )


def _add_topology(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology",
        help="name in sharding_plans/topologies, or a file (default: cpu, or h100x8 where the run "
        "file says scaling.use_gpu)",
    )
    parser.add_argument(
        "--world-size", type=positive, help="workers (default: the run file's, or one node)"
    )


if __name__ == "__main__":
    run_main(main)
