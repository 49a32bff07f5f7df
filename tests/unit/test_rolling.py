"""The daily loop's gate, its state, and the settings that it refuses."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest

from infnet_dist.config.roll import GateConfig, RollConfig
from infnet_dist.config.run import parse_config
from infnet_dist.errors import ConfigError, DataError
from infnet_dist.rolling.gate import check_gate, failures
from infnet_dist.rolling.report import write_report
from infnet_dist.rolling.state import (
    STATE,
    Generation,
    Model,
    RollState,
    metrics_of,
    read_state,
    write_state,
)
from ray_jobs._options import duration_s
from ray_jobs.roll import check


def gate(**condition: Any) -> RollConfig:
    return RollConfig(gate=(GateConfig.model_validate(condition),))


@pytest.mark.parametrize(
    ("condition", "candidate", "incumbent", "passes"),
    [
        ({"metric": "auc/click", "min_difference": -0.01}, 0.695, 0.70, True),
        ({"metric": "auc/click", "min_difference": -0.01}, 0.685, 0.70, False),
        ({"metric": "auc/click", "min_difference": 0.0}, 0.70, 0.70, True),
        ({"metric": "log_loss/click", "min_difference": 0.0}, 0.50, 0.49, False),
        ({"metric": "log_loss/click", "min_difference": 0.0}, 0.48, 0.49, True),
        ({"metric": "auc/click", "min_difference": 0.1}, 0.6, math.nan, True),  # nothing before
        ({"metric": "auc/click", "min": 0.6}, 0.59, 0.5, False),
        ({"metric": "calibration/click", "min": 0.9, "max": 1.1}, 1.05, 1.3, True),
        ({"metric": "calibration/click", "min": 0.9, "max": 1.1}, 1.2, 1.0, False),
        ({"metric": "auc/click", "min_difference": -1.0}, math.nan, 0.7, False),
    ],
)
def test_a_condition(
    condition: dict[str, Any], candidate: float, incumbent: float, passes: bool
) -> None:
    name = condition["metric"]
    found = failures(gate(**condition), {name: candidate}, {name: incumbent})
    assert (not found) == passes
    assert all(name in text for text in found)


def test_the_largest_row_is_limited() -> None:
    assert failures(RollConfig(max_row_norm=5.0), {}, {}, 5.0) == ()
    assert len(failures(RollConfig(max_row_norm=5.0), {}, {}, 5.1)) == 1
    assert len(failures(RollConfig(max_row_norm=5.0), {}, {}, math.nan)) == 1


def test_a_metric_that_isnt_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"auc/clik.*did you mean 'auc/click'"):
        check_gate(gate(metric="auc/clik", min=0.5), ["click", "like"], watch_time=False)
    with pytest.raises(ConfigError, match="r2/watch_time"):
        check_gate(gate(metric="r2/watch_time", min=0.5), ["click"], watch_time=False)
    check_gate(gate(metric="r2/watch_time", min=0.5), ["click"], watch_time=True)


@pytest.mark.parametrize(
    "condition",
    [
        {"metric": "auc/click"},
        {"metric": "calibration/click", "min_difference": 0.0},
        {"metric": "auc/click", "min": 0.8, "max": 0.7},
        {"metric": "valid/auc/click", "min": 0.8},
    ],
)
def test_a_condition_without_meaning_is_refused(condition: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        GateConfig.model_validate(condition)


def test_the_state_survives_and_replaces_a_generation_by_its_number(tmp_path: Path) -> None:
    assert read_state(tmp_path) == RollState()
    one = Generation(number=1, last_time_ms=10, rows=5, before={"valid/auc/click": math.nan})
    model = Model(generation=1, checkpoint="somewhere", trained_until_ms=8)
    state = RollState(current=model).having(one).having(one.model_copy(update={"rows": 6}))
    write_state(tmp_path, state)
    found = read_state(tmp_path)
    assert [g.rows for g in found.generations] == [6] and found.current == model
    assert math.isnan(metrics_of(found.generations[0].before)["auc/click"])
    page = write_report(tmp_path, "daily", found).read_text()
    assert "not trained yet" in page


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"generations": [{"number": "one"}]})])
def test_a_damaged_state_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE).write_text(text)
    with pytest.raises(DataError, match=STATE):
        read_state(tmp_path)
    assert (tmp_path / STATE).read_text() == text


def daily(**changes: Any) -> dict[str, Any]:
    logs = {"source": "logs", "path": "logs", "ids": {"item_id": "item"}, "tasks": {"c": "click"}}
    raw: dict[str, Any] = {"ingest": logs, "data": {"path": "set"}}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        raw.setdefault(section, {})[name] = value
    return raw


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"ingest__valid_from": "2026-05-04"}, "ingest.valid_from"),
        ({"ingest__extendable": False}, "ingest.extendable"),
        ({"data__window": "new"}, "data.window"),
        ({"data__valid_from": "2026-05-04"}, "data.valid_from"),
        ({"checkpoint__init_from": "other"}, "checkpoint.init_from"),
        ({"training__ids_only": True}, "roll.update"),
        ({"roll__gate": [{"metric": "auc/click", "min": 0.5}]}, "roll.gate"),  # its task is c
    ],
)
def test_what_the_loop_sets_itself_is_refused(changes: dict[str, Any], key: str) -> None:
    check(parse_config(daily()))
    with pytest.raises(ConfigError, match=key):
        check(parse_config(daily(**changes)))


def test_only_logs_can_be_rolled() -> None:
    with pytest.raises(ConfigError, match="synthetic"):
        check(parse_config({"ingest": {"source": "synthetic"}, "data": {"path": "set"}}))
    with pytest.raises(ConfigError, match="no ingest section"):
        check(parse_config({"data": {"path": "set"}}))


def test_durations() -> None:
    assert [duration_s(t) for t in ("30s", "10m", "1.5h", "1d")] == [30, 600, 5400, 86_400]
    for text in ("", "5", "h", "0h", "-1h", "1w"):
        with pytest.raises(argparse.ArgumentTypeError):
            duration_s(text)
