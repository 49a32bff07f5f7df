"""Train many models under one protocol and report which is better, and by how much.

    ray job submit --working-dir . -- python -m ray_jobs.compare --config configs/compare_x.yaml
    infnet compare --config configs/compare_x.yaml --launcher local --at-once 2

The training set must exist (`infnet ingest` with the base run file). The report is written
to <run.folder>/<run.name>/: results.json, table.md, pictures. After an interruption run the same
command again: finished trials are kept, and a stopped one resumes from its checkpoint.
"""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.markdown import Markdown

from infnet_dist.comparison.costs import measure_costs
from infnet_dist.comparison.protocol import (
    CONTROL,
    Protocol,
    Trial,
    ablation_trials,
    base_config,
    load_protocol,
    trials,
    with_seed,
)
from infnet_dist.comparison.report import PICTURES, write_report
from infnet_dist.comparison.results import (
    Finished,
    best_points,
    is_finished,
    read_finished,
    summarise,
)
from infnet_dist.config.run import Config
from infnet_dist.errors import UserError
from infnet_dist.io.console import wide_console
from infnet_dist.model.build import build_train_model
from infnet_dist.tracking.tracker import send_report
from infnet_dist.training.provenance import versions
from infnet_dist.training.run_lock import held_by_driver
from infnet_dist.training.setup import open_training_set
from ray_jobs._cli import log, run_main
from ray_jobs._cluster import submission_id
from ray_jobs._trials import run_trials
from ray_jobs._verbs import parse


def main(argv: Sequence[str] | None = None) -> None:
    """Read the protocol and run the comparison, with its folder locked."""
    arguments = parse("compare", argv)
    protocol = load_protocol(arguments.config)
    base = base_config(protocol, arguments.config, arguments.overrides)
    with held_by_driver(base.run.folder / base.run.name, base.scaling, submission_id()):
        _compare(protocol, base, arguments)


def _compare(protocol: Protocol, base: Config, arguments: argparse.Namespace) -> None:
    """Run the unfinished trials, then write the report."""
    manifest, schema = open_training_set(base)
    grid = trials(protocol, base, seed=protocol.seeds[0], data=manifest.content_hash)
    for trial in [*grid, *ablation_trials(protocol, base, grid[0])]:
        # Wrong settings are found before any training.
        build_train_model(trial.config, schema, table_device=torch.device("meta"))
    finished = _run(grid, arguments, base)
    best = best_points(finished)
    finalists = _finalists(protocol, finished)
    log.info("finalists: %s", ", ".join(one.trial.model for one in finalists))
    more = [with_seed(one.trial, seed) for seed in protocol.seeds[1:] for one in finalists]
    ablations_of = protocol.ablations.of if protocol.ablations else None
    if ablations_of:
        more += ablation_trials(protocol, base, best[ablations_of].trial)
    later = _run(more, arguments, base)
    ablations = [one for one in later if one.trial.model in protocol.variants]
    one_each = {one.trial.model: one.trial.config for one in [*best.values(), *ablations]}
    costs = {name: measure_costs(config, schema) for name, config in one_each.items()}
    results = summarise(
        finished,
        [one for one in later if one not in ablations],
        costs,
        ablations=ablations,
        ablations_of=ablations_of,
    )
    folder = base.run.folder / base.run.name
    tasks = [task.name for task in schema.tasks if task.kind == "binary"]
    about = {
        "protocol": protocol.model_dump(mode="json"),
        "base": base.model_dump(mode="json"),
        "training_set": manifest.content_hash,
        "trained_by": sorted({_commit(one) for one in [*finished, *later]}),
        "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    write_report(results, folder, tasks=tasks, about=about)
    wide_console(200).print(Markdown((folder / "table.md").read_text()))
    place = send_report(
        base.tracking,
        folder=folder,
        run_id=base.run.name,
        settings=about,
        scores={f"compare/auc/{result.name}": result.mean("auc") for result in results},
        pictures=[folder / name for name in PICTURES],
    )
    log.info("wrote %s%s", folder / "results.json", f"; W&B {place}" if place else "")


def _run(wanted: Sequence[Trial], arguments: argparse.Namespace, base: Config) -> list[Finished]:
    """Train unfinished trials and return all results; a failed trial is logged and left out.

    Raises:
        UserError: all trials of a model failed; finished trials are kept and aren't run again.
    """
    left = [trial for trial in wanted if not is_finished(trial)]
    log.info("%d trials, %d of them finished already", len(wanted), len(wanted) - len(left))
    notes = base.run.folder / base.run.name / ".ray"
    failures = run_trials(
        left, launcher=arguments.launcher, at_once=arguments.at_once, folder=Path(notes)
    )
    for name, reason in failures.items():
        log.warning("trial %s failed: %s", name, reason)
    done = [trial for trial in wanted if is_finished(trial)]
    lacking = {trial.model for trial in wanted} - {trial.model for trial in done}
    if lacking:
        reason = next(reason for name, reason in failures.items())
        raise UserError(
            f"all trials of {', '.join(sorted(lacking))} failed, first: {reason}; finished "
            "trials are kept: fix the cause and run the same command again"
        )
    return [read_finished(trial) for trial in done]


def _commit(one: Finished) -> str:
    """The commit of the code that trained it."""
    found = json.loads((one.trial.folder / "versions.json").read_text())
    return str(found.get("git_commit"))


def _finalists(protocol: Protocol, grid: Sequence[Finished]) -> list[Finished]:
    """The best models at their best points, and those that are always finalists.

    These include the control and the ablated model.
    """
    best = best_points(grid)
    always = [*protocol.always_finalists, *([protocol.ablations.of] if protocol.ablations else [])]
    models = [name for name in best if name != CONTROL]
    names = dict.fromkeys([*models[: protocol.finalists], *always, CONTROL])
    return [best[name] for name in names]


if __name__ == "__main__":
    run_main(main)
