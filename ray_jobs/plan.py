"""Plan the sharding of embedding tables, also of tables that don't exist yet; no GPU, no Ray.

    P="infnet plan"
    $P make --tables TABLES.yaml --topology h100x8 --world-size 128 --output PLAN
    $P make --config CONFIG --output PLAN
    $P show PLAN --html PAGE.html
    $P check PLAN --config CONFIG
    $P diff OLD NEW
    $P extend PLAN --tables TABLES.yaml --max-move 50GB --output NEW
    $P whatif --tables TABLES.yaml --topology h100x8,h200x8 --world-size 8,16,32
    $P calibrate --output TOPOLOGY.json
    $P widths --config CONFIG --budget-gib 4
    $P to-cpu PLAN --ranks 2 --row-scale 0.001 --output NEW

Train under a plan with --set sharding.plan=PLAN.
"""

from collections.abc import Sequence

from infnet_dist.io.paths import make_writable
from ray_jobs import _plan_commands
from ray_jobs._cli import run_main
from ray_jobs._plan_calibrate import calibrate_workers
from ray_jobs._plan_widths import print_widths
from ray_jobs._verbs import parse

_COMMANDS = {
    "make": _plan_commands.make,
    "show": _plan_commands.show,
    "check": _plan_commands.check,
    "diff": _plan_commands.diff,
    "extend": _plan_commands.extend,
    "whatif": _plan_commands.whatif,
    "calibrate": calibrate_workers,
    "widths": print_widths,
    "to-cpu": _plan_commands.to_cpu_plan,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand."""
    arguments = parse("plan", argv)
    for option in ("output", "html", "png"):
        if (path := getattr(arguments, option, None)) is not None:
            make_writable(path.parent, f"--{option}")
    _COMMANDS[arguments.command](arguments)


if __name__ == "__main__":
    run_main(main)
