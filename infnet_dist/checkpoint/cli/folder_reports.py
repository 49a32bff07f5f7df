"""The commands `list`, `verify` and `prune`."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from infnet_dist.checkpoint import inspection
from infnet_dist.checkpoint.cli.printing import (
    add_right,
    bar_of,
    print_json,
    table_of,
    time_of,
)
from infnet_dist.checkpoint.discovery import (
    FoundCheckpoint,
    State,
    checkpoints_folder,
    discover,
    examine,
    is_checkpoint,
)
from infnet_dist.checkpoint.retention import RetentionDecision, decide_retention, delete
from infnet_dist.config.run import CheckpointConfig
from infnet_dist.errors import CheckpointError
from infnet_dist.io.console import wide_console
from infnet_dist.io.filesystem import Folder, size_text
from infnet_dist.io.parsing import printable

_COLOURS = {"complete": "green", "incomplete": "yellow"}  # the others red
_MOST_FAULTS = 20


def list_command(arguments: argparse.Namespace) -> int:
    """List the checkpoints in a folder."""
    folder = checkpoints_folder(arguments.folder)
    found = discover(folder)
    newest = next((one.folder for one in reversed(found) if one.manifest), None)
    metrics = arguments.metrics or _some_metrics(found)
    if arguments.json:
        print_json([_listed(one, newest) for one in found])
        return 0
    table = table_of(f"Checkpoints in {folder}", "step", "state")
    add_right(table, "epoch", "examples", "saved (UTC)", "size", "workers", *metrics)
    for one in found:
        name = f"{one.step:,}{' *' if one.folder == newest else ''}"
        table.add_row(
            name, f"[{_COLOURS.get(one.state, 'red')}]{one.state}[/]", *_cells(one, metrics)
        )
    table.caption = "* newest complete checkpoint; file sizes were compared, contents weren't"
    table.caption_justify = "left"
    wide_console().print(table)
    for one in found:
        if one.fault and one.state != "incomplete":
            print(f"{one.folder.name}: {printable(one.fault)}")
    return 0


def _some_metrics(found: Sequence[FoundCheckpoint]) -> list[str]:
    names = {name: None for one in found if one.manifest for name in one.manifest.metrics}
    return ([name for name in names if "/auc/" in name] or list(names))[:3]


def _cells(one: FoundCheckpoint, metrics: Sequence[str]) -> list[str]:
    saved = "" if not one.written_ns else f"{time_of(one.written_ns):%Y-%m-%d %H:%M:%S}"
    if one.manifest is None:
        return ["", "", saved, size_text(one.num_bytes)]
    progress, known = one.manifest.progress, one.manifest.metrics
    values = [known.get(name) for name in metrics]
    return [
        str(progress.epoch),
        f"{progress.examples:,}",
        saved,
        size_text(one.num_bytes),
        str(one.manifest.world_size),
        *("" if value is None else f"{value:.5f}" for value in values),
    ]


def _listed(one: FoundCheckpoint, newest: Folder | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "folder": str(one.folder),
        "step": one.step,
        "state": one.state,
        "newest": one.folder == newest,
        "bytes": one.num_bytes,
        "saved": time_of(one.written_ns).isoformat() if one.written_ns else None,
        "fault": one.fault or None,
    }
    if one.manifest is not None:
        facts |= {
            "epoch": one.manifest.progress.epoch,
            "examples": one.manifest.progress.examples,
            "workers": one.manifest.world_size,
            "metrics": one.manifest.metrics,
        }
    return facts


def verify_command(arguments: argparse.Namespace) -> int:
    """Read all bytes and compare them with the checksums."""
    wanted: list[FoundCheckpoint] = []
    for place in arguments.places:
        if is_checkpoint(Folder(place)):
            wanted.append(examine(Folder(place)))
        else:
            here = discover(checkpoints_folder(place))
            wanted += [one for one in here if one.state != "incomplete"]
    if not wanted:
        raise CheckpointError(f"no complete checkpoint in {', '.join(arguments.places)}")
    start = time.perf_counter()
    with _bar_of_all(wanted) as bar:
        verdicts = [_verdict(one, bar.update) for one in wanted]
    seconds = time.perf_counter() - start
    if arguments.json:
        print_json([_as_json(verdict) for verdict in verdicts])
        return 1 if any(verdict.faults for verdict in verdicts) else 0
    for verdict in verdicts:
        print(f"{verdict.folder}: {verdict.word}")
        for fault in verdict.faults[:_MOST_FAULTS]:
            print(f"  {printable(fault)}")
        if len(verdict.faults) > _MOST_FAULTS:
            print(f"  ... and {len(verdict.faults) - _MOST_FAULTS:,} more")
    total = sum(one.manifest.num_bytes for one in wanted if one.manifest)
    print(f"read {size_text(total)} in {seconds:.1f} s")
    _check_intact([verdict.word for verdict in verdicts])
    return 0


class _Verdict(NamedTuple):
    """The verdict on a checkpoint: intact, damaged, renamed or unreadable."""

    folder: Folder
    word: str
    faults: list[str]


def _verdict(one: FoundCheckpoint, advance: inspection.Advance) -> _Verdict:
    if one.manifest is None:
        word: str = one.state if one.state in ("unreadable", "renamed") else "damaged"
        return _Verdict(one.folder, word, [one.fault])
    faults = inspection.verify(one.folder, one.manifest, advance)
    word = _state_after(faults) if faults else "intact"
    return _Verdict(one.folder, word, [fault.text for fault in faults])


def _as_json(verdict: _Verdict) -> dict[str, Any]:
    return {
        "folder": str(verdict.folder),
        "intact": not verdict.faults,
        "state": verdict.word,
        "faults": verdict.faults,
    }


def _check_intact(words: Sequence[str]) -> None:
    """Raise CheckpointError unless all are intact."""
    damaged, unreadable = words.count("damaged"), words.count("unreadable")
    renamed = words.count("renamed")
    faults = []
    if damaged:
        faults.append(
            f"damaged: {damaged} of {len(words)}; a resumed run skips them; "
            "`prune --verify --damaged` deletes them"
        )
    if renamed:
        faults.append(f"renamed: {renamed} of {len(words)}; no run loads them under their names")
    if unreadable:
        faults.append(
            f"unreadable: {unreadable} of {len(words)}; the storage failed, so their content is "
            "unknown: verify again"
        )
    if faults:
        raise CheckpointError("; ".join(faults))


def _state_after(faults: Sequence[inspection.Fault]) -> State:
    """Damaged, so that it may be deleted, only if all faults are damage."""
    return "damaged" if all(fault.is_damage for fault in faults) else "unreadable"


def prune_command(arguments: argparse.Namespace) -> int:
    """Delete the checkpoints that the rules don't keep."""
    try:
        config = CheckpointConfig(
            keep_last=arguments.keep_last,
            keep_every_steps=arguments.keep_every_steps,
            keep_best=arguments.keep_best,
        )
    except ValidationError:
        raise CheckpointError(
            f"--keep-best {arguments.keep_best!r} has no best value; expected a metric such as "
            "valid/auc/click (auc, gauc, r2, log_loss, normalized_entropy, mae_s)"
        ) from None
    if arguments.json and not (arguments.yes or arguments.dry_run):
        raise CheckpointError("--json can't prompt: add --yes or --dry-run")
    folder = checkpoints_folder(arguments.folder)
    found = discover(folder)
    if arguments.verify:
        found = _verified(found)
    decided = decide_retention(
        found, config, now_ns=time.time_ns(), delete_damaged=arguments.damaged
    )
    going = [fate.found for fate in decided if not fate.kept]
    if not arguments.json:
        wide_console().print(_render_fates(folder, decided))
    if going and not arguments.dry_run:
        if not (arguments.yes or _agreed(going)):
            print("nothing was deleted")
            return 1
        for one in going:
            delete(one.folder)
    if arguments.json:
        word = "would delete" if arguments.dry_run else "deleted"
        print_json(
            {
                word: [_fate(f) for f in decided if not f.kept],
                "kept": [_fate(f) for f in decided if f.kept],
            }
        )
    else:
        size = size_text(sum(one.num_bytes for one in going))
        print(f"{'would delete' if arguments.dry_run else 'deleted'} {len(going):,} ({size})")
    return 0


def _verified(found: Sequence[FoundCheckpoint]) -> list[FoundCheckpoint]:
    """The checkpoints after verification: those with faults aren't complete."""
    read: list[FoundCheckpoint] = []
    with _bar_of_all(found) as bar:
        for one in found:
            faults = inspection.verify(one.folder, one.manifest, bar.update) if one.manifest else []
            if faults:
                state = _state_after(faults)
                one = replace(one, state=state, manifest=None, fault=faults[0].text)
            read.append(one)
    return read


def _bar_of_all(found: Sequence[FoundCheckpoint]) -> Any:
    return bar_of(sum(one.manifest.num_bytes for one in found if one.manifest), "verify")


def _agreed(going: Sequence[FoundCheckpoint]) -> bool:
    if not sys.stdin.isatty():
        raise CheckpointError(
            "no terminal to prompt on: nothing is deleted; --yes deletes without a prompt"
        )
    size = size_text(sum(one.num_bytes for one in going))
    return input(f"delete {len(going):,} folders ({size})? [y/N] ").strip().lower() in {"y", "yes"}


def _render_fates(folder: Folder, decided: Sequence[RetentionDecision]) -> Table:
    table = table_of(f"Checkpoints in {folder}", "step", "", "why")
    add_right(table, "size")
    for fate in decided:
        word = "[green]keep[/]" if fate.kept else "[red]delete[/]"
        size = size_text(fate.found.num_bytes)
        table.add_row(f"{fate.found.step:,}", word, escape(fate.reason), size)
    kept, going = (
        size_text(sum(f.found.num_bytes for f in decided if f.kept is wanted))
        for wanted in (True, False)
    )
    table.caption, table.caption_justify = f"keep: {kept}; delete: {going}", "left"
    return table


def _fate(fate: RetentionDecision) -> dict[str, Any]:
    found = fate.found
    return {"folder": str(found.folder), "bytes": found.num_bytes, "reason": fate.reason}
