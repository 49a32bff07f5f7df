"""Compares the metrics.jsonl of two runs."""

from collections.abc import Sequence
from typing import Any

import pytest

Record = dict[str, Any]


def assert_same_log(mine: Sequence[Record], theirs: Sequence[Record]) -> list[int]:
    """Assert that a log is that of an undisturbed run, but for lines at further saves.

    A run logs at each save, so a stopped run has a line more, whose rows the next line lacks.

    Returns:
        The steps of the lines that only `mine` has.
    """
    ours, known = _by_step_and_kind(mine), _by_step_and_kind(theirs)
    assert known.keys() <= ours.keys()
    extra = [key for key in ours if key not in known]
    assert all(kind == "train" for _, kind in extra)
    begin, open_lines = 0, []
    for key, record in ours.items():
        if key in extra:
            open_lines.append(record)
        elif key[1] == "train" and open_lines:
            whole, rows, losses = known[key], [], []
            assert record["examples"] == whole["examples"]
            for line in (*open_lines, record):
                rows.append(line["examples"] - begin)
                losses.append(line["train/loss/total"])
                begin = line["examples"]
            mean = sum(n * loss for n, loss in zip(rows, losses, strict=True)) / sum(rows)
            assert mean == pytest.approx(whole["train/loss/total"], rel=1e-6)
            open_lines = []
        else:
            assert record == known[key], "bit for bit"
            begin = record["examples"]
    assert not open_lines
    return [step for step, _ in extra]


def _by_step_and_kind(records: Sequence[Record]) -> dict[tuple[int, str], Record]:
    found = {}
    for record in records:
        kind = "train" if "train/loss/total" in record else "valid"
        found[record["step"], kind] = record
    assert len(found) == len(records), "each step once"
    return found
