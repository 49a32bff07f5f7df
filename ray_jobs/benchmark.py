"""Measure where the time of a run's training step goes.

    infnet benchmark --config configs/smoke.yaml --launcher local
    infnet benchmark --config configs/smoke.yaml --steps 100 --trace trace.json --picture phases.png

The run is built as `train` builds it: the same data, plan, workers and kind of step. It has no run
folder, reads no checkpoint and writes only the files that are asked for. Prints a table per rank:
docs/benchmark.md.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from infnet_dist.errors import ConfigError
from infnet_dist.io.console import wide_console
from infnet_dist.io.filesystem import Folder
from infnet_dist.io.json_files import write_json
from infnet_dist.io.paths import make_writable
from infnet_dist.profiling.benchmark import benchmark, check_steps
from infnet_dist.profiling.report import draw, render
from ray_jobs._cli import log, read_config, run_main
from ray_jobs._launch import launch
from ray_jobs._run_checks import check_run
from ray_jobs._verbs import parse


def main(argv: Sequence[str] | None = None) -> None:
    """Check everything that needs no workers, measure, print and write the result."""
    arguments = parse("benchmark", argv)
    config = read_config(arguments)
    check_steps(config, arguments.steps)
    outputs = {name: getattr(arguments, name) for name in ("json", "trace", "picture")}
    for name, path in outputs.items():
        if path is not None:
            _check_output(path, f"--{name}")
    check_run(config)
    settings = {
        "steps": arguments.steps,
        "warmup": arguments.warmup,
        "trace": arguments.trace is not None,
    }
    result, trace = launch(benchmark, {"config": config, **settings}, config, arguments.launcher)
    wide_console().print(render(result))
    if arguments.json:
        write_json(arguments.json, asdict(result))
    if arguments.trace:
        Folder(arguments.trace.parent).put(arguments.trace.name, trace.encode())
    if arguments.picture:
        draw(result, arguments.picture)
    for path in filter(None, outputs.values()):
        log.info("written to %s", path)


def _check_output(path: Path, option: str) -> None:
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; expected the path of a file")
    make_writable(path.parent, option)


if __name__ == "__main__":
    run_main(main)
