"""The gate: the conditions under which a trained model replaces the current one."""

import math
from collections.abc import Iterable, Mapping

from infnet_dist.config.roll import GateConfig, RollConfig
from infnet_dist.errors import ConfigError, unknown_name
from infnet_dist.evaluation.metrics import higher_is_better

_OF_LABELS = ("auc", "gauc", "log_loss", "normalized_entropy", "calibration")
_OF_WATCH_TIMES = ("r2", "mae_s")


def check_gate(config: RollConfig, binary_tasks: Iterable[str], watch_time: bool) -> None:
    """Check that every metric of the gate is measured.

    Args:
        config: the section.
        binary_tasks: names of the trained tasks with labels.
        watch_time: whether watch times are trained.

    Raises:
        ConfigError: one isn't.
    """
    measured = {f"{metric}/{task}" for task in binary_tasks for metric in _OF_LABELS}
    if watch_time:
        measured |= {f"{metric}/watch_time" for metric in _OF_WATCH_TIMES}
    for condition in config.gate:
        if condition.metric not in measured:
            raise ConfigError(f"roll.gate: {unknown_name('metric', condition.metric, measured)}")


def failures(
    config: RollConfig,
    candidate: Mapping[str, float],
    incumbent: Mapping[str, float],
    row_norm: float | None = None,
) -> tuple[str, ...]:
    """The conditions that the candidate doesn't meet, one text each.

    Args:
        config: the section.
        candidate: its metrics by metric/task, on the rows that are held out.
        incumbent: those of the current model on the same rows; empty if there is none.
        row_norm: the candidate's largest L2 norm of an embedding row; None: not limited.
    """
    found = [text for one in config.gate for text in _failures(one, candidate, incumbent)]
    limit = config.max_row_norm
    if limit is not None and row_norm is not None and not row_norm <= limit:
        found.append(f"the largest row has norm {row_norm:.4g}, more than {limit:g}")
    return tuple(found)


def _failures(
    condition: GateConfig, candidate: Mapping[str, float], incumbent: Mapping[str, float]
) -> list[str]:
    name, value = condition.metric, candidate[condition.metric]
    if math.isnan(value):
        return [f"{name} is undefined on the rows that are held out"]
    found = []
    if condition.min is not None and value < condition.min:
        found.append(f"{name} is {value:.4f}, less than {condition.min:g}")
    if condition.max is not None and value > condition.max:
        found.append(f"{name} is {value:.4f}, more than {condition.max:g}")
    before = incumbent.get(name, math.nan)
    if condition.min_difference is not None and not math.isnan(before):
        sign = 1 if higher_is_better(f"valid/{name}") else -1
        gain = sign * (value - before)
        if gain < condition.min_difference:
            found.append(
                f"{name} is {value:.4f}, {before:.4f} before: a difference of {gain:+.4f}, less "
                f"than {condition.min_difference:+g}"
            )
    return found
