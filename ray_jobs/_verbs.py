"""The verbs of the `infnet` command; with the standard library alone, so that --help is quick."""

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

from infnet_dist.checkpoint.cli.command import add_checkpoint_options
from infnet_dist.io.command_line import HelpFormatter, examples
from infnet_dist.tools.doctor import add_doctor_options
from ray_jobs._options import (
    benchmark_options,
    compare_options,
    evaluate_options,
    export_options,
    ingest_options,
    predict_options,
    roll_options,
    smoke_options,
    sync_options,
    train_options,
)
from ray_jobs._plan_options import plan_options


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


# In the order of a day.
VERBS = {
    "plan": Verb(
        "ray_jobs.plan",
        "plan the sharding of embedding tables; needs no GPU and no Ray",
        "make --tables TABLES.yaml --topology h100x8 --world-size 128 --output PLAN\n"
        "show PLAN --html PAGE.html",
        plan_options,
    ),
    "ingest": Verb(
        "ray_jobs.ingest",
        "make the training set of a run file",
        "--config configs/smoke.yaml",
        ingest_options,
    ),
    "train": Verb(
        "ray_jobs.train",
        "train a run, or resume it",
        "--config configs/smoke.yaml --launcher local\n"
        "--config configs/smoke.yaml --run-id 20261122-111407\n"
        "--config configs/smoke.yaml --set checkpoint.init_from=smoke@best --dry-run",
        train_options,
    ),
    "benchmark": Verb(
        "ray_jobs.benchmark",
        "measure where the time of a run's training step goes",
        "--config configs/smoke.yaml --launcher local --trace trace.json",
        benchmark_options,
    ),
    "evaluate": Verb(
        "ray_jobs.evaluate",
        "evaluate a checkpoint on a split",
        "--config configs/smoke.yaml --run-id 20261122-111407 --split test",
        evaluate_options,
    ),
    "predict": Verb(
        "ray_jobs.predict",
        "score the rows of a file or a split with a checkpoint",
        "--config configs/smoke.yaml --split test --output scores/test --keys user_id\n"
        "--config configs/smoke.yaml --input rows.parquet --output scores/rows --logits",
        predict_options,
    ),
    "export": Verb(
        "ray_jobs.export",
        "export a checkpoint to a bundle for serving; needs no Ray",
        "--config configs/smoke.yaml --out bundle --tables int8 --check",
        export_options,
    ),
    "roll": Verb(
        "ray_jobs.roll",
        "the daily loop: ingest, evaluate, train, gate, publish",
        "--config configs/daily.yaml --every 1h\n--config configs/daily.yaml --one-by-one",
        roll_options,
    ),
    "compare": Verb(
        "ray_jobs.compare",
        "train models under one protocol and compare them",
        "--config configs/compare_synthetic.yaml --launcher local --at-once 2",
        compare_options,
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
        sync_options,
    ),
    "smoke": Verb(
        "ray_jobs.smoke",
        "ingest, train and evaluate on this machine, on a Ray of its own",
        "--config configs/smoke.yaml",
        smoke_options,
    ),
    "doctor": Verb(
        "infnet_dist.tools.doctor",
        "check whether this machine can train; show a fix for each problem",
        "--workers 2",
        add_doctor_options,
    ),
}
